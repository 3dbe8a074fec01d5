"""The name of a process that holds a seat, by which another one can tell that it is dead."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

_PROC = Path("/proc")
_BURIED = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}


def boot_id() -> str:
    """The name of the running boot of this host, empty where the system gives none."""
    return _read(_PROC / "sys/kernel/random/boot_id").strip()


@dataclass(frozen=True, slots=True)
class Holder:
    """One process of one boot of one host. `space` is its process-id namespace (a container has its own),
    `started` when it began, in the system's own terms."""

    host: str
    boot: str
    space: str
    pid: int
    started: str

    @classmethod
    def here(cls) -> "Holder":
        """The calling process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> "Holder":
        """The process `pid` of this host; psutil.NoSuchProcess when there is none."""
        return cls(*_place(), pid, started(pid))

    @classmethod
    def parse(cls, text: str) -> "Holder | None":
        """The holder that prints as `text`, None when none does."""
        parts = text.split("/")
        if len(parts) != 5 or not parts[3].isdecimal():
            return None
        host, boot, space, pid, started = parts
        return cls(host, boot, space, int(pid), started)

    def __str__(self) -> str:
        return f"{self.host}/{self.boot}/{self.space}/{self.pid}/{self.started}"

    def is_near(self) -> bool:
        """Whether this process can see it, dead or alive."""
        return (self.host, self.boot, self.space) == _place()

    def is_dead(self) -> bool:
        """Whether it is surely gone: near, and its pid free or another process's."""
        return self.is_near() and not _runs(self.pid, self.started)


def _place() -> tuple[str, str, str]:
    try:
        space = os.readlink(_PROC / "self/ns/pid").strip("pid:[]")
    except OSError:
        space = ""
    return platform.node().replace("/", "-"), boot_id(), space


def _runs(pid: int, since: str) -> bool:
    try:
        return psutil.Process(pid).status() not in _BURIED and started(pid) == since
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def started(pid: int) -> str:
    """When a process of this boot began; psutil.NoSuchProcess when there is none.

    It is the kernel's own count of ticks, where there is one: unlike a time of day it does not follow the wall clock.
    """
    fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    return fields[19] if fields else str(psutil.Process(pid).create_time())


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
