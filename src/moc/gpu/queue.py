"""Those who wait for a lease, in the order in which they get it."""

import asyncio
import itertools
from bisect import bisect_left, insort
from collections.abc import Iterator

from moc.gpu.lease import Lease, Standing
from moc.kernel.errors import QueueFull

AGEING_S = 30.0
"""How long a wait makes up for one step of priority.

So a waiter is overtaken only by more urgent ones that come within `AGEING_S` a step after it, and then by nobody.
"""


_arrivals = itertools.count()


class Waiter:
    """One who waits, at most until `until` on the monotonic clock, None = not at all.

    `device` and `reserved_bytes` are what others were preempted for it; `why` is what it waits for.
    """

    __slots__ = ("answer", "device", "lease", "rank", "reserved_bytes", "until", "why")

    def __init__(self, lease: Lease, *, asked_at: float, until: float | None) -> None:
        self.lease = lease
        self.until = until
        self.answer: asyncio.Future[Standing] = asyncio.get_running_loop().create_future()
        self.rank = (asked_at + AGEING_S * lease.terms.priority, next(_arrivals))
        self.device = ""
        self.reserved_bytes = 0
        self.why = ""


class WaitQueue:
    """Waiters by rank: the more urgent, the further to the front, but time counts too."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._ranked: list[tuple[tuple[float, int], Waiter]] = []
        self._by_id: dict[str, Waiter] = {}

    def __len__(self) -> int:
        return len(self._ranked)

    def __iter__(self) -> Iterator[Waiter]:
        """All there are now, the next one first; the queue may change meanwhile."""
        return iter([waiter for _, waiter in self._ranked])

    def add(self, waiter: Waiter) -> None:
        """Let it wait; QueueFull when too many do."""
        if len(self._ranked) >= self._limit:
            raise QueueFull(f"{self._limit} leases are waited for already; try again later")
        insort(self._ranked, (waiter.rank, waiter), key=lambda each: each[0])
        self._by_id[waiter.lease.id] = waiter

    def find(self, lease_id: str) -> Waiter | None:
        """The one who waits for this lease."""
        return self._by_id.get(lease_id)

    def remove(self, waiter: Waiter) -> bool:
        """It waits no longer; False when it did not."""
        if self._by_id.pop(waiter.lease.id, None) is None:
            return False
        del self._ranked[bisect_left(self._ranked, waiter.rank, key=lambda each: each[0])]
        return True
