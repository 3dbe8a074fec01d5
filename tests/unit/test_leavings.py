"""What is cancelled, refused by the store or asked for while it goes leaves nothing behind: memory is as the store."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from moc.kernel.clock import SystemClock
from moc.kernel.errors import LoadFailed, NotFound, StoreUnavailable, Unavailable
from moc.kernel.events import Event
from moc.kernel.records import Op
from moc.models.alias import Alias
from moc.models.aliases import AliasBook
from moc.models.model import ModelSpec, State
from moc.models.slot import Limits
from moc.resilience.breaker import BreakerLimits
from moc.resilience.deadline import NEVER
from moc.store.memory import MemoryStore
from moc.testing.workers import FakeWorkers
from tests.house import SPEC, House, turn

EAGER = Limits(breaker=BreakerLimits(failure_threshold=1, reset_timeout_s=0))


class Slow(MemoryStore):
    """Says that something is written when `gate` opens; writes nothing while `fault` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.fault: StoreUnavailable | None = None

    async def commit(self, ops: Sequence[Op], events: Sequence[Event] = ()) -> int:
        if self.fault is not None:
            raise self.fault
        revision = await super().commit(ops, events)
        await self.gate.wait()
        return revision


class Weary(FakeWorkers):
    """Fails to end what sleeps, once."""

    failed = False

    async def end_sleeping(self, model: str) -> None:
        if model in self.asleep and not self.failed:
            self.failed = True
            raise StoreUnavailable("away")
        await super().end_sleeping(model)


@pytest.fixture
async def store() -> AsyncIterator[Slow]:
    store = Slow()
    await store.start()
    yield store
    await store.stop()


@pytest.mark.parametrize("change", ["add", "move", "pulled", "alias", "remove"])
async def test_what_is_written_counts_though_its_caller_is_cancelled(store: Slow, change: str) -> None:
    house = await House(store).start()
    book = AliasBook(store=store, seat=house.seat, clock=SystemClock(), catalogue=house.catalogue)
    await house.add()
    entry = house.catalogue.entry("a")
    artifact = await house.sources.fetch(SPEC, lambda *_: None)
    changes = {
        "add": lambda: house.catalogue.add("a", SPEC, actor="me", anew=True),
        "move": lambda: house.catalogue.move(entry, State.LOADING, reason="Test"),
        "pulled": lambda: house.catalogue.pulled(entry, artifact),
        "alias": lambda: book.set("b", Alias(versions={"a": 1.0}), actor="me", reason="Test"),
        "remove": lambda: house.catalogue.remove(entry, actor="me"),
    }
    store.gate.clear()
    written = await store.last_event_id()
    changing = asyncio.ensure_future(changes[change]())
    async with asyncio.timeout(10):
        while await store.last_event_id() == written:  # noqa: ASYNC110 - a turn of the loop is all that is waited for
            await asyncio.sleep(0)
    changing.cancel()
    await asyncio.sleep(0)
    store.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await changing
    assert (len(house.catalogue.versions("a")), entry.status.state, bool(entry.version.digest), book.names()) == {
        "add": (2, State.REGISTERED, False, []),
        "move": (1, State.LOADING, False, []),
        "pulled": (1, State.REGISTERED, True, []),
        "alias": (1, State.REGISTERED, False, ["b"]),
        "remove": (0, State.REGISTERED, False, []),
    }[change]
    await house.catalogue.add("a", SPEC, actor="me", anew=True)
    await book.set("b", Alias(versions={"a": 2.0}), actor="me", reason="Test")
    await house.manager.stop()


async def test_nobody_loads_what_is_being_removed(store: Slow) -> None:
    house = await House(store).start()
    await house.add()
    resident = await house.manager.ensure_ready("a", NEVER)
    resident.enter()
    removing = asyncio.create_task(house.manager.remove("a", actor="me"))
    await house.until("model.draining")
    for ask in (house.manager.ensure_ready("a", NEVER), house.manager.load("a", NEVER, actor="me")):
        with pytest.raises(Unavailable, match="a@1 is being removed"):
            await ask
    resident.leave()
    await removing
    with pytest.raises(NotFound):
        await house.manager.ensure_ready("a", NEVER)
    assert house.workers.starts == 1
    await house.manager.stop()


async def test_what_could_not_be_removed_is_loaded_again(store: Slow) -> None:
    house = await House(store).start()
    await house.add()
    store.fault = StoreUnavailable("away")
    with pytest.raises(StoreUnavailable):
        await house.manager.remove("a", actor="me")
    store.fault = None
    await house.manager.ensure_ready("a", NEVER)
    await house.manager.stop()


@pytest.mark.parametrize("how", ["the store", "cancelled"])
async def test_a_try_that_did_not_begin_may_be_made_again(store: Slow, how: str) -> None:
    house = await House(store, EAGER).start()
    await house.add()
    house.workers.error = LoadFailed("no such tensor", reason="load_failed")
    with pytest.raises(LoadFailed):
        await house.manager.ensure_ready("a", NEVER)
    house.workers.error = None
    if how == "the store":
        store.fault = StoreUnavailable("away")
        with pytest.raises(StoreUnavailable):
            await house.manager.ensure_ready("a", NEVER)
        store.fault = None
    else:
        trying = asyncio.create_task(house.manager.ensure_ready("a", NEVER))
        await turn(lambda: house.manager.is_loading("a"))
        await house.manager.unload("a", NEVER, actor="me")
        await asyncio.gather(trying, return_exceptions=True)
    await house.manager.ensure_ready("a", NEVER)
    await house.manager.stop()


async def test_what_is_idle_is_unloaded_though_something_failed_before(store: Slow) -> None:
    workers = Weary()
    house = await House(store, workers=workers).start()
    workers.asleep, house.memory.short = ["other@1"], True
    await house.add(spec=ModelSpec(runtime="python", source="file:a.py", ttl_s=0.01))
    await house.manager.ensure_ready("a", NEVER)
    await house.until("model.unloaded")
    assert workers.failed
    await house.manager.stop()
