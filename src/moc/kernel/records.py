"""The Store port: records changed by compare-and-set together with their events, and seats with terms.

One contract suite (`tests/contract/test_store.py`) runs against every implementation.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec

from moc.kernel.component import Component
from moc.kernel.errors import Conflict, NotFound
from moc.kernel.events import Event

T = TypeVar("T")

ABSENT = 0
"""The revision a record that does not exist is expected to have."""

STORE_FULL = "DiskFull"
"""The `reason` in a StoreUnavailable while nobody can write anything, for there is no room."""


@dataclass(frozen=True, slots=True)
class Record:
    """A stored value. `revision` is the store-wide commit number that last changed it (from 1 up)."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write `value` at `key` if its revision is `expect` (ABSENT = must not exist, None = whatever it is)."""

    key: str
    value: bytes
    expect: int | None


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove `key` if its revision is `expect` (None = whatever it is; removing nothing is then no error)."""

    key: str
    expect: int | None


@dataclass(frozen=True, slots=True)
class Fence:
    """The whole commit is refused with NotLeader unless `seat` is still at `term`."""

    seat: str
    term: int


Op = Put | Delete | Fence


@dataclass(frozen=True, slots=True)
class Change:
    """One key's change as a watcher sees it; `record` is None when it was deleted."""

    key: str
    record: Record | None
    revision: int


@dataclass(frozen=True, slots=True)
class Seat:
    """Leadership over `name`: `holder` has it for `term` until `ttl_s` after its last keep.

    `trusted_until` is on the caller's monotonic clock and lies before the store's own expiry: act under
    the seat only before it. It is 0 for a seat somebody else holds.
    """

    name: str
    holder: str
    term: int
    ttl_s: float
    trusted_until: float = 0.0


class Store(Component, Protocol):
    """The truth. Every method may raise StoreUnavailable; nothing is acknowledged before it is durable."""

    @property
    def well(self) -> bool:
        """Whether it is open and took the last commit it was given."""
        ...

    async def get(self, key: str) -> Record | None:
        """The record at `key`, as of the last commit, or None."""
        ...

    async def list(self, prefix: str, *, after: str | None = None, limit: int | None = None) -> list[Record]:
        """Records whose key starts with `prefix`, in key order, from the first key greater than `after`."""
        ...

    async def commit(self, ops: Sequence[Op], events: Sequence[Event] = ()) -> int:
        """Apply all of `ops` and append `events`, or none of it; the new revision (unchanged if both are empty).

        Raises Conflict (details: key, expected, found) when an expectation fails, NotLeader when a Fence does.
        Durable when it returns. A caller that is cancelled must look: the commit may have happened.
        """
        ...

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Every change under `prefix` from the moment of the call on, in commit order, also by other processes.

        A watcher sees the last state of each key; states in between may be skipped when it is slow.
        """
        ...

    async def events(self, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        """Events with an id greater than `after`, oldest first. Ids only grow, without order ever changing."""
        ...

    async def last_event_id(self) -> int:
        """The id of the newest event, 0 when there is none."""
        ...

    def follow(self, *, after: int) -> AsyncIterator[Event]:
        """Events with an id greater than `after`, then each new one as it is committed, by any process; no gap."""
        ...

    async def take_seat(self, name: str, holder: str, ttl_s: float, *, dead_term: int | None = None) -> Seat | None:
        """Take the seat if it is free, expired, or at `dead_term` (whose holder the caller knows is dead).

        Every taking raises the term, also by the same holder. None when somebody else holds it.
        """
        ...

    async def keep_seat(self, seat: Seat) -> Seat:
        """Extend the seat by its ttl, also once it expired; NotLeader when somebody took it since, or it was left."""
        ...

    async def leave_seat(self, seat: Seat) -> None:
        """Give the seat back; no error when it is already somebody else's. Its term is never used again."""
        ...

    async def seats(self) -> Sequence[Seat]:
        """Every seat that is held now and has not expired, by name."""
        ...


class Table(Generic[T]):
    """Records of one noun under one prefix: `Table(store, "models/", ModelVersion)`; values are JSON.

    Keys given and returned are without the prefix. Reads give (noun, revision); `put` and `delete`
    only make the operation, so that several tables can change in one commit.
    """

    def __init__(self, store: Store, prefix: str, noun: type[T]) -> None:
        self.prefix = prefix
        self._store = store
        self._noun = noun
        self._decoder = msgspec.json.Decoder(noun)
        self._encoder = msgspec.json.Encoder()

    async def find(self, key: str) -> tuple[T, int] | None:
        """The noun at `key` with its revision, or None."""
        record = await self._store.get(self.prefix + key)
        return None if record is None else (self._decoder.decode(record.value), record.revision)

    async def get(self, key: str) -> tuple[T, int]:
        """Like `find`, but raises NotFound."""
        found = await self.find(key)
        if found is None:
            raise NotFound(f"no {self._noun.__name__} at {key!r}")
        return found

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int | None = None
    ) -> list[tuple[str, T, int]]:
        """(key, noun, revision) for the keys that start with `prefix`, in key order."""
        start = None if after is None else self.prefix + after
        records = await self._store.list(self.prefix + prefix, after=start, limit=limit)
        cut = len(self.prefix)
        return [(r.key[cut:], self._decoder.decode(r.value), r.revision) for r in records]

    def decode(self, record: Record) -> T:
        """What a record of this table says, such as one that a watcher was told of."""
        return self._decoder.decode(record.value)

    def put(self, key: str, noun: T, *, expect: int | None) -> Put:
        """The operation that writes `noun` at `key`."""
        return Put(self.prefix + key, self._encoder.encode(noun), expect)

    def delete(self, key: str, *, expect: int | None) -> Delete:
        """The operation that removes `key`."""
        return Delete(self.prefix + key, expect)


def revision_conflict(key: str, expected: int, found: int) -> Conflict:
    """The error every store raises when a compare-and-set loses."""
    what = "exists already" if expected == ABSENT else "was changed or removed meanwhile"
    return Conflict(
        f"{key} {what}; read it again and retry", details={"key": key, "expected": expected, "found": found}
    )
