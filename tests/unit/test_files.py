"""Files: taken in whole or not at all, and there again after a start."""

import errno
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from moc.kernel.clock import SystemClock
from moc.kernel.errors import Internal, InvalidRequest, NoCapacity, NotFound, StoreUnavailable, TooLarge
from moc.kernel.events import Event
from moc.kernel.records import Op
from moc.learning.disk import DiskQuota
from moc.learning.files import File, Files, Incoming, Purpose, disk_errors
from moc.store.memory import MemoryStore
from tests.full_store import FullStore

ROOM = 10 * 1024**3


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    made = MemoryStore()
    await made.start()
    yield made
    await made.stop()


def made(store: MemoryStore, folder: Path, room: int = ROOM) -> Files:
    quota = DiskQuota([folder / "files"], limit_bytes=room)
    return Files(store=store, folder=folder / "files", clock=SystemClock(), take=quota.take, largest_bytes=2**20)


@pytest.fixture
async def files(store: MemoryStore, tmp_path: Path) -> Files:
    started = made(store, tmp_path)
    await started.start()
    return started


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


async def add(files: Files, content: bytes = b"one\ntwo\n", name: str = "rows.jsonl") -> File:
    middle = len(content) // 2
    chunks = pieces(content[:middle], content[middle:])
    return await files.add(chunks, filename=name, purpose=Purpose.FINE_TUNE, actor="me")


def names(folder: Path) -> list[str]:
    return [path.name for path in (folder / "files").iterdir()]


async def test_a_file_is_kept_as_it_came_and_there_after_a_restart(
    files: Files, store: MemoryStore, tmp_path: Path
) -> None:
    added = await add(files)
    assert (added.size_bytes, added.created_by) == (8, "me")
    assert added.sha256 == hashlib.sha256(b"one\ntwo\n").hexdigest()
    again = made(store, tmp_path)
    await again.start()
    assert again.all() == [added]
    assert again.path(added.id).read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "files").stat().st_mode & 0o077 == 0
    assert [event.kind for event in await store.events()] == ["file.added"]


async def test_a_file_that_is_removed_leaves_nothing(files: Files, store: MemoryStore, tmp_path: Path) -> None:
    added = await add(files)
    await files.remove(added.id, actor="me")
    assert files.all() == []
    assert names(tmp_path) == []
    assert await store.list("files/") == []
    for use in (files.show, files.path):
        with pytest.raises(NotFound, match=added.id):
            use(added.id)


@pytest.mark.parametrize(
    ("name", "kept"),
    [("a/b/../rows.jsonl", "rows.jsonl"), ("C:\\data\\rows.jsonl", "rows.jsonl"), ("x" * 300, "x" * 255)],
)
async def test_a_name_is_no_path(files: Files, name: str, kept: str) -> None:
    assert (await add(files, name=name)).filename == kept


