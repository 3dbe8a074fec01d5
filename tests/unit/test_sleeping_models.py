"""Models whose workers can sleep, in the manager's hands."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from moc.inference.request import Info
from moc.kernel.errors import NoCapacity
from moc.models.model import ModelSpec, State
from moc.resilience.deadline import NEVER
from moc.store.memory import MemoryStore
from moc.testing.workers import FakeWorkers
from tests.house import House, turn

BRIEF = ModelSpec(runtime="python", source="file:a.py", ttl_s=0.01)
LASTING = ModelSpec(runtime="python", source="file:b.py", ttl_s=0)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    store = MemoryStore()
    await store.start()
    house = await House(store, workers=FakeWorkers(info=Info(("chat",), "fake", sleeps=True))).start()
    yield house
    await house.manager.stop()
    await store.stop()


async def asleep(house: House, *names: str) -> None:
    """Models that were loaded and then left for others."""
    for name in names:
        await house.add(name, LASTING)
        await house.manager.ensure_ready(name, NEVER)
        await house.manager.evict(name, reason="Evicted", message="")
    assert house.workers.asleep == [f"{name}@1" for name in names]


async def test_who_leaves_for_another_sleeps_and_gives_its_memory_back(house: House) -> None:
    await asleep(house, "a")
    assert house.workers.stopped == []
    assert house.memory.held == {}
    status = house.catalogue.entry("a").status
    assert (status.state, status.reason, status.worker_id) == (State.REGISTERED, "Asleep", "")


async def test_who_is_idle_sleeps(house: House) -> None:
    await house.add("a", BRIEF)
    await house.manager.ensure_ready("a", NEVER)
    await house.until("model.unloaded")
    assert house.workers.asleep == ["a@1"]


async def test_who_is_asked_for_again_has_its_memory_again(house: House) -> None:
    await asleep(house, "a", "b")
    await house.manager.ensure_ready("a", NEVER)
    assert house.workers.asleep == ["b@1"]
    assert list(house.memory.held) == ["a@1"]


@pytest.mark.parametrize("how", ["unload", "remove"])
async def test_whom_an_operator_unloads_does_not_sleep(house: House, how: str) -> None:
    await asleep(house, "a")
    if how == "unload":
        await house.manager.unload("a", NEVER, actor="test")
    else:
        await house.manager.remove("a", actor="test")
    assert house.workers.asleep == []
    await house.add("b", LASTING)
    await house.manager.ensure_ready("b", NEVER)
    await house.manager.unload("b", NEVER, actor="test")
    assert house.workers.asleep == []


async def test_when_memory_is_short_nobody_sleeps_on(house: House) -> None:
    await asleep(house, "a", "b")
    house.memory.short = True
    await turn(lambda: house.workers.asleep == [])


async def test_for_main_memory_others_are_ended_before_anybody_awake_has_to_leave(house: House) -> None:
    await asleep(house, "a", "b", "c")
    house.memory.full = True
    await house.manager.ensure_ready("b", NEVER)
    assert house.workers.asleep == []


async def test_what_does_not_fit_is_tried_again_without_those_that_sleep(house: House) -> None:
    await asleep(house, "a", "b")
    house.memory.error = NoCapacity("full", details={"evicted": ()})
    with pytest.raises(NoCapacity):
        await asyncio.wait_for(house.manager.ensure_ready("a", NEVER), 10)
    assert house.workers.asleep == []
