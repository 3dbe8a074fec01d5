"""The store in memory: for tests and for trying things out. Nothing outlives the process."""

import asyncio
import weakref
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import AsyncIterator, Sequence
from itertools import islice, takewhile

from moc.kernel.clock import Clock, SystemClock
from moc.kernel.errors import StoreUnavailable
from moc.kernel.events import Event
from moc.kernel.records import (
    ABSENT,
    Change,
    Delete,
    Fence,
    Op,
    Put,
    Record,
    Seat,
    revision_conflict,
)
from moc.store import tenure
from moc.store.codec import check_key, check_ops, decode_event, encode_event
from moc.store.tenure import Tenure

_BOOT = ""


class _Watcher:
    """One watch: the last change of each key that was not handed out yet, oldest first."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.pending: dict[str, Change] = {}
        self.rung = asyncio.Event()

    def tell(self, change: Change) -> None:
        if change.key.startswith(self.prefix):
            self.pending.pop(change.key, None)
            self.pending[change.key] = change
            self.rung.set()


class MemoryStore:
    """A Store for one event loop of one process.

    What was stored is still there when it is stopped and started again. The newest `events_max` events
    are kept.
    """

    def __init__(self, clock: Clock | None = None, *, events_max: int = 100_000) -> None:
        self._clock = clock or SystemClock()
        self._open = True
        self._revision = 0
        self._records: dict[str, Record] = {}
        self._keys: list[str] = []
        self._events: deque[bytes] = deque(maxlen=events_max)
        self._last_event_id = 0
        self._tenures: dict[str, Tenure] = {}
        self._watchers: weakref.WeakSet[_Watcher] = weakref.WeakSet()
        self._rung = asyncio.Event()

    async def start(self) -> None:
        """Open it; a new store is open already."""
        self._open = True

    async def drain(self) -> None:
        """Nothing is ever under way."""

    async def stop(self) -> None:
        """Refuse everything from now on; watchers and followers end with StoreUnavailable."""
        self._open = False
        self._ring()
        for watcher in self._watchers:
            watcher.rung.set()

    @property
    def well(self) -> bool:
        return self._open

    async def get(self, key: str) -> Record | None:
        self._check_open()
        return self._records.get(check_key(key))

    async def list(self, prefix: str, *, after: str | None = None, limit: int | None = None) -> list[Record]:
        self._check_open()
        start = bisect_left(self._keys, check_key(prefix))
        if after is not None:
            start = max(start, bisect_right(self._keys, check_key(after)))
        keys = islice(self._keys, start, None if limit is None else start + limit)
        return [self._records[key] for key in takewhile(lambda key: key.startswith(prefix), keys)]

    async def commit(self, ops: Sequence[Op], events: Sequence[Event] = ()) -> int:
        self._check_open()
        ops = check_ops(ops)
        at = self._clock.wall()
        bodies = [encode_event(event, at) for event in events]
        for op in ops:
            self._check(op)
        if ops or bodies:
            self._revision += 1
        for op in ops:
            self._apply(op)
        if bodies:
            self._events.extend(bodies)
            self._last_event_id += len(bodies)
            self._ring()
        return self._revision

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        self._check_open()
        watcher = _Watcher(check_key(prefix))
        self._watchers.add(watcher)
        return self._watch(watcher)

    async def events(self, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        self._check_open()
        first = self._last_event_id - len(self._events) + 1
        skipped = max(0, after + 1 - first)
        bodies = islice(self._events, skipped, skipped + limit)
        return [decode_event(first + skipped + n, body) for n, body in enumerate(bodies)]

    async def last_event_id(self) -> int:
        self._check_open()
        return self._last_event_id

    def follow(self, *, after: int) -> AsyncIterator[Event]:
        self._check_open()
        return self._follow(after)

    async def take_seat(self, name: str, holder: str, ttl_s: float, *, dead_term: int | None = None) -> Seat | None:
        self._check_open()
        now = self._clock.monotonic()
        found = self._tenures.get(name)
        taken = tenure.taken(found, holder, ttl_s, now=now, boot=_BOOT, dead_term=dead_term)
        if taken is None:
            return None
        self._tenures[name] = taken
        return tenure.trusted(name, taken, now)

    async def keep_seat(self, seat: Seat) -> Seat:
        self._check_open()
        now = self._clock.monotonic()
        kept = tenure.kept(self._tenures.get(seat.name), seat, now=now)
        self._tenures[seat.name] = kept
        return tenure.trusted(seat.name, kept, now)

    async def leave_seat(self, seat: Seat) -> None:
        self._check_open()
        left = tenure.left(self._tenures.get(seat.name), seat)
        if left is not None:
            self._tenures[seat.name] = left

    async def seats(self) -> Sequence[Seat]:
        self._check_open()
        now = self._clock.monotonic()
        return [tenure.observed(name, t) for name, t in sorted(self._tenures.items()) if t.held(now, _BOOT)]

    def _check_open(self) -> None:
        if not self._open:
            raise StoreUnavailable("the store is closed; start it again")

    def _check(self, op: Op) -> None:
        if isinstance(op, Fence):
            tenure.check_fence(self._tenures.get(op.seat), op)
        elif op.expect is not None:
            record = self._records.get(op.key)
            found = ABSENT if record is None else record.revision
            if found != op.expect:
                raise revision_conflict(op.key, op.expect, found)

    def _apply(self, op: Op) -> None:
        if isinstance(op, Put):
            if op.key not in self._records:
                insort(self._keys, op.key)
            record = Record(op.key, op.value, self._revision)
            self._records[op.key] = record
            self._tell(Change(op.key, record, self._revision))
        elif isinstance(op, Delete) and self._records.pop(op.key, None) is not None:
            del self._keys[bisect_left(self._keys, op.key)]
            self._tell(Change(op.key, None, self._revision))

    def _tell(self, change: Change) -> None:
        for watcher in self._watchers:
            watcher.tell(change)

    def _ring(self) -> None:
        self._rung.set()
        self._rung = asyncio.Event()

    async def _watch(self, watcher: _Watcher) -> AsyncIterator[Change]:
        while True:
            watcher.rung.clear()
            self._check_open()
            while watcher.pending:
                yield watcher.pending.pop(next(iter(watcher.pending)))
            await watcher.rung.wait()

    async def _follow(self, after: int) -> AsyncIterator[Event]:
        while True:
            rung = self._rung
            found = await self.events(after=after)
            for event in found:
                yield event
                after = event.id
            if not found:
                await rung.wait()
