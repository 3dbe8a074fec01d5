"""Files that jobs read: taken in piece by piece, kept whole and hashed, or not at all.

Records: `files/<id>` (File); the content is at `<folder>/<id>`. Events: `file.added`, `file.removed`.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import structlog

from moc.kernel.clock import Clock
from moc.kernel.errors import Internal, InvalidRequest, NoCapacity, NotFound, StoreUnavailable, TooLarge
from moc.kernel.events import Event
from moc.kernel.ids import new_id
from moc.kernel.records import ABSENT, STORE_FULL, Store, Table
from moc.kernel.tasks import to_the_end
from moc.kernel.units import Bytes

log = structlog.get_logger(__name__)

LARGEST_BYTES = 512 * 1024**2
"""OpenAI's own limit."""

NAME_MAX = 255
_ID = "file"
_ASIDE = ".new-"
_OURS = (f"{_ID}-", _ASIDE)
"""How the names begin of all that is written to the folder."""


class Purpose(StrEnum):
    """What a file is for; nothing depends on it but lists that ask for one."""

    FINE_TUNE = "fine-tune"
    EVALS = "evals"
    USER_DATA = "user_data"

    @classmethod
    def parse(cls, text: str) -> "Purpose":
        """InvalidRequest for what is none."""
        try:
            return cls(text)
        except ValueError:
            raise InvalidRequest(
                f"`purpose` is {text[:40]!r}; there are {', '.join(cls)}", details={"param": "purpose"}
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file; its content never changes. At `expires_at` it may be deleted, unless that is None."""

    id: str
    filename: str
    size_bytes: int
    purpose: Purpose
    sha256: str
    created_at: float
    created_by: str
    expires_at: float | None = None


class Files:
    """Every file, of at most `largest_bytes` each.

    `folder` belongs to it alone; `take` is told of bytes before they are written, may block, and refuses what there
    is no room for with NoCapacity.
    """

    def __init__(
        self,
        *,
        store: Store,
        folder: Path,
        clock: Clock,
        take: Callable[[int], None],
        largest_bytes: int = LARGEST_BYTES,
    ) -> None:
        self._store = store
        self._folder = folder
        self._clock = clock
        self._take = take
        self._largest_bytes = largest_bytes
        self._table: Table[File] = Table(store, "files/", File)
        self._files: dict[str, File] = {}

    async def start(self) -> None:
        """Read which there are, and delete what an earlier life left half done."""
        self._files = {file_id: file for file_id, file, _ in await self._table.list()}
        await asyncio.to_thread(self._tidy)

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        return

    def all(self) -> list[File]:
        """Every file, oldest first."""
        return list(self._files.values())

    def show(self, file_id: str) -> File:
        """One; NotFound when there is none."""
        file = self._files.get(file_id)
        if file is None:
            raise NotFound(f"there is no file {file_id[:64]!r}; `moc files list` shows those there are")
        return file

    def path(self, file_id: str) -> Path:
        """Where its content is; NotFound when there is none."""
        path = self._folder / self.show(file_id).id
        if not path.is_file():
            raise NotFound(f"the content of the file {file_id} is gone from the disk; add it again")
        return path

    async def receive(self) -> "Incoming":
        """Begin to take one in; NoCapacity when there is no room for any."""
        await asyncio.to_thread(self._take, 0)
        aside = self._folder / f"{_ASIDE}{new_id(_ID)}"
        with disk_errors("opening a new file"):
            content = await to_the_end(asyncio.to_thread(aside.open, "xb"))
        return Incoming(self, aside, content, take=self._take, largest_bytes=self._largest_bytes)

    async def add(self, chunks: AsyncIterator[bytes], *, filename: str, purpose: Purpose, actor: str) -> File:
        """Take in a whole one; see `Incoming` for what may go wrong."""
        incoming = await self.receive()
        try:
            async for chunk in chunks:
                await incoming.write(chunk)
            return await incoming.keep(filename=filename, purpose=purpose, actor=actor)
        finally:
            await incoming.discard()

    async def remove(self, file_id: str, *, actor: str) -> None:
        """Delete one; NotFound when there is none."""
        file = self.show(file_id)
        event = Event(kind="file.removed", subject=file.id, actor=actor, data={"filename": file.filename})
        await self._store.commit([self._table.delete(file.id, expect=None)], [event])
        self._files.pop(file.id, None)
        with disk_errors("deleting a file"):
            await to_the_end(asyncio.to_thread((self._folder / file.id).unlink, missing_ok=True))

    async def record(self, file: File, aside: Path) -> None:
        """Make what lies `aside` the content of `file`, and the file known; durable when this returns.

        After StoreUnavailable nobody knows whether it was recorded, unless the store is full: the content stays, and
        the next start tells.
        """
        await asyncio.to_thread(self._publish, aside, file.id)
        event = Event(
            kind="file.added",
            subject=file.id,
            actor=file.created_by,
            data={"filename": file.filename, "size_bytes": file.size_bytes, "purpose": file.purpose},
        )
        try:
            await self._store.commit([self._table.put(file.id, file, expect=ABSENT)], [event])
        except BaseException as error:
            if not isinstance(error, StoreUnavailable) or error.details.get("reason") == STORE_FULL:
                (self._folder / file.id).unlink(missing_ok=True)
            raise
        self._files[file.id] = file

    def now(self) -> float:
        """The wall clock."""
        return self._clock.wall()

    def _publish(self, aside: Path, file_id: str) -> None:
        with disk_errors("keeping a file"):
            aside.rename(self._folder / file_id)
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _tidy(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if path.name.startswith(_OURS) and path.name not in self._files and path.is_file():
                try:
                    path.unlink()
                except OSError as error:
                    log.warning("what was left half done cannot be deleted", path=str(path), problem=str(error))
        for lost in [file_id for file_id in self._files if not (self._folder / file_id).is_file()]:
            log.warning("the content of a file is gone", file=lost)


class Incoming:
    """A file on its way: write its pieces, then keep it. Whatever happens in between, discard it in the end."""

    def __init__(
        self, files: Files, aside: Path, content: BinaryIO, *, take: Callable[[int], None], largest_bytes: int
    ) -> None:
        self._files = files
        self._aside = aside
        self._content = content
        self._take = take
        self._largest_bytes = largest_bytes
        self._hash = hashlib.sha256()
        self._size = 0

    async def write(self, chunk: bytes) -> None:
        """One more piece. TooLarge when no file may be so large, NoCapacity when there is no room for it."""
        self._size += len(chunk)
        if self._size > self._largest_bytes:
            raise TooLarge(f"the file is larger than {Bytes(self._largest_bytes)}; split it into several")
        with disk_errors("writing a file"):
            await to_the_end(asyncio.to_thread(self._write, chunk))

    async def keep(self, *, filename: str, purpose: Purpose, actor: str, expires_in_s: float | None = None) -> File:
        """The file, durable; once at most. InvalidRequest when it is empty or has no name."""
        name = os.path.basename(filename.replace("\\", "/"))[:NAME_MAX]
        if not name or not name.isprintable():
            raise InvalidRequest(
                "the file has no name that can be printed; send it with one", details={"param": "file"}
            )
        if not self._size:
            raise InvalidRequest(f"the file {name!r} is empty", details={"param": "file"})
        with disk_errors("writing a file"):
            await to_the_end(asyncio.to_thread(self._finish))
        now = self._files.now()
        file = File(
            id=new_id(_ID),
            filename=name,
            size_bytes=self._size,
            purpose=purpose,
            sha256=self._hash.hexdigest(),
            created_at=now,
            created_by=actor,
            expires_at=None if expires_in_s is None else now + expires_in_s,
        )
        await to_the_end(self._files.record(file, self._aside))
        return file

    async def discard(self) -> None:
        """Leave nothing of what was not kept; idempotent."""
        await to_the_end(asyncio.to_thread(self._discard))

    def _write(self, chunk: bytes) -> None:
        self._take(len(chunk))
        self._content.write(chunk)
        self._hash.update(chunk)

    def _finish(self) -> None:
        self._content.flush()
        os.fsync(self._content.fileno())
        self._content.close()

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # what cannot be written any more need not be
            self._content.close()
        self._aside.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Raise what the disk says as NoCapacity when it is full, as Internal otherwise."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoCapacity(f"the disk is full ({what}); make room on it, then try again") from error
        raise Internal(f"the disk failed ({what}): {error.strerror or error}") from error
