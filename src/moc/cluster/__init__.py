"""Who among the coordinators may do what only one may do."""
