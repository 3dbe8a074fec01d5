"""The model manager against fakes: single flight, draining, crashes, failing loads, adoption."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from moc.kernel.clock import SystemClock
from moc.kernel.errors import (
    CircuitOpen,
    Conflict,
    DeadlineExceeded,
    LoadFailed,
    NoCapacity,
    NotFound,
    QueueFull,
    StoreUnavailable,
)
from moc.models.catalogue import Catalogue
from moc.models.model import MOVES, ModelSpec, State, digest_of, parse_reference
from moc.models.ports import Launch, Worker
from moc.models.slot import Limits
from moc.resilience.breaker import BreakerLimits
from moc.resilience.deadline import NEVER, Deadline
from moc.store.memory import MemoryStore
from moc.testing.workers import FakeWorkers
from tests.full_store import FullStore
from tests.house import NEWER, SPEC, House, turn

EAGER = Limits(breaker=BreakerLimits(failure_threshold=1, reset_timeout_s=0))


@pytest.fixture
async def house() -> AsyncIterator[House]:
    store = MemoryStore()
    await store.start()
    house = await House(store).start()
    yield house
    await house.manager.stop()
    await store.stop()


async def test_fifty_callers_start_one_worker(house: House) -> None:
    await house.add()
    residents = await asyncio.gather(*(house.manager.ensure_ready("a", NEVER) for _ in range(50)))
    assert house.workers.starts == 1
    assert [reference for reference, _ in house.loads] == ["a@1"]
    assert len({resident.worker_id for resident in residents}) == 1
    assert house.state() is State.READY
    assert house.manager.find("a") is house.manager.find("a@1") is residents[0]


async def test_a_caller_that_gives_up_does_not_stop_the_load(house: House) -> None:
    await house.add()
    house.workers.gate.clear()
    with pytest.raises(DeadlineExceeded):
        await house.manager.ensure_ready("a", Deadline.after(0.01))
    house.workers.gate.set()
    await house.until("model.ready")
    assert house.workers.starts == 1


async def test_beside_the_one_it_is_loaded_for_only_a_queue_waits(house: House) -> None:
    await house.add(spec=ModelSpec(runtime="python", source="file:a.py", max_queue=1))
    house.workers.gate.clear()
    waiting = [asyncio.create_task(house.manager.ensure_ready("a", NEVER)) for _ in range(2)]
    await turn(lambda: house.workers.starts == 1)
    with pytest.raises(QueueFull):
        await house.manager.ensure_ready("a", NEVER)
    house.workers.gate.set()
    await asyncio.gather(*waiting)


async def test_a_failed_load_says_why_and_is_not_hammered(house: House) -> None:
    await house.add()
    house.workers.error = LoadFailed("no such tensor", reason="load_failed")
    for _ in range(3):
        with pytest.raises(LoadFailed, match="no such tensor"):
            await house.manager.ensure_ready("a", NEVER)
    for _ in range(5):
        with pytest.raises(CircuitOpen, match="no such tensor") as refusal:
            await house.manager.ensure_ready("a", NEVER)
        assert refusal.value.details["reason"] == "load_failed"
        assert 0 < (refusal.value.retry_after_s or 0) <= 60
    assert house.workers.starts == 3
    assert house.state() is State.FAILED
    assert house.catalogue.entry("a").status.message == "no such tensor"
    house.workers.error = None
    await house.manager.load("a", NEVER, actor="test")
    assert house.state() is State.READY


async def test_after_a_while_one_request_tries_what_kept_failing() -> None:
    store = MemoryStore()
    await store.start()
    house = await House(store, EAGER).start()
    await house.add()
    house.workers.error = LoadFailed("no such tensor", reason="load_failed")
    for _ in range(2):
        with pytest.raises(LoadFailed):
            await house.manager.ensure_ready("a", NEVER)
    house.workers.gate.clear()
    trying = [asyncio.create_task(house.manager.ensure_ready("a", NEVER)) for _ in range(3)]
    await turn(lambda: house.workers.starts == 3)
    house.workers.error = None
    house.workers.gate.set()
    assert len({resident.worker_id for resident in await asyncio.gather(*trying)}) == 1
    await house.manager.unload("a", NEVER, actor="test")
    await house.manager.ensure_ready("a", NEVER)
    await house.manager.stop()
    await store.stop()


async def test_a_load_that_was_stopped_or_had_no_room_tells_nothing_of_the_model() -> None:
    store = MemoryStore()
    await store.start()
    house = await House(store, EAGER).start()
    await house.add()
    house.workers.error = LoadFailed("no such tensor", reason="load_failed")
    with pytest.raises(LoadFailed):
        await house.manager.ensure_ready("a", NEVER)
    house.memory.error = NoCapacity("it does not fit", details={"evicted": ()})
    with pytest.raises(NoCapacity):
        await house.manager.ensure_ready("a", NEVER)
    house.memory.error = house.workers.error = None
    house.workers.gate.clear()
    loading = asyncio.create_task(house.manager.ensure_ready("a", NEVER))
    await turn(lambda: house.workers.starts == 2)
    await house.manager.unload("a", NEVER, actor="test")
    with pytest.raises(Conflict):
        await loading
    house.workers.gate.set()
    await house.manager.ensure_ready("a", NEVER)
    await house.manager.stop()
    await store.stop()


async def test_unload_waits_for_the_requests_that_run(house: House) -> None:
    await house.add()
    resident = await house.manager.ensure_ready("a", NEVER)
    resident.enter()
    unloading = asyncio.create_task(house.manager.unload("a", NEVER, actor="test"))
    await house.until("model.draining")
    assert house.manager.find("a") is None
    assert house.workers.stopped == []
    resident.leave()
    await unloading
    assert house.workers.stopped == [(resident.worker_id, "Requested")]
    assert house.state() is State.REGISTERED


async def test_what_is_being_unloaded_is_though_nobody_waits_for_that_any_more(house: House) -> None:
    await house.add()
    resident = await house.manager.ensure_ready("a", NEVER)
    resident.enter()
    evicting = asyncio.create_task(house.manager.evict("a", reason="Evicted", message="for another"))
    await house.until("model.draining")
    evicting.cancel()
    await asyncio.gather(evicting, return_exceptions=True)
    resident.leave()
    await house.until("model.unloading")
    again = await house.manager.ensure_ready("a", NEVER)
    assert house.workers.stopped == [(resident.worker_id, "Evicted")]
    assert again.worker_id != resident.worker_id


async def test_a_request_during_unload_loads_it_again(house: House) -> None:
    await house.add()
    first = await house.manager.ensure_ready("a", NEVER)
    first.enter()
    unloading = asyncio.create_task(house.manager.unload("a", NEVER, actor="test"))
    await house.until("model.draining")
    again = asyncio.create_task(house.manager.ensure_ready("a", NEVER))
    first.leave()
    second = await again
    await unloading
    assert second.worker_id != first.worker_id
    assert house.state() is State.READY


async def test_unload_stops_a_load(house: House) -> None:
    await house.add()
    house.workers.gate.clear()
    loading = asyncio.create_task(house.manager.ensure_ready("a", NEVER))
    await turn(lambda: house.workers.starts == 1)
    await house.manager.unload("a", NEVER, actor="test")
    with pytest.raises(Conflict):
        await loading
    assert house.state() is State.REGISTERED


@pytest.fixture
async def full() -> FullStore:
    return FullStore()


@pytest.fixture
async def cramped(full: FullStore) -> AsyncIterator[House]:
    """A house whose store fails at times, with a model."""
    house = await House(full).start()
    await house.add()
    yield house
    await house.manager.stop()


async def test_a_load_that_cannot_be_recorded_leaves_no_worker(cramped: House, full: FullStore) -> None:
    full.slow = "model.ready"
    loading = asyncio.create_task(cramped.manager.ensure_ready("a", NEVER))
    await full.reached.wait()
    full.full = True
    full.gate.set()
    with pytest.raises(StoreUnavailable):
        await loading
    assert cramped.workers.workers() == []
    assert cramped.memory.held == {}
    full.full = False
    await cramped.until("model.unloaded")
    assert cramped.state() is State.REGISTERED
    await cramped.manager.ensure_ready("a", NEVER)
    assert len(cramped.workers.workers()) == 1


async def test_a_load_that_is_stopped_at_the_last_moment_leaves_no_worker(cramped: House, full: FullStore) -> None:
    full.slow = "model.ready"
    loading = asyncio.create_task(cramped.manager.ensure_ready("a", NEVER))
    await full.reached.wait()
    unloading = asyncio.create_task(cramped.manager.unload("a", NEVER, actor="test"))
    await asyncio.sleep(0)
    full.gate.set()
    await unloading
    with pytest.raises(Conflict):
        await loading
    assert cramped.workers.workers() == []
    assert cramped.memory.held == {}
    assert cramped.state() is State.REGISTERED


@pytest.mark.parametrize("since", ["the beginning", "it is drained"])
async def test_what_cannot_be_recorded_is_unloaded_all_the_same(cramped: House, full: FullStore, since: str) -> None:
    resident = await cramped.manager.ensure_ready("a", NEVER)
    resident.enter()
    full.full = since == "the beginning"
    unloading = asyncio.create_task(cramped.manager.unload("a", NEVER, actor="test"))
    if since == "it is drained":
        await cramped.until("model.draining")
        full.full = True
    await turn(lambda: cramped.manager.find("a") is None)
    assert cramped.workers.stopped == []
    resident.leave()
    with pytest.raises(StoreUnavailable):
        await unloading
    assert cramped.workers.stopped == [(resident.worker_id, "Requested")]
    assert cramped.memory.held == {}
    full.full = False
    if since == "the beginning":
        await cramped.until("model.unloaded")
        assert cramped.state() is State.REGISTERED
    await cramped.manager.ensure_ready("a", NEVER)
    assert cramped.state() is State.READY


async def test_an_idle_model_is_unloaded_and_a_pinned_one_is_not(house: House) -> None:
    await house.add("idle", ModelSpec(runtime="python", source="file:a.py", ttl_s=0.01))
    await house.add("pinned", ModelSpec(runtime="python", source="file:a.py", ttl_s=0.01, pin=True))
    for name in ("idle", "pinned"):
        await house.manager.ensure_ready(name, NEVER)
    await house.until("model.unloading")
    assert house.manager.find("pinned") is not None
    assert house.catalogue.entry("idle").status.reason == "IdleTimeout"


async def test_a_crashed_worker_comes_back_until_it_crashes_too_often(house: House) -> None:
    await house.add()
    await house.manager.ensure_ready("a", NEVER)
    for crashes in range(1, 4):
        resident = house.manager.find("a")
        assert resident is not None
        house.workers.crash(resident.worker_id)
        assert house.manager.find("a") is None
        if crashes < 3:
            await turn(lambda: house.manager.find("a") is not None)
    await turn(lambda: house.state() is State.FAILED)
    assert house.workers.starts == 3
    with pytest.raises(CircuitOpen, match="killed by signal 9") as failure:
        await house.manager.ensure_ready("a", NEVER)
    assert failure.value.details["reason"] == "runtime_unhealthy"


async def test_a_worker_that_dies_before_it_is_announced_is_replaced(house: House) -> None:
    await house.add()

    class Dying(FakeWorkers):
        async def start_worker(self, launch: Launch, deadline: Deadline) -> Worker:
            worker = await super().start_worker(launch, deadline)
            if self.starts == 1:
                self.crash(worker.id)
            return worker

    await house.manager.stop()
    await house.store.leave_seat((await house.store.seats())[0])
    successor = House(house.store, workers=Dying())
    await successor.start()
    await successor.manager.ensure_ready("a", NEVER)
    await turn(lambda: successor.workers.starts == 2 and successor.manager.find("a") is not None)
    await successor.manager.stop()


async def test_the_next_coordinator_adopts_what_runs_and_reloads_what_does_not(house: House) -> None:
    await house.add("kept")
    await house.add("lost")
    kept = await house.manager.ensure_ready("kept", NEVER)
    await house.manager.ensure_ready("lost", NEVER)
    workers = {worker.model: worker for worker in house.workers.workers()}
    await house.manager.stop()

    await house.store.leave_seat((await house.store.seats())[0])
    successor = House(house.store)
    successor.workers.left = [workers["kept@1"]]
    await successor.start()
    found = successor.manager.find("kept")
    assert found is not None
    assert found.worker_id == kept.worker_id
    await turn(lambda: successor.manager.find("lost") is not None)
    assert successor.workers.starts == 1
    await successor.manager.stop()


async def test_a_worker_of_an_unknown_model_is_not_adopted(house: House) -> None:
    await house.add()
    await house.manager.ensure_ready("a", NEVER)
    stranger = house.workers.workers()[0]
    await house.manager.remove("a", actor="test")
    await house.store.leave_seat((await house.store.seats())[0])
    successor = House(house.store)
    successor.workers.left = [stranger]
    await successor.start()
    assert successor.workers.stopped == [(stranger.id, "Unknown")]
    await successor.manager.stop()


async def test_memory_is_charged_while_it_is_loaded_and_no_longer(house: House) -> None:
    await house.add()
    await house.manager.ensure_ready("a", NEVER)
    assert list(house.memory.held) == ["a@1"]
    assert house.workers.workers()[0].bytes == house.memory.held["a@1"]
    await house.manager.unload("a", NEVER, actor="test")
    assert house.memory.held == {}
    house.workers.error = LoadFailed("no such tensor", reason="load_failed")
    with pytest.raises(LoadFailed):
        await house.manager.load("a", NEVER, actor="test")
    assert house.memory.held == {}


async def test_waiting_for_memory_is_not_loading(house: House) -> None:
    await house.add()
    house.memory.gate.clear()
    loading = asyncio.create_task(house.manager.ensure_ready("a", NEVER))
    await house.until("model.loading")
    await asyncio.sleep(0.1)  # time is what this is about
    house.memory.gate.set()
    await loading
    assert house.catalogue.entry("a").status.load_s < 0.1


async def test_how_long_a_load_takes_is_known_from_the_last(house: House) -> None:
    await house.add()
    assert house.manager.load_left_s("a") == 0
    house.workers.gate.clear()
    loading = asyncio.create_task(house.manager.ensure_ready("a", NEVER))
    await house.until("model.loading")
    await asyncio.sleep(0.1)  # time is what this is about
    house.workers.gate.set()
    await loading
    await house.manager.unload("a", NEVER, actor="test")
    assert 0.04 < house.manager.load_left_s("a") <= house.catalogue.entry("a").status.load_s
    house.workers.error = LoadFailed("no such tensor", reason="load_failed")
    with pytest.raises(LoadFailed):
        await house.manager.load("a", NEVER, actor="test")
    assert house.manager.load_left_s("a") == 0


async def test_no_room_is_said_and_tried_again_at_the_next_request(house: House) -> None:
    await house.add()
    house.memory.error = NoCapacity("it does not fit", details={"evicted": ()})
    with pytest.raises(NoCapacity):
        await house.manager.ensure_ready("a", NEVER)
    assert house.catalogue.entry("a").status.reason == "out_of_memory"
    house.memory.error = None
    await house.manager.ensure_ready("a", NEVER)


async def test_who_made_room_for_a_load_that_failed_comes_back() -> None:
    class Picky(FakeWorkers):
        async def start_worker(self, launch: Launch, deadline: Deadline) -> Worker:
            self.error = LoadFailed("no such tensor", reason="load_failed") if launch.model == "new@1" else None
            return await super().start_worker(launch, deadline)

    store = MemoryStore()
    await store.start()
    house = await House(store, workers=Picky()).start()
    await house.add("old")
    await house.add("new", NEWER)
    await house.manager.ensure_ready("old", NEVER)
    await house.manager.evict("old@1", reason="Evicted", message="for new@1")
    house.memory.evicting = ("old@1",)
    with pytest.raises(LoadFailed):
        await house.manager.ensure_ready("new", NEVER)
    await turn(lambda: house.manager.find("old") is not None)
    assert house.catalogue.entry("old").status.reason == "Restored"
    await house.manager.stop()
    await store.stop()


async def test_versions_are_immutable_and_their_numbers_never_come_back(house: House) -> None:
    await house.add()
    await house.add()
    assert [entry.version.version for entry in house.catalogue.versions("a")] == [1]
    other = ModelSpec(runtime="python", source="file:b.py")
    await house.add(spec=other)
    assert house.catalogue.entry("a").version.version == 2
    await house.manager.remove("a@2", actor="test")
    assert house.catalogue.entry("a").version.version == 1
    await house.add(spec=other)
    assert house.catalogue.entry("a").version.version == 3
    with pytest.raises(NotFound):
        house.catalogue.entry("a@2")


async def test_removing_discards_files_nothing_else_uses(house: House) -> None:
    await house.add("a")
    await house.add("b")
    await house.manager.pull("a", NEVER)
    await house.manager.pull("b", NEVER)
    await house.manager.remove("a", actor="test")
    assert house.sources.discarded == []
    await house.manager.remove("b", actor="test")
    assert house.sources.discarded == ["file:a.py"]


async def test_a_version_whose_files_changed_is_refused(house: House) -> None:
    await house.add()
    await house.manager.pull("a", NEVER)
    entry = house.catalogue.entry("a")
    assert entry.version.artifact is not None
    assert entry.version.digest == digest_of(SPEC, entry.version.artifact)
    changed = type(entry.version.artifact)(path="x", sha256="other", size_bytes=1, modified_at=0)
    with pytest.raises(Conflict, match="new version"):
        await house.catalogue.pulled(entry, changed)


async def test_a_file_that_changed_makes_a_new_version_when_it_is_added_again(house: House) -> None:
    await house.add()
    await house.manager.pull("a", NEVER)
    house.sources.changed.add("file:a.py")
    with pytest.raises(LoadFailed, match="changed"):
        await house.manager.load("a", NEVER, actor="test")
    await house.add()
    assert house.catalogue.entry("a").version.version == 2


async def test_files_of_ours_that_are_gone_are_fetched_again(house: House) -> None:
    await house.add(spec=ModelSpec(runtime="python", source="pypi:a==1#a.py"))
    await house.manager.pull("a", NEVER)
    house.sources.changed.add("pypi:a==1#a.py")
    await house.manager.load("a", NEVER, actor="test")
    assert house.sources.fetched == ["pypi:a==1#a.py"] * 2


async def test_what_is_stored_is_what_is_read(house: House) -> None:
    await house.add()
    await house.manager.ensure_ready("a", NEVER)
    again = Catalogue(store=house.store, seat=house.seat, clock=SystemClock())
    await again.start()
    assert again.entry("a") == house.catalogue.entry("a")


async def test_impossible_moves_are_refused(house: House) -> None:
    await house.add()
    with pytest.raises(Conflict):
        await house.catalogue.move(house.catalogue.entry("a"), State.DRAINING, reason="x")


def test_every_state_has_its_moves() -> None:
    assert set(MOVES) == set(State)


@pytest.mark.parametrize(("text", "parts"), [("a", ("a", None)), ("a@3", ("a", 3)), ("A.b_c-d@12", ("A.b_c-d", 12))])
def test_references(text: str, parts: tuple[str, int | None]) -> None:
    assert parse_reference(text) == parts


async def test_what_it_took_is_known_for_the_next_time(house: House) -> None:
    await house.add()
    await house.manager.ensure_ready("a", NEVER)
    await house.manager.unload("a", NEVER, actor="test")
    (record,) = await house.store.list("footprints/")
    assert b'"peak_bytes":1048576,"used":false' in record.value
