"""The gate of one worker: a bounded number at once, a bounded number in line, fairly between keys, and in time."""

import asyncio
import itertools
import time
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from moc.inference.lines import Line, Place, before, foremost, hindmost
from moc.inference.request import Caller, Terms
from moc.inference.shares import Shares
from moc.kernel.errors import DeadlineExceeded, DeadlineUnreachable, QueueFull

SAMPLES_MIN: Final = 5
"""After so many requests it is known how long they take."""

_RETRY_AFTER_S: Final = 1.0
"""How long to wait with the next try as long as that is not known."""

_LEAST_S: Final = 0.001
"""What a request is thought to take at least: who has more of them running has more."""


class Pace:
    """How long requests keep their place of late: the mean, and how far they stray from it."""

    __slots__ = ("count", "deviation_s", "mean_s")

    def __init__(self) -> None:
        self.count = 0
        self.mean_s = 0.0
        self.deviation_s = 0.0

    def took(self, seconds: float) -> None:
        """One more."""
        if self.count == 0:
            self.mean_s, self.deviation_s = seconds, seconds / 2
        else:
            self.deviation_s += (abs(seconds - self.mean_s) - self.deviation_s) / 4
            self.mean_s += (seconds - self.mean_s) / 8
        self.count += 1

    @property
    def least_s(self) -> float:
        """What a request takes if all goes well."""
        return max(0.0, self.mean_s - self.deviation_s)


class Outlook(NamedTuple):
    """What is known of a worker whose `places` are all taken, if every request takes `service_s`.

    The first of them is free in `first_s`, and it takes `left_s` on average until one is.
    """

    places: int
    first_s: float
    left_s: float
    service_s: float

    def start_s(self, ahead: int) -> float:
        """In how many seconds, at least, there is a place for somebody behind so many others."""
        return max(self.first_s, self.left_s + (ahead + 1 - self.places) * self.service_s / self.places)

    def served(self, ahead: Iterable[Place], now: float) -> int:
        """How many of those ahead will get a place: some may have no time left by then."""
        count = 0
        for place in ahead:
            if place.deadline_at is None or now + self.start_s(count) <= place.deadline_at:
                count += 1
        return count


