"""Which version a bare name means, and how a new one takes over from the one before."""

from collections.abc import AsyncIterator

import pytest

from moc.kernel.errors import LoadFailed, NoCapacity
from moc.models.model import ModelSpec, State
from moc.resilience.deadline import NEVER
from moc.store.memory import MemoryStore
from tests.house import NEWER, House, turn


@pytest.fixture
async def house() -> AsyncIterator[House]:
    store = MemoryStore()
    await store.start()
    house = await House(store).start()
    yield house
    await house.manager.stop()
    await store.stop()


async def test_a_name_means_its_newest_version(house: House) -> None:
    await house.add()
    await house.add(spec=NEWER)
    new = await house.manager.ensure_ready("a", NEVER)
    assert new.reference == "a@2"
    old = await house.manager.ensure_ready("a@1", NEVER)
    assert house.manager.find("a") is new
    await house.manager.remove("a@2", actor="test")
    assert house.manager.find("a") is old


async def test_a_loaded_version_answers_until_its_successor_is_ready(house: House) -> None:
    await house.add()
    old = await house.manager.ensure_ready("a", NEVER)
    house.workers.gate.clear()
    await house.add(spec=NEWER)
    await turn(lambda: house.workers.starts == 2)
    assert house.manager.find("a") is await house.manager.ensure_ready("a", NEVER) is old
    assert house.manager.is_held("a@1")
    house.workers.gate.set()
    await turn(lambda: house.manager.find("a") is not old)
    new = house.manager.find("a")
    assert new is not None
    assert new.reference == "a@2"
    assert house.manager.find("a@1") is old
    await turn(lambda: not house.manager.is_held("a@1"))


async def test_a_successor_that_cannot_be_loaded_is_none(house: House) -> None:
    await house.add()
    old = await house.manager.ensure_ready("a", NEVER)
    house.workers.error = LoadFailed("no such tensor", reason="load_failed")
    await house.add(spec=NEWER)
    await turn(lambda: house.state("a@2") is State.FAILED)
    assert house.catalogue.entry("a@2").status.message == "no such tensor"
    assert house.manager.find("a") is old
    house.workers.error = None
    await house.manager.unload("a@1", NEVER, actor="test")
    again = await house.manager.ensure_ready("a", NEVER)
    assert again.reference == "a@1"
    await house.manager.load("a@2", NEVER, actor="test")
    new = house.manager.find("a")
    assert new is not None
    assert new.reference == "a@2"


async def test_a_request_for_a_successor_that_cannot_be_loaded_goes_to_the_one_before(house: House) -> None:
    await house.add()
    await house.manager.ensure_ready("a", NEVER)
    await house.manager.unload("a", NEVER, actor="test")
    await house.add(spec=NEWER)
    assert house.workers.starts == 1
    house.sources.error = LoadFailed("no such file", reason="load_failed")
    found = await house.manager.ensure_ready("a", NEVER)
    assert found.reference == "a@1"
    with pytest.raises(LoadFailed, match="no such file"):
        await house.manager.ensure_ready("a@2", NEVER)


async def test_a_successor_there_is_no_room_for_gets_it_once_its_predecessor_is_gone(house: House) -> None:
    await house.add()
    old = await house.manager.ensure_ready("a", NEVER)
    house.memory.error = NoCapacity("it does not fit", details={"evicted": ()})
    await house.add(spec=NEWER)
    await turn(lambda: house.state("a@2") is State.FAILED)
    assert house.manager.find("a") is old
    await house.manager.unload("a@1", NEVER, actor="test")
    house.memory.error = None
    new = await house.manager.ensure_ready("a", NEVER)
    assert new.reference == "a@2"


async def test_what_is_held_is_not_unloaded_for_being_idle(house: House) -> None:
    await house.add("kept", ModelSpec(runtime="python", source="file:a.py", ttl_s=0.01))
    await house.add("idle", ModelSpec(runtime="python", source="file:a.py", ttl_s=0.01))
    house.manager.hold("kept@1")
    house.manager.hold("kept@1")
    for name in ("kept", "idle"):
        await house.manager.ensure_ready(name, NEVER)
    house.manager.unhold("kept@1")
    await house.until("model.unloading")
    assert house.manager.find("kept") is not None
    house.manager.unhold("kept@1")
    await turn(lambda: house.manager.find("kept") is None)
