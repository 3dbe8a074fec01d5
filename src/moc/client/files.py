"""The files that jobs read."""

from pathlib import Path

from moc.client import file_calls
from moc.client.connection import AsyncConnection, Connection
from moc.client.file_views import FileView
from moc.client.views import Page


class AsyncFiles:
    """Files kept by the coordinator."""

    def __init__(self, line: AsyncConnection) -> None:
        self._line = line

    async def list(self, *, purpose: str | None = None, after: str | None = None, limit: int = 100) -> Page[FileView]:
        """The files there are, oldest first; of one purpose if it is given."""
        return await self._line.send(file_calls.list_files(purpose, after, limit))

    async def show(self, file_id: str) -> FileView:
        """One file; NotFound when there is none."""
        return await self._line.send(file_calls.show_file(file_id))

    async def add(self, path: str | Path, *, purpose: str = "fine-tune", filename: str | None = None) -> FileView:
        """Send a file, read piece by piece; `purpose` is `fine-tune`, `evals` or `user_data`."""
        return await self._line.send(file_calls.add_file(Path(path), purpose, filename))

    async def content(self, file_id: str) -> bytes:
        """What is in a file."""
        return await self._line.send(file_calls.file_content(file_id))

    async def remove(self, file_id: str) -> None:
        """Delete a file; Conflict while a job that is not over has it."""
        await self._line.send(file_calls.remove_file(file_id))


class Files:
    """Files kept by the coordinator."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def list(self, *, purpose: str | None = None, after: str | None = None, limit: int = 100) -> Page[FileView]:
        """The files there are, oldest first; of one purpose if it is given."""
        return self._line.send(file_calls.list_files(purpose, after, limit))

    def show(self, file_id: str) -> FileView:
        """One file; NotFound when there is none."""
        return self._line.send(file_calls.show_file(file_id))

    def add(self, path: str | Path, *, purpose: str = "fine-tune", filename: str | None = None) -> FileView:
        """Send a file, read piece by piece; `purpose` is `fine-tune`, `evals` or `user_data`."""
        return self._line.send(file_calls.add_file(Path(path), purpose, filename))

    def content(self, file_id: str) -> bytes:
        """What is in a file."""
        return self._line.send(file_calls.file_content(file_id))

    def remove(self, file_id: str) -> None:
        """Delete a file; Conflict while a job that is not over has it."""
        self._line.send(file_calls.remove_file(file_id))