class Gate:
    """`enter` before, `leave` after. At most `max_concurrent` are inside, at most `max_queue` wait.

    The next to go in is of the key that has had the least (`Shares`; what it has inside counts as much as requests
    take here), inside a key the one with the lowest `priority` that came first. In a full queue somebody makes room
    who would have been served last. Not for threads: every call on one event loop.
    """

    def __init__(self, name: str, *, max_concurrent: int, max_queue: int, shares: Shares) -> None:
        self.name = name
        self.max_concurrent = max_concurrent
        self.max_queue = max_queue
        self._shares = shares
        self._pace = Pace()
        self._inside: dict[str, int] = {}
        self._floor = 0.0
        self._raised: dict[str, float] = {}
        self._tags: dict[str, float] = {}
        self._generation = shares.generation
        self._entered_at: list[float] = []
        self._lines: dict[str, Line] = {}
        self._entries: dict[Place, asyncio.Future[None]] = {}
        self._numbers = itertools.count()
        self._turns = itertools.count(1)

    @property
    def running(self) -> int:
        """How many are inside."""
        return len(self._entered_at)

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return len(self._entries)

    @property
    def predicted_wait_s(self) -> float:
        """How long somebody would wait who came now and went last; 0 while that is not known."""
        return self._outlook(self._pace.mean_s).start_s(self.waiting)

    def try_enter(self, caller: Caller) -> bool:
        """Go in if a place is free and nobody waits for it."""
        if self._entries or len(self._entered_at) >= self.max_concurrent:
            return False
        if caller.key not in self._inside:
            self._arrive(caller.key)
        self._admit(caller.key)
        return True

    async def enter(self, caller: Caller, terms: Terms) -> None:
        """Wait for a place.

        At once DeadlineUnreachable when the wait alone will take longer than there is time, even if all goes well,
        and QueueFull when too many wait, which may also strike later, when somebody comes whose key has had less.
        DeadlineExceeded when time runs out. A caller that is cancelled leaves the line, and a place it was just
        given goes to the next.
        """
        if self.try_enter(caller):
            return
        line, place, entry = self._stand(caller, terms)
        try:
            self._check_reach(line, place)
            self._make_room()
            async with asyncio.timeout(terms.deadline.remaining_s()):
                await entry
        except TimeoutError:
            situation = self._situation(line, place)
            expired = DeadlineExceeded(
                f"the deadline passed while waiting for a place at {self.name}, as number {situation['position']} in "
                "line; allow more time, or try again later",
                details=situation,
                retry_after_s=self.predicted_wait_s,
            )
            self._give_up(line, place, entry)
            raise expired from None
        except BaseException:
            self._give_up(line, place, entry)
            raise

    def leave(self, caller: Caller, served_s: float) -> None:
        """Give the place to the next; the key is billed for the seconds that it was kept."""
        self._shares.bill(caller, served_s)
        self._pace.took(served_s)
        self._vacate(caller.key, time.monotonic() - served_s)

    def adjust(self, *, max_concurrent: int, max_queue: int) -> None:
        """Go by other bounds from now on; whoever is inside or in line already stays."""
        self.max_concurrent = max_concurrent
        self.max_queue = max_queue
        self._let_in()

    # who has had how much

    def _had(self, key: str) -> float:
        """What a key has had, as it counts here."""
        return self._shares.used(key) + self._raised.get(key, 0.0)

    def _arrive(self, key: str) -> None:
        """A key comes that has nobody here: it counts as having had no less than those here had when they last went in.

        Otherwise one that comes anew would go before all others until it has had as much as they ever had.
        """
        self._follow_shares()
        used, is_alone = self._shares.used(key), not self._tags
        self._floor = max(self._floor, used if is_alone else min(self._tags.values()))
        if used < self._floor:
            self._raised[key] = self._floor - used
        self._tags[key] = max(used, self._floor)

    def _departed(self, key: str) -> None:
        """Somebody of a key is gone, perhaps the last."""
        if key not in self._inside and key not in self._lines:
            self._raised.pop(key, None)
            self._tags.pop(key, None)

    def _follow_shares(self) -> None:
        """Begin anew when what is counted in is another unit."""
        if self._generation != self._shares.generation:
            self._generation, self._floor = self._shares.generation, 0.0
            self._raised.clear()
            self._tags = {key: self._shares.used(key) for key in self._tags}

    # inside

    def _admit(self, key: str) -> None:
        self._entered_at.append(time.monotonic())
        self._inside[key] = self._inside.get(key, 0) + 1
        self._tags[key] = self._had(key)

    def _vacate(self, key: str, entered_at: float) -> None:
        """Somebody left who had come in at about that time: the next may come."""
        del self._entered_at[max(0, bisect_right(self._entered_at, entered_at) - 1)]
        left = self._inside[key] - 1
        if left:
            self._inside[key] = left
        else:
            del self._inside[key]
            self._departed(key)
        self._let_in()

    def _let_in(self) -> None:
        """Give the places that are free to the next in line."""
        while self.waiting and self.running < self.max_concurrent:
            self._weigh()
            line, place = foremost(self._lines.values(), next(self._turns))
            entry = self._remove(line, place)
            if not entry.done():
                self._admit(line.key)
                entry.set_result(None)

    # in line

    def _stand(self, caller: Caller, terms: Terms) -> "tuple[Line, Place, asyncio.Future[None]]":
        line = self._lines.get(caller.key)
        if line is None:
            if caller.key not in self._inside:
                self._arrive(caller.key)
            line = self._lines[caller.key] = Line(caller.key, caller.weight)
        place = Place(terms.priority, next(self._numbers), terms.deadline.at)
        line.add(place)
        entry = self._entries[place] = asyncio.get_running_loop().create_future()
        self._weigh()
        return line, place, entry

    def _remove(self, line: Line, place: Place) -> "asyncio.Future[None]":
        line.remove(place)
        if not line.places:
            del self._lines[line.key]
        return self._entries.pop(place)

    def _give_up(self, line: Line, place: Place, entry: "asyncio.Future[None]") -> None:
        """Leave the line, or hand on the place that was given just now."""
        if place in self._entries:
            self._remove(line, place)
        elif not entry.cancelled() and entry.exception() is None:
            self._vacate(line.key, time.monotonic())
        self._departed(line.key)

    def _make_room(self) -> None:
        """When too many wait, refuse who would be served last."""
        if self.waiting <= self.max_queue:
            return
        line, place = hindmost(self._lines.values())
        entry = self._remove(line, place)
        if not entry.done():
            entry.set_exception(
                QueueFull(
                    f"{self.name} has {self.running} requests running and {self.waiting} waiting; try again later",
                    details={"position": self.waiting + 1, "waiting": self.waiting, "running": self.running},
                    retry_after_s=self.predicted_wait_s or _RETRY_AFTER_S,
                )
            )

    def _weigh(self) -> None:
        """Work out what each key in line has had, and is having."""
        request_units = max(self._pace.mean_s, _LEAST_S) * self._shares.units_per_s()
        self._follow_shares()
        for line in self._lines.values():
            line.step = request_units / line.weight
            line.burden = self._had(line.key) + self._inside.get(line.key, 0) * line.step

    # how long it will take

    def _outlook(self, service_s: float) -> Outlook:
        """What is to be expected if requests take so long, those inside too."""
        now = time.monotonic()
        left = [max(0.0, entered_at + service_s - now) for entered_at in self._entered_at]
        if len(left) < self.max_concurrent:
            left = [0.0]
        return Outlook(self.max_concurrent, min(left), sum(left) / len(left), service_s)

    def _check_reach(self, line: Line, place: Place) -> None:
        """DeadlineUnreachable when those before it take too long even if all goes well."""
        if place.deadline_at is None or self._pace.count < SAMPLES_MIN:
            return
        now = time.monotonic()
        left_s = place.deadline_at - now
        outlook = self._outlook(self._pace.least_s)
        if left_s <= 0 or outlook.start_s(self.waiting - 1) <= left_s:
            return
        wait_s = outlook.start_s(outlook.served(before(self._lines.values(), line, place), now))
        if wait_s > left_s:
            raise DeadlineUnreachable(
                f"{self.name} has a place in {wait_s:.2g} s at the soonest, and the deadline is in {left_s:.2g} s; "
                "allow more time, or try again later",
                details=self._situation(line, place),
                retry_after_s=wait_s - left_s,
            )

    def _situation(self, line: Line, place: Place) -> dict[str, Any]:
        """What somebody in line is told of it."""
        position = 1 + len(before(self._lines.values(), line, place))
        return {"position": position, "waiting": self.waiting, "running": self.running}
