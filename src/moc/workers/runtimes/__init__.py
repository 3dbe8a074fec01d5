"""Engines, one file each; imported inside a worker process only."""
