"""Rollouts over a real manager and real aliases, with workers that are fakes and time that stands still."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from moc.inference.observed import Observed
from moc.kernel.errors import Conflict, InvalidRequest, LoadFailed, NoCapacity, NotFound
from moc.kernel.events import Event
from moc.kernel.records import Delete
from moc.models.alias import VERSIONS_MAX, Alias
from moc.models.aliases import AliasBook
from moc.models.catalogue import Catalogue
from moc.models.footprints import Footprints
from moc.models.manager import ModelManager
from moc.models.model import ModelSpec
from moc.models.rollout import Guards, RolloutState, RolloutTerms
from moc.models.rollouts import ENDED_MAX, Rollouts
from moc.models.slot import Limits
from moc.resilience.breaker import Circuit
from moc.resilience.deadline import NEVER
from moc.store.memory import MemoryStore
from moc.testing.clock import ManualClock
from moc.testing.seat import FakeSeat
from moc.testing.workers import FakeMemory, FakeSources, FakeWorkers

BEFORE = Alias(versions={"m@1": 100.0}, sticky="key")
TERMS = RolloutTerms(
    alias="a", to="m@2", steps=(10.0, 50.0), hold_s=60.0, guards=Guards(min_requests=5, max_error_rate=0.2)
)


class Circuits:
    """Closed but for the workers in `opened`."""

    def __init__(self) -> None:
        self.opened: set[str] = set()

    def circuit(self, worker_id: str) -> Circuit:
        return Circuit.OPEN if worker_id in self.opened else Circuit.CLOSED


class House:
    """Model `m` in versions 1 and 2, the first loaded, and alias `a` that names it."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.clock = ManualClock()
        self.host, self.seat = FakeSeat(store), FakeSeat(store, "cluster")
        self.workers, self.memory, self.sources = FakeWorkers(), FakeMemory(), FakeSources()
        self.catalogue = Catalogue(store=store, seat=self.host, clock=self.clock)
        self.aliases = AliasBook(store=store, seat=self.host, clock=self.clock, catalogue=self.catalogue)
        self.observed = Observed(clock=self.clock)
        self.manager = ModelManager(
            catalogue=self.catalogue,
            workers=self.workers,
            sources=self.sources,
            footprints=Footprints(store=store, clock=self.clock),
            memory=self.memory,
            limits=Limits(),
            on_loaded=lambda reference, seconds: None,
        )
        self.circuits = Circuits()
        self.rollouts = Rollouts(
            store=store,
            seat=self.seat,
            clock=self.clock,
            catalogue=self.catalogue,
            aliases=self.aliases,
            manager=self.manager,
            observations=self.observed,
            circuits=self.circuits,
        )

    async def start(self) -> "House":
        for part in (self.host, self.seat, self.catalogue, self.aliases, self.manager, self.rollouts):
            await part.start()
        return self

    async def furnish(self) -> None:
        for version in (1, 2):
            spec = ModelSpec(runtime="python", source=f"file:{version}.py", ttl_s=0)
            await self.manager.add("m", spec, actor="test")
        await self.manager.ensure_ready("m@1", NEVER)
        await self.manager.unload("m@2", NEVER, actor="test")
        await self.aliases.set("a", BEFORE, actor="test", reason="Requested")

    async def stop(self) -> None:
        await self.rollouts.stop()
        await self.manager.stop()

    async def successor(self) -> "House":
        """Another coordinator on the same store, this one being dead; the worker of version 1 lives."""
        await self.stop()
        for seat in await self.store.seats():
            await self.store.leave_seat(seat)
        house = House(self.store)
        house.clock.set_wall(self.clock.wall())
        house.workers.left = [worker for worker in self.workers.workers() if worker.model == "m@1"]
        return await house.start()

    def serve(self, reference: str, ok: int = 0, failed: int = 0, took_s: float = 0.01) -> None:
        """So many requests."""
        for code, count in (("ok", ok), ("internal", failed)):
            for _ in range(count):
                self.observed.finished(reference, "chat", code, queue_s=0, engine_s=took_s)

    async def until(self, *kinds: str) -> Event:
        """Wait until these events have happened, in this order."""
        left = [*kinds]
        async with asyncio.timeout(10):
            async for event in self.store.follow(after=0):
                if event.kind == left[0]:
                    left.pop(0)
                if not left:
                    return event
        raise AssertionError(kinds)

    @property
    def alias(self) -> Alias:
        return self.aliases.get("a")

    @property
    def state(self) -> RolloutState:
        return self.rollouts.show("a").rollout.state


