"""A file of somebody else's making, read forward and never believed."""

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

READS_MAX = 2_000_000
"""Reads of one file before it is refused: twice those of the largest vocabularies there are, a second or two."""

BUFFER_BYTES = 256 * 1024
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class BadHeader(Exception):
    """A file is not what it claims to be. The message says which file, and what is wrong with it."""


class Reader:
    """Reads and skips; every length is held against what is left of the file before anything is allocated.

    All methods raise BadHeader when the file ends too soon or has been read `reads_max` times.
    """

    def __init__(self, file: BinaryIO, name: str, size: int, *, reads_max: int = READS_MAX) -> None:
        self.name = name
        self.size = size
        self.at = 0
        self._file = file
        self._reads = 0
        self._reads_max = reads_max

    @property
    def left(self) -> int:
        """Bytes from here to the end of the file."""
        return self.size - self.at

    def u32(self) -> int:
        """The next four bytes, little-endian."""
        number: int = _U32.unpack(self.take(4))[0]
        return number

    def u64(self) -> int:
        """The next eight bytes, little-endian."""
        number: int = _U64.unpack(self.take(8))[0]
        return number

    def take(self, length: int, *, limit: int = 4096) -> bytes:
        """The next `length` bytes, of which there may be `limit`."""
        if length > limit:
            raise self.bad(f"a length of {length} where at most {limit} can be")
        self._step(length)
        found = self._file.read(length)
        if len(found) != length:
            raise self.bad("the end came too soon")
        return found

    def skip(self, length: int) -> None:
        """Go on `length` bytes further."""
        self._step(length)
        self._file.seek(length, os.SEEK_CUR)

    def skip_texts(self, count: int) -> None:
        """Go on over `count` texts, each behind its length in eight bytes; many at a time, for there are many."""
        self._count(count)
        window, offset, at = b"", 0, self.at
        for _ in range(count):
            if offset + _U64.size > len(window):
                if at + _U64.size > self.size:
                    raise self.bad("texts go on beyond the end")
                self._file.seek(at)
                window, offset = self._file.read(BUFFER_BYTES), 0
            length = _U64.size + _U64.unpack_from(window, offset)[0]
            offset += length
            at += length
        if at > self.size:
            raise self.bad("texts go on beyond the end")
        self._file.seek(at)
        self.at = at

    def bad(self, what: str) -> BadHeader:
        """The error to raise for what was found here."""
        return BadHeader(f"{self.name}: {what}, at byte {self.at}")

    def _count(self, reads: int) -> None:
        self._reads += reads
        if self._reads > self._reads_max:
            raise self.bad(f"more than {self._reads_max} parts")

    def _step(self, length: int) -> None:
        self._count(1)
        if length > self.left:
            raise self.bad(f"{length} bytes are claimed and {self.left} are left")
        self.at += length


@contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """Open a regular file at its beginning; BadHeader for anything else, such as a pipe, OSError as from `open`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=BUFFER_BYTES) as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BadHeader(f"{path.name}: not a regular file")
        yield Reader(file, path.name, found.st_size)
