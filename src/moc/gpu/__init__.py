"""Device memory: what there is, who holds it, who gets it next. A byte has exactly one holder."""
