"""How much of the disk jobs and files may take, and do."""

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from moc.kernel.errors import NoCapacity
from moc.kernel.units import Bytes

FRESH_S = 5.0
TOLERANCE = 1.1
"""By how much jobs that go on may exceed what there is once the one that grew most was ended."""


class DiskQuota:
    """What all in `folders` may take together. Looking takes as long as there are files: do it in threads."""

    def __init__(self, folders: Sequence[Path], *, limit_bytes: int) -> None:
        self._folders = tuple(folders)
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._looked_at = float("-inf")
        self._began_bytes: dict[Path, int] = {}
        self._culprit: Path | None = None
        self._patience_bytes = 0.0
        self._lock = threading.Lock()

    def adjust(self, *, limit_bytes: int) -> None:
        """Allow so much from now on."""
        self._limit_bytes = limit_bytes
        self._looked_at = float("-inf")
        self._patience_bytes = 0.0

    def begin(self, folder: Path) -> None:
        """A job that works in `folder` runs from now on."""
        self._began_bytes[folder] = _size(folder)

    def end(self, folder: Path) -> None:
        """It does no more. What it left stays, and is no reason to end the others."""
        self._began_bytes.pop(folder, None)
        if folder == self._culprit:
            self._culprit, self._patience_bytes = None, self._used_bytes * TOLERANCE

    def culprit(self) -> Path | None:
        """Who is to end when there is too much: of the folders of jobs that run, the one that grew most."""
        if self.room():
            self._culprit, self._patience_bytes = None, 0.0
        elif self._culprit is None and self._used_bytes >= self._patience_bytes:
            grown = {folder: _size(folder) - began for folder, began in list(self._began_bytes.items())}
            most = max(grown, key=lambda folder: grown[folder], default=None)
            self._culprit = most if most is not None and grown[most] > 0 else None
        return self._culprit

    def room(self) -> int:
        """Bytes that may still be written, 0 when there is too much already; if there is room, as of seconds ago."""
        with self._lock:
            return self._look()

    def take(self, size_bytes: int) -> None:
        """So much is about to be written, and counts at once; NoCapacity when there is no room for it, or for any."""
        needed = max(1, size_bytes)
        with self._lock:
            if self._look() < needed:
                self._looked_at = float("-inf")
                if self._look() < needed:
                    raise self._full()
            self._used_bytes += size_bytes

    def check(self) -> None:
        """NoCapacity when all that is allowed is used up."""
        if not self.room():
            raise self._full()

    def _look(self) -> int:
        now = time.monotonic()
        if now - self._looked_at >= FRESH_S or self._used_bytes >= self._limit_bytes:
            self._used_bytes = sum(_size(folder) for folder in self._folders)
            self._looked_at = now
        return max(0, self._limit_bytes - self._used_bytes)

    def _full(self) -> NoCapacity:
        return NoCapacity(
            f"jobs and files take {Bytes(self._used_bytes)} of the disk, and learning.disk_quota allows "
            f"{Bytes(self._limit_bytes)}; remove some with `moc files remove` or `moc jobs remove`, or raise it",
            details={"reason": "DiskFull"},
        )


def _size(folder: Path) -> int:
    """What a folder takes; what has two names counts once, what vanishes meanwhile does not."""
    total, seen = 0, set()
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(place, name))
            except OSError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total
