"""The coordinator's own copies: named by their content, never seen before they are whole.

sha256/ab/abcd…     a file, or a folder
sources/KEY.json    which content a source turned out to be
partial/KEY/        what is being fetched, kept when that is interrupted
locks/KEY           held while a source is fetched
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from moc.kernel.errors import LoadFailed
from moc.models.model import Artifact
from moc.models.sources.background import Job, in_thread
from moc.models.sources.content import Measure, hash_of, measure, members
from moc.models.sources.failure import disk_errors, failed

_LOCK_POLL_S = 0.1
_PARTIAL_KEPT_S = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class _Known:
    """What a source turned out to be."""

    source: str
    sha256: str
    size_bytes: int


class Blobs:
    """Content under a folder that only coordinators write to. All but `exclusive` blocks."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextlib.asynccontextmanager
    async def exclusive(self, key: str) -> AsyncIterator[Path]:
        """Be the only one, in any process, who fetches `key`; gives the folder to fetch into.

        What is in the folder is what an interrupted fetch left there. What others left a week ago is deleted.
        """
        folder = self._root / "partial" / key
        with disk_errors("preparing the folder for downloads"):
            await in_thread(lambda _: self._tidy())
            lock = self._open_lock(key)
        try:
            while not _try_lock(lock):  # noqa: ASYNC110 - another process cannot set an event here
                await asyncio.sleep(_LOCK_POLL_S)
            with disk_errors("preparing the folder for downloads"):
                await in_thread(lambda _: folder.mkdir(parents=True, exist_ok=True))
            yield folder
            with contextlib.suppress(OSError):  # gone with what was in it, or kept with what is
                folder.rmdir()
        finally:
            os.close(lock)

    def find(self, sha256: str, job: Job) -> Artifact | None:
        """The blob with this content, if it is here; reads all of it to be sure."""
        try:
            found, size = hash_of(self._path(sha256), job)
        except (FileNotFoundError, LoadFailed):
            return None
        return self._artifact(sha256, size) if found == sha256 else None

    def recall(self, key: str) -> Artifact | None:
        """What the source `key` was when it was fetched, if that is still here in its full size."""
        known = _read(self._note(key))
        if known is None:
            return None
        try:
            found = measure(self._path(known.sha256))
        except (FileNotFoundError, LoadFailed):
            return None
        return self._artifact(known.sha256, found) if found.size_bytes == known.size_bytes else None

    def keep(self, staged: Path, *, key: str, source: str, expected: str | None, job: Job) -> Artifact:
        """Make what was fetched for `key` a blob, durably, and remember that it is; empties the folder of `key`.

        LoadFailed when its hash is not `expected`; then it is deleted.
        """
        sha256, found = hash_of(staged, job)
        if expected is not None and sha256 != expected:
            self.abandon(key)
            raise failed(
                f"{source} has sha256 {sha256} where {expected} was expected; the download was deleted: "
                "check the source and the expected hash"
            )
        self._publish(staged, self._path(sha256))
        self._remember(key, _Known(source, sha256, found.size_bytes))
        self.abandon(key)
        return self._artifact(sha256, found)

    def abandon(self, key: str) -> None:
        """Delete what was being fetched."""
        shutil.rmtree(self._root / "partial" / key, ignore_errors=True)

    def owns(self, path: Path) -> bool:
        """Whether `path` is a blob of ours."""
        return path.parent.parent == self._root / "sha256"

    def delete(self, sha256: str) -> None:
        """Delete a blob and forget the sources it came from; nothing happens when it is gone already."""
        for note in (self._root / "sources").glob("*.json"):
            known = _read(note)
            if known is not None and known.sha256 == sha256:
                note.unlink(missing_ok=True)
        _delete(self._path(sha256))

    def _open_lock(self, key: str) -> int:
        return os.open(self._root / "locks" / key, os.O_RDWR | os.O_CREAT, 0o600)

    def _tidy(self) -> None:
        (self._root / "locks").mkdir(parents=True, exist_ok=True)
        for folder in (self._root / "partial").glob("*"):
            with contextlib.suppress(FileNotFoundError):  # its fetch came to its end just now
                touched_at = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
                if time.time() - touched_at > _PARTIAL_KEPT_S:
                    self._give_up(folder.name)

    def _give_up(self, key: str) -> None:
        lock = self._open_lock(key)
        try:
            if _try_lock(lock):
                self.abandon(key)
        finally:
            os.close(lock)

    def _publish(self, staged: Path, path: Path) -> None:
        for _, member in members(staged):
            member.chmod(0o444)
            _sync(member)
            if staged.is_dir():
                _sync(member.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or staged.is_dir():
            _delete(path)  # a folder cannot be renamed over another
        staged.replace(path)
        _sync(path.parent)
        _sync(path.parent.parent)

    def _remember(self, key: str, known: _Known) -> None:
        note = self._note(key)
        note.parent.mkdir(parents=True, exist_ok=True)
        aside = self._root / "partial" / key / "note"
        aside.write_bytes(msgspec.json.encode(known))
        _sync(aside)
        aside.replace(note)
        _sync(note.parent)

    def _artifact(self, sha256: str, found: Measure) -> Artifact:
        return Artifact(
            path=str(self._path(sha256)), sha256=sha256, size_bytes=found.size_bytes, modified_at=found.modified_at
        )

    def _path(self, sha256: str) -> Path:
        return self._root / "sha256" / sha256[:2] / sha256

    def _note(self, key: str) -> Path:
        return self._root / "sources" / f"{key}.json"


def _read(note: Path) -> _Known | None:
    try:
        return msgspec.json.decode(note.read_bytes(), type=_Known)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
