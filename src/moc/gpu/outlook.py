"""What those who wait for a lease can expect."""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

from moc.gpu.lease import Standing
from moc.gpu.lease_book import Held
from moc.gpu.plan import Obstacle
from moc.gpu.queue import Waiter, WaitQueue
from moc.kernel.clock import Clock


class Outlook:
    """As things are when it is asked; `wanted` are the devices that each line of the queue stands for."""

    def __init__(self, queue: WaitQueue, held: Mapping[str, Held], clock: Clock) -> None:
        self.wanted: Mapping[str, frozenset[str]] = {}
        self._queue = queue
        self._held = held
        self._clock = clock

    def standing(self, waiter: Waiter) -> Standing:
        """Of one who waits. How long that will be is told of the first in line only, and not always known."""
        lines = self._lines_of(waiter)
        position, first = self._queue.position(waiter, lines), self._queue.first(lines)
        return Standing(
            lease=waiter.lease,
            message=waiter.why,
            position=position,
            first=None if first is None or position == 1 else first.lease,
            estimated_wait_s=self._wait_s(waiter) if position == 1 else None,
        )

    def _lines_of(self, waiter: Waiter) -> Collection[str]:
        """Those whose turn is before its own if they came first: they want one of its devices."""
        own = self.wanted.get(waiter.line, frozenset())
        return {waiter.line, *(line for line, devices in self.wanted.items() if own & devices)}

    def _wait_s(self, waiter: Waiter) -> float | None:
        """Until the first of its devices has room."""
        moments = []
        for obstacle in waiter.obstacles:
            if waiter.device not in ("", obstacle.device):
                continue
            if obstacle.retry_after_s is not None:
                moments.append(waiter.tried_at + obstacle.retry_after_s)
            elif (ends_at := self._ends_at(obstacle, waiter.lease.terms.bytes)) is not None:
                moments.append(ends_at)
        return max(0.0, min(moments) - self._clock.monotonic()) if moments else None

    def _ends_at(self, obstacle: Obstacle, wanted_bytes: int) -> float | None:
        """When enough of the leases on a device have ended, None when that is not known."""
        missing = wanted_bytes - obstacle.free_bytes - obstacle.evictable_bytes
        ends = self._ends_on(obstacle.device)
        enough = bisect_left([*accumulate(size for _, size in ends)], missing)
        return ends[enough][0] if enough < len(ends) else None

    def _ends_on(self, device: str) -> Sequence[tuple[float, int]]:
        found = ((held.ends_at, held.lease.terms.bytes) for held in self._held.values() if held.lease.device == device)
        return sorted((ends_at, size) for ends_at, size in found if ends_at is not None)
