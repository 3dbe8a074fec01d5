"""What a file or folder holds: its size, its age, its hash."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from moc.models.sources.background import Job
from moc.models.sources.failure import failed

CHUNK_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class Measure:
    """Bytes in all files together, and when the last of them was changed."""

    size_bytes: int
    modified_at: float


def measure(path: Path) -> Measure:
    """Measure a file, or a folder by the files in it; OSError, or LoadFailed for what is neither."""
    stats = [_stat(member) for _, member in members(path)]
    return Measure(sum(s.st_size for s in stats), max(s.st_mtime for s in stats))


def hash_of(path: Path, job: Job) -> tuple[str, Measure]:
    """The SHA-256 of a file's content, or of a folder's listing, with its measure.

    A folder's listing is what `sha256sum --zero` prints for its files, in the order of their names as bytes.
    LoadFailed when something is changing it meanwhile.
    """
    before = measure(path)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        job.step(done, before.size_bytes)

    if path.is_dir():
        listing = hashlib.sha256()
        for name, member in members(path):
            listing.update(_file_hash(member, advance).encode() + b"  " + name + b"\0")
        digest = listing.hexdigest()
    else:
        digest = _file_hash(path, advance)
    if measure(path) != before:
        raise failed(f"{path} is being changed; try again when it is whole")
    return digest, before


def members(path: Path) -> list[tuple[bytes, Path]]:
    """The files of a folder with their names relative to it, sorted; a file is its own only member."""
    if not path.is_dir():
        return [(os.fsencode(path.name), path)]
    found = sorted((os.fsencode(file.relative_to(path).as_posix()), file) for file in _walk(path))
    if not found:
        raise failed(f"there are no files in {path}")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder, onerror=_raise):
        for name in folders:
            if (Path(where) / name).is_symlink():
                raise failed(f"{Path(where) / name} is a link to a folder; copy the folder, or name it directly")
        for name in names:
            yield Path(where) / name


def _raise(error: OSError) -> None:
    raise error


def _stat(path: Path) -> os.stat_result:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise failed(f"{path} is not a file")
    return found


def _file_hash(path: Path, advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()
