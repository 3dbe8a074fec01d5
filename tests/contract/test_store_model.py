"""Every store against a plain dictionary, driven by whatever hypothesis thinks of."""

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from moc.kernel.errors import Conflict, NotLeader
from moc.kernel.events import Event
from moc.kernel.records import ABSENT, Delete, Fence, Op, Put, Record, Seat, Store
from moc.store.memory import MemoryStore
from moc.store.sqlite import SqliteStore
from moc.testing.clock import ManualClock

R = TypeVar("R")
Opener = Callable[[Path, ManualClock], Store]

STORES: dict[str, Opener] = {
    "memory": lambda folder, clock: MemoryStore(clock),
    "sqlite": lambda folder, clock: SqliteStore(folder / "moc.db", clock),
}
TTL_S = 10.0
PREFIXES = ("", "a", "a/", "a/1", "b/", "é")

keys = st.sampled_from(["a", "a/1", "a/10", "a/2", "b/%", "b/_", "é", "\U0010ffff"])
holders = st.sampled_from(["one", "two"])
seat_names = st.sampled_from(["s", "t"])
expectations = st.sampled_from(["right", "right", "right", "any", "absent", "stale"])
changes = st.lists(st.tuples(st.sampled_from(["put", "delete"]), keys, st.binary(max_size=3), expectations), max_size=4)