@pytest.fixture
async def house() -> AsyncIterator[House]:
    store = MemoryStore()
    await store.start()
    house = await House(store).start()
    await house.furnish()
    yield house
    await house.stop()
    await store.stop()


async def test_step_by_step_to_the_end(house: House) -> None:
    begun = await house.rollouts.begin(TERMS, actor="me")
    assert begun.waits_for == "m@2 to be ready"
    assert house.alias is not None
    await house.until("rollout.progressing")
    assert house.alias.versions == {"m@1": 90.0, "m@2": 10.0}
    assert house.manager.is_held("m@1")
    assert house.manager.is_held("m@2")
    house.serve("m@2", ok=5)
    assert house.rollouts.show("a").waits_for == "60 s left of this step"
    house.clock.advance(60)
    await house.until("rollout.progressing", "rollout.progressing")
    assert house.alias.versions == {"m@1": 50.0, "m@2": 50.0}
    house.clock.advance(60)
    assert house.rollouts.show("a").waits_for == "0 of 5 requests seen in this step"
    house.serve("m@2", ok=5)
    await house.until("rollout.promoted")
    assert house.alias == replace(BEFORE, versions={"m@2": 100.0})
    assert not house.manager.is_held("m@1")
    (found,) = house.rollouts.all()
    assert [(mark.state, mark.share_pct, mark.requests) for mark in found.rollout.history] == [
        ("warming", 0.0, 0),
        ("progressing", 10.0, 0),
        ("progressing", 50.0, 5),
        ("promoted", 100.0, 5),
    ]
    assert found.rollout.history[0].actor == "me"


async def test_the_version_is_loaded_before_it_gets_a_request(house: House) -> None:
    house.workers.gate.clear()
    await house.rollouts.begin(TERMS, actor="me")
    await house.until("model.loading", "model.loading")
    assert house.alias == BEFORE
    house.workers.gate.set()
    await house.until("rollout.progressing")
    assert house.manager.find("m@2") is not None


async def test_a_breached_guard_brings_back_what_was(house: House) -> None:
    await house.rollouts.begin(TERMS, actor="me")
    await house.until("rollout.progressing")
    house.serve("m@2", ok=3, failed=2)
    event = await house.until("rollout.rolled_back")
    assert house.alias == BEFORE
    assert event.reason == "ErrorRate"
    assert event.data == {
        "alias": "a", "to": "m@2", "share_pct": 0.0, "message": "2 of 5 requests failed, 0.2 may"
    }  # fmt: skip
    assert not house.manager.is_held("m@2")


async def test_requests_of_an_earlier_step_do_not_count(house: House) -> None:
    house.serve("m@2", failed=100)
    await house.rollouts.begin(TERMS, actor="me")
    await house.until("rollout.progressing")
    house.serve("m@2", ok=5)
    house.clock.advance(60)
    await house.until("rollout.progressing", "rollout.progressing")
    new = house.rollouts.show("a").new
    assert new is not None
    assert (new.count, new.failures) == (0, 0)


async def test_a_version_that_stops_to_work_is_left(house: House) -> None:
    await house.rollouts.begin(TERMS, actor="me")
    await house.until("rollout.progressing")
    house.workers.error = LoadFailed("its file is gone", reason="load_failed")
    await house.manager.unload("m@2", NEVER, actor="test")
    with pytest.raises(LoadFailed):
        await house.manager.ensure_ready("m@2", NEVER)
    event = await house.until("rollout.rolled_back")
    assert (event.reason, event.data["message"]) == ("NotServing", "its file is gone")
    assert house.alias == BEFORE


