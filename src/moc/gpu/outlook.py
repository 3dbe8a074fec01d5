"""What those who wait for a lease can expect. Pure."""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

from moc.gpu.eviction import Obstacle
from moc.gpu.lease import Standing
from moc.gpu.lease_book import Held
from moc.gpu.queue import Waiter, WaitQueue


class Outlook:
    """As things are at `now`, on the monotonic clock; `wanted` are the devices that each line stands for."""

    def __init__(
        self, queue: WaitQueue, wanted: Mapping[str, Collection[str]], held: Collection[Held], now: float
    ) -> None:
        self._queue = queue
        self._wanted = {line: frozenset(devices) for line, devices in wanted.items()}
        self._held = held
        self._now = now

    def standing(self, waiter: Waiter) -> Standing:
        """Of one who waits. How long that will be is told of the first in line only, and not always known."""
        position = self._queue.position(waiter, self._lines_of(waiter))
        wait_s = self._wait_s(waiter) if position == 1 else None
        return Standing(lease=waiter.lease, message=waiter.why, position=position, estimated_wait_s=wait_s)

    def _lines_of(self, waiter: Waiter) -> Collection[str]:
        """Those whose turn is before its own if they came first: they want one of its devices."""
        own = self._wanted.get(waiter.line, frozenset())
        return {waiter.line, *(line for line, devices in self._wanted.items() if own & devices)}

    def _wait_s(self, waiter: Waiter) -> float | None:
        """Until the first of its devices has room."""
        tried_s = self._now - waiter.tried_at
        waits = []
        for obstacle in waiter.obstacles:
            if obstacle.retry_after_s is not None:
                waits.append(obstacle.retry_after_s - tried_s)
            elif (ends_at := self._ends_at(obstacle, waiter.lease.terms.bytes)) is not None:
                waits.append(ends_at - self._now)
        return max(0.0, min(waits)) if waits else None

    def _ends_at(self, obstacle: Obstacle, wanted_bytes: int) -> float | None:
        """When enough of the leases on a device have ended, None when that is not known."""
        missing = wanted_bytes - obstacle.free_bytes - obstacle.evictable_bytes
        ends = self._ends_on(obstacle.device)
        enough = bisect_left([*accumulate(size for _, size in ends)], missing)
        return ends[enough][0] if enough < len(ends) else None

    def _ends_on(self, device: str) -> Sequence[tuple[float, int]]:
        found = ((held.ends_at, held.lease.terms.bytes) for held in self._held if held.lease.device == device)
        return sorted((ends_at, size) for ends_at, size in found if ends_at is not None)
