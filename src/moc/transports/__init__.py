"""How callers reach the services. A transport translates, nothing else."""
