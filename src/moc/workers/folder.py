"""A worker's private folder: what it is started with, its socket, its log."""

import json
import os
import secrets
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOG_LINES = 200
LOG_TAIL_BYTES = 256 * 1024
SOCKET_PATH_MAX = 100
"""What the systems we run on allow in the name of a Unix socket, less some air."""


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder at `path`; every file in it can be read by its owner alone."""

    path: Path

    @classmethod
    def place(cls, run_dir: Path, worker_id: str) -> "Folder":
        """Where the folder of a worker goes: below `run_dir`, or below the temporary folder if that is too deep."""
        folder = cls(run_dir / worker_id)
        if len(os.fsencode(folder.socket_path)) <= SOCKET_PATH_MAX:
            return folder
        return cls(Path(tempfile.gettempdir()) / f"moc-{worker_id}")

    @property
    def socket_path(self) -> str:
        return str(self.path / "worker.sock")

    @property
    def log(self) -> Path:
        return self.path / "log"

    def create(self, launch: dict[str, Any]) -> tuple[str, socket.socket]:
        """Make it, with a new token and a listening socket; FileExistsError when somebody else did."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700)
        token = secrets.token_hex(32)
        self._write("token", token)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(self.socket_path)
            listener.listen(16)
            self._write("launch.json", json.dumps(launch))
        except BaseException:
            listener.close()
            raise
        return token, listener

    def token(self) -> str | None:
        """The token its worker knows, None when it was never written."""
        try:
            return (self.path / "token").read_text("ascii")
        except OSError:
            return None

    def pid(self) -> int | None:
        """The process id its worker wrote down, None when there is none."""
        try:
            return int((self.path / "pid").read_text("ascii"))
        except (OSError, ValueError):
            return None

    def log_tail(self) -> list[str]:
        """The last lines the worker wrote on stdout and stderr."""
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(0, size - LOG_TAIL_BYTES))
                return log.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
        except OSError:
            return []

    def remove(self) -> None:
        """Delete it; no error when it is gone."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _write(self, name: str, text: str) -> None:
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