@pytest.mark.parametrize(
    ("content", "name", "told"),
    [
        (b"", "rows.jsonl", "is empty"),
        (b"a", "", "no name"),
        (b"a", "folder/", "no name"),
        (b"a", "a\x1b[2J", "no name"),
    ],
)
async def test_what_is_no_file_is_refused(files: Files, tmp_path: Path, content: bytes, name: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        await add(files, content, name)
    assert names(tmp_path) == []


async def test_there_is_a_largest_file_and_a_quota(files: Files, store: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="1MiB"):
        await files.add(pieces(bytes(2**20), b"x"), filename="a", purpose=Purpose.EVALS, actor="me")
    small = made(store, tmp_path, room=7)
    with pytest.raises(NoCapacity, match="disk_quota allows 7B"):
        await small.add(pieces(b"12345678"), filename="a", purpose=Purpose.EVALS, actor="me")
    assert names(tmp_path) == []
    assert (await add(small, b"1234567")).size_bytes == 7


async def test_files_that_arrive_together_share_what_there_is(store: MemoryStore, tmp_path: Path) -> None:
    few = made(store, tmp_path, room=2**20)
    await few.start()
    one, other = await few.receive(), await few.receive()
    await one.write(bytes(700_000))
    with pytest.raises(NoCapacity, match="disk_quota allows 1MiB"):
        await other.write(bytes(700_000))
    await other.discard()
    await one.keep(filename="a", purpose=Purpose.EVALS, actor="me")
    with pytest.raises(NoCapacity):
        await add(few, bytes(700_000))
    await few.remove(few.all()[0].id, actor="me")
    assert (await add(few, bytes(700_000))).size_bytes == 700_000


async def test_a_start_deletes_what_an_earlier_life_left_half_done(
    files: Files, store: MemoryStore, tmp_path: Path
) -> None:
    kept, lost = await add(files), await add(files)
    incoming = await files.receive()
    await incoming.write(b"half")
    (tmp_path / "files" / "file-without-record").write_text("renamed, but not recorded")
    others = ("lost+found", "file-folder", ".new-folder")
    for name in others:
        (tmp_path / "files" / name).mkdir()
    (tmp_path / "files" / "notes.txt").write_text("mine")
    (tmp_path / "files" / lost.id).unlink()
    again = made(store, tmp_path)
    await again.start()
    await incoming.discard()
    assert sorted(names(tmp_path)) == sorted([kept.id, *others, "notes.txt"])
    with pytest.raises(NotFound, match="gone from the disk"):
        again.path(lost.id)
    await again.remove(lost.id, actor="me")
    assert again.all() == [kept]


class Forgetful(MemoryStore):
    """Answers no commit while it is `mute`; those it `makes` are made nevertheless."""

    mute, makes = False, False

    async def commit(self, ops: Sequence[Op], events: Sequence[Event] = ()) -> int:
        if not self.mute:
            return await super().commit(ops, events)
        if self.makes:
            await super().commit(ops, events)
        raise StoreUnavailable("no answer")


@pytest.mark.parametrize("makes", [True, False])
async def test_a_store_that_fails_leaves_the_file_to_the_next_start(tmp_path: Path, makes: bool) -> None:
    store = Forgetful()
    await store.start()
    files, again = made(store, tmp_path), made(store, tmp_path)
    await files.start()
    store.mute, store.makes = True, makes
    with pytest.raises(StoreUnavailable):
        await add(files)
    assert (files.all(), len(names(tmp_path))) == ([], 1)
    store.mute = False
    await again.start()
    assert [file.id for file in again.all()] == names(tmp_path)
    assert [again.path(file.id).read_bytes() for file in again.all()] == [b"one\ntwo\n"] * makes


async def test_a_store_that_is_full_keeps_no_content_either(tmp_path: Path) -> None:
    store = FullStore()
    files = made(store, tmp_path)
    await files.start()
    store.full = True
    with pytest.raises(StoreUnavailable):
        await add(files)
    assert names(tmp_path) == []


def test_a_full_disk_is_told_as_one() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(NoCapacity, match="the disk is full"), disk_errors("writing a file"):
            raise OSError(number, "full")
    with pytest.raises(Internal, match="Input/output error"), disk_errors("writing a file"):
        raise OSError(errno.EIO, "Input/output error")


def test_a_purpose_that_nobody_knows_is_refused() -> None:
    assert Purpose.parse("fine-tune") is Purpose.FINE_TUNE
    with pytest.raises(InvalidRequest, match="'batch'; there are fine-tune, evals, user_data"):
        Purpose.parse("batch")


async def test_a_disk_that_is_full_at_the_last_byte_leaves_nothing(files: Files, tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230 - a disk that is always full
        incoming = Incoming(files, tmp_path / "files" / ".new-file", full, take=lambda _: None, largest_bytes=2**20)
        await incoming.write(b"all of it")
        with pytest.raises(NoCapacity, match="the disk is full"):
            await incoming.keep(filename="a", purpose=Purpose.EVALS, actor="me")
        await incoming.discard()
    assert (files.all(), names(tmp_path)) == ([], [])
