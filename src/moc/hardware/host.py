"""Main memory as a device: what the machine, or the container this runs in, has of it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from moc.gpu.device import Device, DeviceReading

HOST = "host"
KIBIBYTE = 1024


@dataclass(frozen=True, slots=True)
class _Memory:
    capacity_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class _Version:
    """How one version of control groups calls its files; `of` is the controller in /proc/self/cgroup."""

    of: str
    folders: tuple[str, ...]
    limit: str
    usage: str
    prefix: str
    """Before the names in `memory.stat` that count a group with all groups below it."""


_VERSIONS = (
    _Version("", (".", "unified"), "memory.max", "memory.current", ""),
    _Version("memory", ("memory",), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)


class HostMemory:
    """The device `host`: capacity is the tightest control-group limit above this process, else all memory there is.

    In use is what nobody could get by dropping caches; files that are mapped count, as a model's weights
    often are one. `pids` gives the processes to measure, each with all it started: in shares of the pages
    that several have (PSS) where the system tells them, else what is resident. It is called in the thread
    that reads. `proc` and `cgroups` are where the system shows these.
    """

    kind = HOST

    def __init__(
        self,
        pids: Callable[[], Iterable[int]],
        *,
        proc: Path = Path("/proc"),
        cgroups: Path = Path("/sys/fs/cgroup"),
    ) -> None:
        self._pids = pids
        self._proc = proc
        self._cgroups = cgroups

    def read(self) -> list[DeviceReading]:
        """The one device there is; see `DeviceSource.read`."""
        machine = self._machine()
        groups = (group for group in self._groups() if group.capacity_bytes < machine.capacity_bytes)
        memory = min(groups, key=lambda group: group.capacity_bytes, default=machine)
        device = Device(id=HOST, kind=HOST, name="main memory", capacity_bytes=memory.capacity_bytes)
        processes = {pid: size for root in self._pids() for pid, size in _tree_bytes(root)}
        return [DeviceReading(device=device, used_bytes=memory.used_bytes, processes=processes)]

    def close(self) -> None:
        """Nothing is held."""

    def _machine(self) -> _Memory:
        try:
            facts = _pairs(self._proc / "meminfo")
            total, available = facts["MemTotal:"] * KIBIBYTE, facts["MemAvailable:"] * KIBIBYTE
        except (OSError, KeyError):  # not Linux
            memory = psutil.virtual_memory()
            return _Memory(memory.total, memory.total - memory.available)
        mapped = max(0, facts.get("Mapped:", 0) - facts.get("Shmem:", 0)) * KIBIBYTE
        return _Memory(total, min(total, total - available + mapped))

    def _groups(self) -> Iterator[_Memory]:
        """The control groups with a limit that this process is in, its own and those above."""
        with contextlib.suppress(OSError):
            for line in (self._proc / "self" / "cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                for version in _VERSIONS:
                    if version.of in controllers.split(","):
                        yield from self._above(version, path)

    def _above(self, version: _Version, path: str) -> Iterator[_Memory]:
        own = PurePosixPath(path.lstrip("/"))
        for folder in version.folders:
            for group in (own, *own.parents):
                # A container may see the path its host has for it, and its own group at the top.
                place = self._cgroups / folder / group
                with contextlib.suppress(OSError, ValueError, KeyError):
                    limit = int((place / version.limit).read_text())  # `max` is no number, and no limit
                    yield _Memory(limit, _group_used(place, version, limit))


def _group_used(place: Path, version: _Version, limit_bytes: int) -> int:
    used = int((place / version.usage).read_text())
    facts = _pairs(place / "memory.stat")
    prefix = version.prefix
    caches = facts.get(f"{prefix}inactive_file", 0) + facts.get(f"{prefix}active_file", 0)
    mapped = facts.get(f"{prefix}mapped_file", facts.get("file_mapped", 0)) - facts.get(f"{prefix}shmem", 0)
    return max(0, min(limit_bytes, used - caches + max(0, mapped)))


def _pairs(path: Path) -> dict[str, int]:
    """The first two words of each line."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}


def _tree_bytes(root: int) -> Iterator[tuple[int, int]]:
    """The process and all below it, each with the memory it holds; nothing for what is gone."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(root)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error, OSError):
                yield each.pid, _process_bytes(each)


def _process_bytes(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    return int(getattr(full, "pss", 0) or full.rss)
