"""Those who wait for a lease, in the order in which they get it."""

import asyncio
import itertools
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush

from moc.gpu.lease import Lease, Standing
from moc.gpu.ledger import Demand
from moc.gpu.plan import Obstacle, Refusal
from moc.kernel.errors import QueueFull

AGEING_S = 30.0
"""How long a wait makes up for one step of priority.

So a waiter is overtaken only by more urgent ones that come within `AGEING_S` a step after it, and then by nobody.
"""

JOB_SPARES_USED_S = 60.0
"""How long a model that was used stays if it is a job that wants its room.

Longer than a job runs before it is preempted, so that one that is used every few seconds and a job beside which it
does not fit take turns of a minute, and not of the time it takes to load.
"""

_arrivals = itertools.count()

_Rank = tuple[float, int]


class Waiter:
    """One who waits, at most until `until` on the monotonic clock, None = not at all.

    `device` is where others were preempted for it; `why` is what it waits for. `found_bytes`
    is what it found free on each device when it last had to wait, `obstacles` what was in its way when that was last
    looked at closely, at `tried_at`.
    """

    __slots__ = (
        "answer",
        "device",
        "found_bytes",
        "lease",
        "obstacles",
        "rank",
        "tried_at",
        "until",
        "why",
    )

    def __init__(self, lease: Lease, *, asked_at: float, until: float | None) -> None:
        self.lease = lease
        self.until = until
        self.answer: asyncio.Future[Standing] = asyncio.get_running_loop().create_future()
        self.rank: _Rank = (asked_at + AGEING_S * lease.terms.priority, next(_arrivals))
        self.device = ""
        self.found_bytes: dict[str, int] = {}
        self.obstacles: tuple[Obstacle, ...] = ()
        self.tried_at = asked_at
        stand = "; ask for a longer wait to stand in line" if until is None else ""
        self.why = f"others wait before it for {lease.terms.devices}{stand}"

    @property
    def line(self) -> str:
        """Which devices it stands in line for."""
        return self.device or self.lease.terms.devices

    @property
    def holder(self) -> str:
        """Whose charge it will be."""
        return f"lease:{self.lease.id}"

    def demand(self, devices: str | tuple[str, ...]) -> Demand:
        """What it asks of the books, on these devices."""
        terms = self.lease.terms
        return Demand(
            holder=self.holder,
            bytes=terms.bytes,
            devices=devices,
            priority=terms.priority,
            spares_used_s=JOB_SPARES_USED_S if terms.job else 0.0,
        )

    def found_less(self, devices: Iterable[str], free_bytes: Mapping[str, int]) -> bool:
        """Whether on one of these devices more is free now than it found, or it has not looked there."""
        return any(free_bytes[device] > self.found_bytes.get(device, -math.inf) for device in devices)

    def held_up(self, refusal: Refusal, now: float) -> None:
        """It was looked at and has to wait on."""
        self.why, self.obstacles, self.tried_at = refusal.message, refusal.obstacles, now

    def refuse(self, error: Exception) -> None:
        """It waits in vain; nothing happens if it waits no longer."""
        if not self.answer.done():
            self.answer.set_exception(error)


class WaitQueue:
    """Waiters by rank: the more urgent, the further to the front, but time counts too.

    Those who want the same devices are one line. Where the first of a line has to wait all of it has to, so
    ten thousand of them cost no more than one.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._lines: dict[str, list[tuple[_Rank, Waiter]]] = {}
        self._by_id: dict[str, Waiter] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Waiter]:
        """All there are now, in no order."""
        return iter([*self._by_id.values()])

    def add(self, waiter: Waiter) -> None:
        """Let it wait; QueueFull when too many do."""
        if len(self) >= self._limit:
            raise QueueFull(f"{self._limit} leases are waited for already; try again later")
        self._by_id[waiter.lease.id] = waiter
        self._insert(waiter)

    def find(self, lease_id: str) -> Waiter | None:
        """The one who waits for this lease."""
        return self._by_id.get(lease_id)

    def position(self, waiter: Waiter, lines: Collection[str]) -> int:
        """Its place among those who wait in these lines; 1 is the next."""
        return 1 + sum(bisect_left(self._lines.get(name, []), waiter.rank, key=_rank) for name in lines)

    def first(self, lines: Iterable[str]) -> Waiter | None:
        """The next one of these lines."""
        heads = [line[0] for name in lines if (line := self._lines.get(name))]
        return min(heads, key=_rank)[1] if heads else None

    def pin(self, waiter: Waiter, device: str) -> None:
        """Let one who waits do so for this device only."""
        self._take(waiter)
        waiter.device = device
        self._insert(waiter)

    def remove(self, waiter: Waiter) -> bool:
        """It waits no longer; False when it did not."""
        if self._by_id.pop(waiter.lease.id, None) is None:
            return False
        self._take(waiter)
        return True

    def turns(self, closed: Container[str]) -> Iterator[Waiter]:
        """Those who wait now, the next one first, but none whose line is `closed` when its turn comes.

        The queue may change meanwhile; who came or moved since may be left out.
        """
        heads = [(line[0][0], name) for name, line in self._lines.items()]
        heapify(heads)
        while heads:
            rank, name = heappop(heads)
            line = self._lines.get(name, [])
            place = bisect_left(line, rank, key=_rank)
            if name in closed or place == len(line):
                continue
            found, waiter = line[place]
            if found == rank:
                yield waiter
                place = bisect_right(line, rank, key=_rank)
            if place < len(line):
                heappush(heads, (line[place][0], name))

    def _insert(self, waiter: Waiter) -> None:
        insort(self._lines.setdefault(waiter.line, []), (waiter.rank, waiter), key=_rank)

    def _take(self, waiter: Waiter) -> None:
        line = self._lines[waiter.line]
        del line[bisect_left(line, waiter.rank, key=_rank)]
        if not line:
            del self._lines[waiter.line]


def _rank(place: tuple[_Rank, Waiter]) -> _Rank:
    return place[0]
