"""Several processes on one SQLite file."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from moc.cluster.holder import Holder
from moc.cluster.seat import SeatKeeper
from moc.kernel.errors import Conflict
from moc.kernel.records import ABSENT, Delete, Put
from moc.store.sqlite import SqliteStore

SCRIPT = Path(__file__).parents[1] / "store_process.py"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "moc.db", busy_timeout_s=30)
    await opened.start()
    yield opened
    await opened.stop()


@asynccontextmanager
async def process(command: str, folder: Path, argument: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process on the same file; dead at the end."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, SCRIPT, command, folder / "moc.db", str(argument),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def line_of(started: asyncio.subprocess.Process) -> str:
    assert started.stdout is not None
    return (await started.stdout.readline()).decode().strip()


async def test_no_increment_is_lost(store: SqliteStore, tmp_path: Path) -> None:
    async with process("count", tmp_path, 200) as one, process("count", tmp_path, 200) as two:
        lost = [await line_of(one), await line_of(two)]
        assert [await one.wait(), await two.wait()] == [0, 0], lost
    record = await store.get("counter")
    assert record is not None
    assert record.value == b"400"
    assert record.revision == 400
    assert [event.id for event in await store.events()] == list(range(1, 401))


async def test_a_watcher_sees_what_another_process_does(store: SqliteStore, tmp_path: Path) -> None:
    async with process("watch", tmp_path, 3) as watching:
        assert await line_of(watching) == "watching"
        revision = await store.commit([Put("w/a", b"1", ABSENT), Put("elsewhere", b"", ABSENT)])
        assert await line_of(watching) == "w/a 1"
        await store.commit([Delete("w/a", revision)])
        assert await line_of(watching) == "w/a removed"
        await store.commit([Put("w/b", b"2", ABSENT)])
        assert await line_of(watching) == "w/b 2"
        assert await watching.wait() == 0


async def test_a_follower_gets_every_event_of_another_process(store: SqliteStore, tmp_path: Path) -> None:
    follower = store.follow(after=0)
    async with process("count", tmp_path, 50) as counting:
        assert [(await anext(follower)).id for _ in range(50)] == list(range(1, 51))
        assert await counting.wait() == 0


async def test_a_living_holder_is_named_and_a_dead_one_replaced_at_once(store: SqliteStore, tmp_path: Path) -> None:
    keeper = SeatKeeper(
        store, "s", holder=str(Holder.here()), on_lost=pytest.fail, ttl_s=3600, patience_s=0.2
    )  # fmt: skip
    async with process("hold", tmp_path, 3600) as holding:
        assert await line_of(holding) == "held 1"
        with pytest.raises(Conflict, match=rf"another coordinator \(pid {holding.pid} on .*--data-dir"):
            await keeper.start()
        holding.kill()
        await holding.wait()
        await keeper.start()
        assert keeper.term == 2
    await keeper.stop()


async def test_a_seat_given_back_is_free_for_the_next(store: SqliteStore, tmp_path: Path) -> None:
    for term in (1, 2):
        async with process("hold", tmp_path, 3600) as holding:
            assert await line_of(holding) == f"held {term}"
            await holding.communicate(b"")
            assert holding.returncode == 0
    assert await store.seats() == []


async def test_a_frozen_holder_loses_its_seat_and_cannot_write(store: SqliteStore, tmp_path: Path) -> None:
    keeper = SeatKeeper(store, "s", holder=str(Holder.here()), on_lost=pytest.fail, ttl_s=30, patience_s=30)
    async with process("hold", tmp_path, 1) as holding:
        assert await line_of(holding) == "held 1"
        holding.send_signal(signal.SIGSTOP)
        await keeper.start()
        assert keeper.term == 2
        holding.send_signal(signal.SIGCONT)
        assert await line_of(holding) == "lost and refused"
    assert await store.get("late") is None
    await keeper.stop()
