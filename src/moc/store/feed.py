"""Waking those who wait for the next commit, whoever makes it."""

import asyncio
from collections.abc import Callable


class Feed:
    """Rings at once for commits of this process; those of others are looked for while somebody waits.

    `changed` tells, cheaply, whether another connection has committed since it was last asked.
    """

    def __init__(self, changed: Callable[[], bool], interval_s: float) -> None:
        self._changed = changed
        self._interval_s = interval_s
        self._ring = asyncio.Event()
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    def next_ring(self) -> asyncio.Event:
        """What is set by the next ring. Take it before reading, wait for it after: nothing is missed between."""
        return self._ring

    def ring(self) -> None:
        """Wake everybody who waits."""
        self._ring.set()
        self._ring = asyncio.Event()

    async def wait(self, ring: asyncio.Event) -> None:
        """Until `ring` is set."""
        self._waiting += 1
        if self._timer is None:
            self._look_later()
        try:
            await ring.wait()
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._look_no_more()

    def close(self) -> None:
        """Wake everybody and look no more."""
        self.ring()
        self._look_no_more()

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._look)

    def _look_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        if self._changed():
            self.ring()
        self._look_later()
