"""The items of an evaluation on the disk, one JSON line each."""

import os
import threading
from collections.abc import Collection
from pathlib import Path

import msgspec

from moc.learning.scoring import Record

_decode = msgspec.json.Decoder(Record).decode
_encode = msgspec.json.Encoder().encode


class Records:
    """What came of each item. A line that was cut off by a crash counts for nothing, and its item is asked again.

    So is one that another version answered than those of the `digests`, where these are known.
    """

    def __init__(self, path: Path, digests: Collection[str] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()
        self._records: dict[str, dict[str, Record]] = {}
        end = 0
        with path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                record = _decode(line)
                if not (digests and record.digest) or record.digest in digests:
                    self._take(record)
        os.ftruncate(self._file, end)

    def of(self, task: str) -> dict[str, Record]:
        """The items of a task that came to something, by their ids."""
        return {record_id: record for record_id, record in self._records.get(task, {}).items() if not record.error}

    def __len__(self) -> int:
        return sum(map(len, self._records.values()))

    @property
    def digests(self) -> set[str]:
        """Of the versions that answered."""
        return {record.digest for found in self._records.values() for record in found.values() if record.digest}

    def add(self, record: Record) -> None:
        """One more; it is on the disk when this returns, in place of what there was of that item."""
        with self._lock:
            self._take(record)
            line = _encode(record) + b"\n"
            if os.write(self._file, line) < len(line):
                raise OSError(28, "the disk took only a part of a record")
            os.fsync(self._file)

    def close(self) -> None:
        """Let the file go; idempotent."""
        handle, self._file = self._file, -1
        if handle >= 0:
            os.close(handle)

    def _take(self, record: Record) -> None:
        self._records.setdefault(record.task, {})[record.id] = record
