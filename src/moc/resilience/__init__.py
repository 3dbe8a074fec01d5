"""Deadlines, bulkheads, breakers, budgets: what keeps one slow or failing thing from stopping everything."""
