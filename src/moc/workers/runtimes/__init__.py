"""Engines, one file each, with a folder where that is not enough; imported inside a worker process only."""
