"""What programs import to talk to a coordinator: `AsyncClient`, its blocking twin `Client`, and what they raise."""

from moc.client.async_client import AsyncClient
from moc.client.connection import AsyncStream, Stream, Unreachable
from moc.client.following import AsyncFollowing, Following
from moc.client.sync_client import Client

__all__ = ["AsyncClient", "AsyncFollowing", "AsyncStream", "Client", "Following", "Stream", "Unreachable"]
