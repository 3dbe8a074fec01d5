"""The composition root: the one place where the parts are made and joined."""

from moc.app.coordinator import ENDPOINTS_FILE, Coordinator

__all__ = ["ENDPOINTS_FILE", "Coordinator"]
