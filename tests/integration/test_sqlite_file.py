"""The SQLite file itself: who may read it, what is refused, and what happens when it cannot be written."""

import asyncio
import os
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

import moc
from moc.kernel.errors import NotLeader, StoreUnavailable
from moc.kernel.records import ABSENT, Fence, Put
from moc.store.database import MIGRATIONS, connect
from moc.store.sqlite import SqliteStore

SCRIPT = Path(__file__).parents[1] / "store_process.py"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "moc.db"


@asynccontextmanager
async def opened(path: Path, **options: float) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, busy_timeout_s=options.get("busy_timeout_s", 5))
    await store.start()
    try:
        yield store
    finally:
        await store.stop()


async def read_all(path: Path) -> None:
    async with opened(path) as store:
        await store.list("")


def change_behind_its_back(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def content(path: Path) -> bytes:
    return path.read_bytes()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


class TestSafety:
    async def test_only_its_user_may_read_it(self, path: Path) -> None:
        async with opened(path) as store:
            await store.commit([Put("a", b"", ABSENT)])
            files = sorted(path.parent.iterdir())
            assert [file.name for file in files] == ["moc.db", "moc.db-shm", "moc.db-wal"]
            assert {mode(file) for file in files} == {0o600}
            assert mode(path.parent) == 0o700

    async def test_a_file_that_others_may_read_is_closed_to_them(self, path: Path) -> None:
        async with opened(path):
            pass
        os.chmod(path, 0o644)
        async with opened(path):
            assert mode(path) == 0o600

    async def test_every_commit_is_flushed_to_the_disk(self, path: Path) -> None:
        async with opened(path):
            with closing(connect(path, 1)) as db:
                assert db.execute("PRAGMA synchronous").fetchone() == (2,)
                assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    async def test_stopping_leaves_one_whole_file(self, path: Path) -> None:
        async with opened(path) as store:
            await store.commit([Put("a", b"", ABSENT)])
        assert [file.name for file in path.parent.iterdir()] == ["moc.db"]

    async def test_several_may_make_it_at_once(self, path: Path) -> None:
        stores = [SqliteStore(path) for _ in range(8)]
        await asyncio.gather(*(store.start() for store in stores))
        await asyncio.gather(*(store.commit([Put(f"k/{n}", b"", ABSENT)]) for n, store in enumerate(stores)))
        assert len(await stores[0].list("k/")) == 8
        await asyncio.gather(*(store.stop() for store in stores))


class TestRefusal:
    async def test_a_file_of_a_newer_version(self, path: Path) -> None:
        async with opened(path):
            pass
        newer = len(MIGRATIONS) + 1
        change_behind_its_back(path, f"PRAGMA user_version = {newer}", "UPDATE writer SET version = '9.8.7'")
        before = content(path)
        with pytest.raises(StoreUnavailable, match=rf"moc 9\.8\.7 .*version {newer}.*install moc 9\.8\.7") as refusal:
            await SqliteStore(path).start()
        assert moc.__version__ in refusal.value.message
        assert content(path) == before

    async def test_a_database_of_another_program(self, path: Path) -> None:
        write(path, b"")
        change_behind_its_back(path, "CREATE TABLE theirs (x)")
        before = content(path)
        with pytest.raises(StoreUnavailable, match="another program"):
            await SqliteStore(path).start()
        assert content(path) == before

    async def test_something_that_is_no_database(self, path: Path) -> None:
        write(path, b"my diary\n" * 1000)
        with pytest.raises(StoreUnavailable, match="not a database; move it away"):
            await SqliteStore(path).start()
        assert content(path) == b"my diary\n" * 1000

    async def test_a_damaged_file(self, path: Path) -> None:
        async with opened(path) as store:
            await store.commit([Put(f"k/{n}", b"x" * 1000, ABSENT) for n in range(200)])
        whole = content(path)
        write(path, whole[:4096] + b"\xa5" * (len(whole) - 4096))
        with pytest.raises(StoreUnavailable, match="damaged; put a backup in its place"):
            await read_all(path)

    async def test_a_folder_in_its_place(self, path: Path) -> None:
        os.makedirs(path)
        with pytest.raises(StoreUnavailable, match="Is a directory"):
            await SqliteStore(path).start()

    async def test_a_file_in_place_of_its_folder(self, path: Path) -> None:
        write(path.parent, b"")
        with pytest.raises(StoreUnavailable, match="check its folder"):
            await SqliteStore(path).start()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    async def test_a_file_that_may_not_be_written(self, path: Path) -> None:
        async with opened(path):
            pass
        os.chmod(path, 0o400)
        with pytest.raises(StoreUnavailable, match="Permission denied"):
            await SqliteStore(path).start()


class TestTrouble:
    async def test_a_lock_held_too_long_is_reported_and_reads_go_on(self, path: Path) -> None:
        async with opened(path, busy_timeout_s=0.1) as store:
            revision = await store.commit([Put("a", b"1", ABSENT)])
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StoreUnavailable, match="another process kept it locked"):
                    await store.commit([Put("a", b"2", revision)])
                assert not store.well
                other.execute("ROLLBACK")
            await store.commit([Put("a", b"3", revision)])
            assert store.well

    async def test_a_reader_does_not_wait_for_a_writer(self, path: Path) -> None:
        async with opened(path, busy_timeout_s=60) as store:
            revision = await store.commit([Put("a", b"1", ABSENT)])
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                waiting = asyncio.create_task(store.commit([Put("a", b"2", revision)]))
                async with asyncio.timeout(10):
                    record = await store.get("a")
                assert record is not None
                assert record.value == b"1"
                assert not waiting.done()
                other.execute("ROLLBACK")
            assert await waiting == revision + 1

    async def test_a_full_disk_loses_nothing_and_is_got_over(self, path: Path) -> None:
        limit = 1_000_000
        process = await asyncio.create_subprocess_exec(
            sys.executable, SCRIPT, "fill", path, str(limit), stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
        lines = output.decode().splitlines()
        assert "full" in lines[-2]
        assert lines[-2].startswith(f"refused the store at {path} failed")
        assert lines[-1] == "goes on"
        written = len(lines) - 2
        assert written >= 5
        async with opened(path) as store:
            assert {record.key for record in await store.list("k/")} == {f"k/{n}" for n in range(written)}
            assert await store.get("after") is not None

    async def test_a_reboot_frees_a_seat(self, path: Path) -> None:
        async with opened(path) as store:
            assert await store.take_seat("s", "me", 3600) is not None
            assert await store.take_seat("s", "you", 3600) is None
            change_behind_its_back(path, "UPDATE seats SET boot = 'the one before'")
            seat = await store.take_seat("s", "you", 3600)
            assert seat is not None
            assert seat.term == 2

    async def test_a_watcher_too_far_behind_is_told_so(self, path: Path) -> None:
        async with opened(path) as store:
            watcher = store.watch("")
            change_behind_its_back(path, "UPDATE state SET revision = revision + 200000")
            with pytest.raises(StoreUnavailable, match="list and watch anew"):
                await anext(watcher)


async def test_a_commit_of_a_term_that_is_over_is_counted(path: Path) -> None:
    fenced: list[str] = []
    store = SqliteStore(path, on_fenced=lambda: fenced.append("commit"))
    await store.start()
    try:
        seat = await store.take_seat("host/a", "one", 60)
        assert seat is not None
        await store.leave_seat(seat)
        with pytest.raises(NotLeader):
            await store.commit([Fence(seat.name, seat.term), Put("a", b"1", ABSENT)])
        assert fenced == ["commit"]
    finally:
        await store.stop()
