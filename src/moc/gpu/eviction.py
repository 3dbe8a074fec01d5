"""Whom to unload so that somebody else fits. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A model that is loaded, as eviction sees it. Seconds are on one monotonic clock, `now`'s.

    `reload_s` is what loading it again costs (measured), `uses` how often it was used while loaded.
    """

    holder: str
    device: str
    bytes: int
    priority: int = 5
    pinned: bool = False
    in_flight: int = 0
    loaded_at: float = 0.0
    last_used_at: float = 0.0
    uses: int = 0
    reload_s: float = 1.0
