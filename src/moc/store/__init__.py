"""Where the truth is kept: in memory for tests and trials, in one SQLite file on a machine."""
