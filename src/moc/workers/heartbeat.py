"""Whether a worker that has fallen silent is hung."""

from collections.abc import Callable
from dataclasses import dataclass

from moc.workers.process import Activity

INTERVAL_S = 0.25
"""How often a worker is asked for a sign of life."""

BUSY_FACTOR = 6.0
BUSY_SHARE = 0.1
"""A process that uses this share of a processor is at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a worker may be silent, in seconds: before it is sent no more requests, and before it is replaced.

    One that is at work meanwhile, as an engine that does not let go of Python's interpreter lock is, gets
    `BUSY_FACTOR` times as long before it is replaced.
    """

    unresponsive_after_s: float = 1.0
    hung_after_s: float = 5.0


class Vigil:
    """Watches over one worker while it is silent."""

    __slots__ = ("_idle_s", "_patience", "_used_s")

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._idle_s = 0.0
        self._used_s = 0.0

    def is_hung(self, silent_s: float, passed_s: float, look: Callable[[], Activity]) -> bool:
        """Whether it has been silent for too long; asked every `passed_s`, it looks only at one that is silent."""
        if not silent_s:
            self._idle_s = 0.0
            return False
        at_work, used_s = look()
        used_s, self._used_s = used_s - self._used_s, used_s
        if not at_work and used_s < BUSY_SHARE * passed_s:
            self._idle_s += passed_s
        patience_s = self._patience.hung_after_s
        return self._idle_s >= patience_s or silent_s >= patience_s * BUSY_FACTOR
