"""Programs that work on jobs: each in a process of its own, looked after by a supervisor."""
