"""Learning: jobs that train, evaluate and tune models on the memory that serving leaves."""
