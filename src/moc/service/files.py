"""What a caller may ask about files."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from moc.kernel.errors import Conflict, Forbidden, NotFound
from moc.learning.expiry import named, reader
from moc.learning.files import File, Files, Incoming, Purpose
from moc.learning.job import JobSpec
from moc.learning.jobs import Jobs
from moc.security.identity import Identity
from moc.security.policy import Operation
from moc.service.guard import Journal, audited, visible
from moc.service.views import Page

__all__ = ["Content", "FileView", "FilesService", "Incoming"]

_PIECE_BYTES = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class FileView:
    """A file, as OpenAI's API has it, and its `sha256`; times are seconds since the epoch."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    sha256: str
    status: str = "processed"


@dataclass(frozen=True, slots=True)
class Content:
    """A file and what is in it, piece by piece."""

    file: FileView
    pieces: AsyncGenerator[bytes, None]


class FilesService:
    """The files that jobs read. A key that is for some models sees and touches its own only."""

    def __init__(self, *, files: Files, jobs: Jobs, journal: Journal) -> None:
        self.journal = journal
        self._files = files
        self._jobs = jobs

    async def list(
        self, identity: Identity, *, purpose: str | None, newest_first: bool, after: str | None, limit: int
    ) -> Page[FileView]:
        """The files, in the order in which they came; `after` is the last id of the page before."""
        visible(identity, Operation.READ_JOBS)
        wanted = None if purpose is None else Purpose.parse(purpose)
        found = [file for file in self._files.all() if _is_theirs(identity, file) and wanted in (None, file.purpose)]
        found.sort(key=lambda file: file.id, reverse=newest_first)
        if after is not None:
            if all(file.id != after for file in found):
                raise NotFound(f"`after` names none that is here: {after[:80]!r}", details={"param": "after"})
            found = [file for file in found if (file.id < after if newest_first else file.id > after)]
        return Page([_view(file) for file in found[:limit]], found[limit - 1].id if len(found) > limit else None)

    async def show(self, identity: Identity, file_id: str) -> FileView:
        """One file; NotFound when there is none."""
        return _view(self._theirs(identity, Operation.READ_JOBS, file_id))

    async def receive(self, identity: Identity) -> Incoming:
        """Begin to take in a file; see `keep`. What comes of it is discarded by the caller."""
        visible(identity, Operation.CHANGE_JOBS)
        return await self._files.receive()

    @audited("files.add", subject=lambda file: file.id)
    async def keep(
        self,
        identity: Identity,
        filename: str,
        purpose: str,
        incoming: Incoming,
        *,
        expires_in_s: float | None = None,
    ) -> FileView:
        """Keep what came in whole, under a new id, and for `expires_in_s` alone if so wanted."""
        parsed = Purpose.parse(purpose)
        kept = await incoming.keep(filename=filename, purpose=parsed, actor=identity.key_id, expires_in_s=expires_in_s)
        return _view(kept)

    async def content(self, identity: Identity, file_id: str) -> Content:
        """What is in a file; NotFound when there is none."""
        file = self._theirs(identity, Operation.READ_JOBS, file_id)
        return Content(_view(file), _pieces(self._files.path(file.id)))

    @audited("files.remove")
    async def remove(self, identity: Identity, file_id: str) -> None:
        """Delete a file; Conflict while a job that is not over has it."""
        file = self._theirs(identity, Operation.CHANGE_JOBS, file_id)
        used = reader(self._jobs.all(), file.id)
        if used is not None:
            raise Conflict(f"the job {used.id} is not over and has the file {file.id}; wait for it, or cancel it")
        await self._files.remove(file.id, actor=identity.key_id)

    def _theirs(self, identity: Identity, operation: Operation, file_id: str) -> File:
        visible(identity, operation)
        if identity.models and not any(file.id == file_id and _is_theirs(identity, file) for file in self._files.all()):
            raise _forbidden(identity)
        return self._files.show(file_id)


def check_files(identity: Identity, files: Files, spec: JobSpec) -> None:
    """Forbidden when a job would read a file that its submitter may not."""
    readable = named(spec)
    for file in files.all():
        if file.id.encode() in readable and not _is_theirs(identity, file):
            raise _forbidden(identity)


def _is_theirs(identity: Identity, file: File) -> bool:
    return not identity.models or file.created_by == (identity.on_behalf_of or identity.key_id)


def _forbidden(identity: Identity) -> Forbidden:
    return Forbidden(
        f"key {identity.name!r} is for the models {', '.join(identity.models)} and the files it added itself"
    )


def _view(file: File) -> FileView:
    return FileView(
        id=file.id,
        bytes=file.size_bytes,
        created_at=int(file.created_at),
        expires_at=None if file.expires_at is None else int(file.expires_at),
        filename=file.filename,
        purpose=file.purpose,
        sha256=file.sha256,
    )


async def _pieces(path: Path) -> AsyncGenerator[bytes, None]:
    with await asyncio.to_thread(path.open, "rb") as opened:
        while piece := await asyncio.to_thread(opened.read, _PIECE_BYTES):
            yield piece
