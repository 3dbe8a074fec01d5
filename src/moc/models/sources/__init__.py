"""Where artifacts come from: files in place, wheels, web servers, model hubs; kept by their content."""

from moc.models.sources.artifacts import ArtifactSources

__all__ = ["ArtifactSources"]