async def test_a_version_that_requests_are_kept_from_is_left(house: House) -> None:
    await house.rollouts.begin(TERMS, actor="me")
    await house.until("rollout.progressing")
    resident = house.manager.find("m@2")
    assert resident is not None
    house.circuits.opened.add(resident.worker_id)
    event = await house.until("rollout.rolled_back")
    assert event.reason == "NotServing"
    assert house.alias == BEFORE


@pytest.mark.parametrize(
    ("error", "code"), [(LoadFailed("no such tensor", reason="load_failed"), "load_failed"), (None, "no_capacity")]
)
async def test_what_cannot_be_loaded_changes_nothing(house: House, error: LoadFailed | None, code: str) -> None:
    house.workers.error = error
    house.memory.error = NoCapacity("it does not fit", details={"evicted": ()}) if error is None else None
    await house.rollouts.begin(TERMS, actor="me")
    event = await house.until("rollout.failed")
    assert event.reason == code
    assert house.alias == BEFORE
    assert len(await house.aliases.history("a")) == 1
    assert not house.manager.is_held("m@1")


async def test_pause_resume_and_promote(house: House) -> None:
    await house.rollouts.begin(TERMS, actor="me")
    with pytest.raises(Conflict, match="warming and cannot become paused"):
        await house.rollouts.pause("a", actor="me")
    with pytest.raises(Conflict, match="warming, not paused"):
        await house.rollouts.resume("a", actor="me")
    await house.until("rollout.progressing")
    with pytest.raises(Conflict, match="progressing, not paused"):
        await house.rollouts.resume("a", actor="me")
    await house.rollouts.pause("a", actor="me")
    house.clock.advance(600)
    house.serve("m@2", ok=4)
    assert house.rollouts.show("a").waits_for == "it is paused"
    with pytest.raises(Conflict, match="got 4 requests in this step, and a verdict takes 5"):
        await house.rollouts.promote("a", actor="me")
    await house.rollouts.resume("a", actor="me")
    await house.rollouts.promote("a", actor="me", force=True)
    assert house.alias.versions == {"m@2": 100.0}
    with pytest.raises(Conflict):
        await house.rollouts.abort("a", actor="me")


@pytest.mark.parametrize("warm", [True, False])
async def test_abort_brings_back_what_was(house: House, warm: bool) -> None:
    if not warm:
        house.workers.gate.clear()
    begun = await house.rollouts.begin(TERMS, actor="me")
    if warm:
        await house.until("rollout.progressing")
    await house.rollouts.abort(begun.rollout.id, actor="me")
    assert house.alias == BEFORE
    house.workers.gate.set()
    await house.until("model.ready", "model.ready")
    assert house.state is RolloutState.ABORTED
    assert house.alias == BEFORE


async def test_nothing_else_changes_the_alias_meanwhile(house: House) -> None:
    begun = await house.rollouts.begin(TERMS, actor="me")
    await house.until("rollout.progressing")
    with pytest.raises(Conflict, match=begun.rollout.id):
        await house.aliases.set("a", BEFORE, actor="test", reason="Requested")
    with pytest.raises(Conflict, match=begun.rollout.id):
        await house.aliases.rollback("a", actor="test")
    with pytest.raises(Conflict, match=begun.rollout.id):
        await house.aliases.remove("a", actor="test", reason="Requested")
    with pytest.raises(Conflict, match=begun.rollout.id):
        await house.rollouts.begin(TERMS, actor="me")
    await house.rollouts.promote("a", actor="me", force=True)
    assert (await house.aliases.rollback("a", actor="test")).alias == BEFORE
    await house.rollouts.begin(TERMS, actor="me")


async def test_what_makes_no_sense_is_refused(house: House) -> None:
    refusals: list[tuple[RolloutTerms, type[Exception]]] = [
        (replace(TERMS, alias="nobody"), NotFound),
        (replace(TERMS, to="m@9"), NotFound),
        (replace(TERMS, to="m@1"), Conflict),
        (replace(TERMS, steps=()), InvalidRequest),
    ]
    for terms, error in refusals:
        with pytest.raises(error):
            await house.rollouts.begin(terms, actor="me")
    for alias in (Alias(versions={"m": 1.0}), replace(BEFORE, policy="fastest")):
        await house.aliases.set("a", alias, actor="test", reason="Requested")
        with pytest.raises(Conflict):
            await house.rollouts.begin(TERMS, actor="me")
    with pytest.raises(NotFound):
        house.rollouts.show("a")


