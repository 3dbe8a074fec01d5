"""Files that are sent along with a request."""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from moc.kernel.errors import MocError

if TYPE_CHECKING:
    from moc.client import Client


class Uploads:
    """What was sent within a `with` is taken back when that ends in an error; the coordinator keeps what a job uses."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._ids: list[str] = []

    def __enter__(self) -> "Uploads":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file_id in self._ids if error is not None else ():
            with contextlib.suppress(MocError):
                self._client.files.remove(file_id)

    def add(self, path: Path, purpose: str = "fine-tune") -> str:
        """Send a file; its id."""
        self._ids.append(self._client.files.add(path, purpose=purpose)["id"])
        return self._ids[-1]
