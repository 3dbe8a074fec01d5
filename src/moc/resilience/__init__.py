"""Deadlines and bulkheads: what keeps one slow thing from stopping everything."""