@pytest.mark.parametrize("state", ["warming", "progressing", "paused"])
async def test_the_next_coordinator_goes_on(house: House, state: str) -> None:
    if state == "warming":
        house.workers.gate.clear()
    await house.rollouts.begin(TERMS, actor="me")
    if state != "warming":
        await house.until("rollout.progressing")
        house.serve("m@2", ok=4)
    if state == "paused":
        await house.rollouts.pause("a", actor="me")
    successor = await house.successor()
    if state == "warming":
        await successor.until("rollout.progressing")
    assert successor.alias.versions == {"m@1": 90.0, "m@2": 10.0}
    if state == "paused":
        await successor.rollouts.resume("a", actor="me")
    new = successor.rollouts.show("a").new
    assert new is not None
    assert new.count == 0
    successor.clock.advance(60)
    successor.serve("m@2", ok=5)
    await successor.until("rollout.progressing", "rollout.progressing")
    await successor.rollouts.abort("a", actor="me")
    assert successor.alias == BEFORE
    await successor.stop()


async def test_an_alias_that_was_changed_while_nobody_looked_is_left_alone(house: House) -> None:
    await house.rollouts.begin(TERMS, actor="me")
    await house.until("rollout.progressing")
    await house.rollouts.stop()
    await house.aliases.set("a", Alias(versions={"m@2": 1.0}), actor="test", reason="Requested")
    successor = await house.successor()
    assert successor.state is RolloutState.ABORTED
    assert successor.rollouts.show("a").rollout.history[-1].reason == "AliasChanged"
    assert successor.alias.versions == {"m@2": 1.0}
    await successor.stop()


async def test_old_ones_are_forgotten(house: House) -> None:
    ids = []
    for _ in range(ENDED_MAX + 1):
        ids.append((await house.rollouts.begin(TERMS, actor="me")).rollout.id)
        await house.rollouts.abort("a", actor="me")
    gone, *there = sorted(ids)
    assert [each.rollout.id for each in house.rollouts.all()] == there
    with pytest.raises(NotFound):
        house.rollouts.show(gone)
    assert len(await house.store.list("rollouts/")) == ENDED_MAX


async def test_a_version_that_is_to_be_moved_to_cannot_go(house: House) -> None:
    house.workers.gate.clear()
    await house.rollouts.begin(TERMS, actor="me")
    with pytest.raises(Conflict, match="moves requests to m@2"):
        await house.manager.remove("m@2", actor="me")
    await house.rollouts.abort("a", actor="me")
    house.workers.gate.set()
    await house.manager.remove("m@2", actor="me")


async def test_a_version_that_is_gone_at_the_start_fails_its_rollout(house: House) -> None:
    house.workers.gate.clear()
    await house.rollouts.begin(TERMS, actor="me")
    await house.stop()
    await house.store.commit([Delete(f"{table}/m/000000002", None) for table in ("models", "model_status")])
    successor = await house.successor()
    event = await successor.until("rollout.failed")
    assert (event.reason, successor.alias) == ("not_found", BEFORE)
    await successor.stop()


async def test_an_alias_that_would_name_too_much_is_not_moved(house: House) -> None:
    for number in range(VERSIONS_MAX - 1):
        await house.manager.add("n", ModelSpec(runtime="python", source=f"file:n{number}.py"), actor="me")
    others = {f"n@{number + 1}": 1.0 for number in range(VERSIONS_MAX - 1)}
    await house.aliases.set("a", Alias(versions={"m@1": 1.0, **others}), actor="me", reason="")
    with pytest.raises(InvalidRequest, match="name 1 to 32"):
        await house.rollouts.begin(TERMS, actor="me")
    assert house.rollouts.all() == []
    await house.aliases.set("a", BEFORE, actor="me", reason="")
