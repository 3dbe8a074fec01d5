"""Where artifacts come from: files in place, wheels, web servers, model hubs; kept by their content."""

from moc.models.sources.artifacts import ArtifactSources
from moc.models.sources.bounds import Bounds, place
from moc.models.sources.source import address_of

__all__ = ["ArtifactSources", "Bounds", "address_of", "place"]
