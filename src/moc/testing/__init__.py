"""Fakes of the ports, for this project's tests and for those of people who build on it."""
