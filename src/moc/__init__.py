"""ModelOps Coordinator: one service that looks after every model on scarce GPU memory."""

__version__ = "0.1.0"
