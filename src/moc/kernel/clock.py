"""Time as a port, so that tests own it."""

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one for durations, one for people."""

    def monotonic(self) -> float:
        """Seconds that never go back; the same for every process of one boot of one host."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch, UTC; may jump."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()