class StoreMachine(RuleBasedStateMachine):
    """What the store must answer is worked out on dictionaries beside it."""

    kind: ClassVar[str]
    seats = Bundle("seats")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.clock = ManualClock()
        self.store = STORES[self.kind](Path(self.folder.name), self.clock)
        self.records: dict[str, tuple[bytes, int]] = {}
        self.revision = 0
        self.told: list[str] = []
        self.terms: dict[str, int] = {}
        self.held: dict[str, tuple[Seat, float]] = {}
        self.run(self.store.start())
        self.seen: dict[str, tuple[bytes, int]] = {}
        self.watcher = self.run(self.watching())

    async def watching(self) -> Any:
        return self.store.watch("")

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        return self.runner.run(work)

    def teardown(self) -> None:
        try:
            end = self.run(self.store.commit([Put("zz/end", b"", ABSENT)]))
            self.run(self.watch_until(end))
            assert self.seen == {**self.records, "zz/end": (b"", end)}
        finally:
            self.run(self.store.stop())
            self.runner.close()
            self.folder.cleanup()

    async def watch_until(self, revision: int) -> None:
        newest = 0
        async with asyncio.timeout(10):
            while newest < revision:
                change = await anext(self.watcher)
                assert change.revision >= newest
                newest = change.revision
                if change.record is None:
                    assert self.seen.pop(change.key, None) is not None or change.key not in self.records
                else:
                    self.seen[change.key] = (change.record.value, change.record.revision)

    def expectation(self, key: str, kind: str) -> int | None:
        found = self.records[key][1] if key in self.records else ABSENT
        return {"right": found, "any": None, "absent": ABSENT, "stale": found + 1}[kind]

    @initialize()
    def begins_empty(self) -> None:
        assert self.run(self.store.list("")) == []

    @rule(wanted=changes, events=st.integers(0, 2))
    def commit(self, wanted: list[tuple[str, str, bytes, str]], events: int) -> None:
        ops = self.operations(wanted)
        self.commit_and_compare(ops, events, refused_by=Conflict if self.conflicts(wanted) else None)

    @rule(wanted=changes, events=st.integers(0, 1), seat=seats)
    def commit_fenced(self, wanted: list[tuple[str, str, bytes, str]], events: int, seat: Seat) -> None:
        over = self.terms[seat.name] != seat.term or seat.name not in self.held
        ops: list[Op] = [Fence(seat.name, seat.term), *self.operations(wanted)]
        refusal = NotLeader if over else Conflict if self.conflicts(wanted) else None
        self.commit_and_compare(ops, events, refused_by=refusal)

    def operations(self, wanted: list[tuple[str, str, bytes, str]]) -> list[Op]:
        return [
            Put(key, value, self.expectation(key, kind)) if verb == "put" else Delete(key, self.expectation(key, kind))
            for verb, key, value, kind in wanted
        ]

    def conflicts(self, wanted: list[tuple[str, str, bytes, str]]) -> bool:
        return any(kind == "stale" or (kind == "absent" and key in self.records) for _, key, _, kind in wanted)

    def commit_and_compare(self, ops: list[Op], events: int, *, refused_by: type[Exception] | None) -> None:
        subjects = [str(len(self.told) + n) for n in range(events)]
        work = self.store.commit(ops, [Event(kind="k", subject=subject) for subject in subjects])
        if refused_by is not None:
            with pytest.raises(refused_by):
                self.run(work)
            return
        revision = self.run(work)
        if not ops and not events:
            assert revision == self.revision
            return
        assert revision > self.revision
        self.revision = revision
        self.told += subjects
        for op in ops:
            if isinstance(op, Put):
                self.records[op.key] = (op.value, revision)
            elif isinstance(op, Delete):
                self.records.pop(op.key, None)

    @rule(prefix=st.sampled_from(PREFIXES), after=st.none() | keys, limit=st.none() | st.integers(0, 4))
    def list_a_page(self, prefix: str, after: str | None, limit: int | None) -> None:
        expected = [
            Record(key, *self.records[key])
            for key in sorted(self.records)
            if key.startswith(prefix) and (after is None or key > after)
        ][:limit]
        assert self.run(self.store.list(prefix, after=after, limit=limit)) == expected

    @rule(target=seats, name=seat_names, holder=holders, knows_it_dead=st.booleans())
    def take(self, name: str, holder: str, knows_it_dead: bool) -> Any:
        dead_term = self.terms.get(name) if knows_it_dead else None
        current = self.live(name)
        seat = self.run(self.store.take_seat(name, holder, TTL_S, dead_term=dead_term))
        if current is not None and current.holder != holder and not knows_it_dead:
            assert seat is None
            return multiple()
        assert seat is not None
        assert seat.term == self.terms.get(name, 0) + 1
        self.terms[name] = seat.term
        self.held[name] = (seat, self.clock.monotonic() + TTL_S)
        return seat

    @rule(seat=seats)
    def keep(self, seat: Seat) -> None:
        current, _ = self.held.get(seat.name, (None, 0.0))
        if current is None or current.term != seat.term:
            with pytest.raises(NotLeader):
                self.run(self.store.keep_seat(seat))
            return
        kept = self.run(self.store.keep_seat(seat))
        assert self.clock.monotonic() < kept.trusted_until < self.clock.monotonic() + TTL_S
        self.held[seat.name] = (seat, self.clock.monotonic() + TTL_S)

    @rule(seat=consumes(seats))
    def leave(self, seat: Seat) -> None:
        self.run(self.store.leave_seat(seat))
        if self.terms[seat.name] == seat.term:
            self.held.pop(seat.name, None)

    @rule(seconds=st.sampled_from([0.5, 4.0, 9.9, 10.1]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def live(self, name: str) -> Seat | None:
        seat, until = self.held.get(name, (None, 0.0))
        return seat if until > self.clock.monotonic() else None

    @rule()
    def restart(self) -> None:
        """Everything but who watches is as it was."""
        self.run(self.store.stop())
        self.run(self.store.start())
        self.seen = dict(self.records)
        self.watcher = self.run(self.watching())

    @invariant()
    def holds_what_it_should(self) -> None:
        found = self.run(self.store.list(""))
        assert {record.key: (record.value, record.revision) for record in found} == self.records
        events = self.run(self.store.events())
        assert [event.subject for event in events] == self.told
        assert [event.id for event in events] == sorted({event.id for event in events})
        live = [(name, seat.term) for name in sorted(self.held) if (seat := self.live(name))]
        assert [(seat.name, seat.term) for seat in self.run(self.store.seats())] == live


class MemoryMachine(StoreMachine):
    kind = "memory"


class SqliteMachine(StoreMachine):
    kind = "sqlite"


@pytest.mark.parametrize("machine", [MemoryMachine, pytest.param(SqliteMachine, marks=pytest.mark.slow)])
def test_a_store_does_what_a_dictionary_would(machine: type[StoreMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
