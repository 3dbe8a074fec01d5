"""One worker's process and everything it started: alive, measured, ended."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import psutil

from moc.cluster.holder import started
from moc.workers.wire import LISTENER

KEPT = frozenset(
    {
        "HIP_VISIBLE_DEVICES",
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "HOME",
        "LANG",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "MKL_NUM_THREADS",
        "NVIDIA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "PATH",
        "PYTHONPATH",
        "ROCR_VISIBLE_DEVICES",
        "TMPDIR",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
        "XDG_CACHE_HOME",
    }
)
"""The environment variables a worker gets to see, with `LC_*`; secrets of the coordinator are not among them."""

AT_WORK = (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
KILL_TIMEOUT_S = 10.0
LOOK_S = 0.1
REAP_S = 1.0
"""How long a zombie may take to be reaped: of one with threads some may still end, and hold its memory."""


def clean_environment(gpus: Sequence[str]) -> dict[str, str]:
    """What a worker is given of this process's environment, and the GPUs it may see, as CUDA calls them.

    And what keeps its threads from spinning, and Python from writing into a model's folder.
    """
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("LC_")}
    seen = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    return {**kept, **seen, "OMP_WAIT_POLICY": "passive", "PYTHONDONTWRITEBYTECODE": "1"}


class Activity(NamedTuple):
    """Whether a process is running or waits for a processor or a disk, and the processor seconds it has used."""

    at_work: bool
    cpu_s: float


class Process:
    """A worker process, leader of its own session; ours or one that an earlier coordinator started.

    Methods that wait block; call them in a thread, `activity` aside.
    """

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._status: int | None = None
        self._offspring: dict[int, psutil.Process] = {}
        self.pid = process.pid
        self.started_at = _began(process.pid)

    @classmethod
    def spawn(cls, folder: Path, log: Path, *, listener: int, gpus: Sequence[str] = ()) -> "Process":
        """Start the worker of `folder` with `listener` as its descriptor 3; OSError when the system has no room.

        It sees no GPU but `gpus`. It is to outlive this process, so nothing here waits for it by itself.
        """
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-u", "-m", "moc.workers.child", str(folder)],
            clean_environment(gpus),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, listener, LISTENER),
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        return cls(psutil.Process(pid))

    @classmethod
    def find(cls, pid: int, folder: Path) -> "Process | None":
        """The living worker of `folder` if `pid` is it, whoever uses that number now."""
        try:
            process = psutil.Process(pid)
            if str(folder) not in process.cmdline() or process.status() == psutil.STATUS_ZOMBIE:
                return None
            return cls(process)
        except psutil.Error:
            return None

    @classmethod
    def known(cls, pid: int, started_at: float) -> "Process | None":
        """The process of that number if it is the one that started then and has not ended; a dead child is reaped."""
        try:
            process = cls(psutil.Process(pid)) if pid > 0 else None
        except psutil.Error:
            return None
        if process is None or process.started_at != started_at:
            return None
        if not process.is_alive():
            process.wait(0)
            return None
        return process

    @classmethod
    def search(cls, folder: Path) -> "Process | None":
        """The living worker of `folder` among all processes: it may have been killed before it wrote its pid."""
        for pid in psutil.pids():
            found = cls.find(pid, folder)
            if found is not None:
                return found
        return None

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return _is_alive(self._process)

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is dead, no longer than `timeout_s`; whether it is. A child of ours is reaped.

        Others may stay zombies, where the first process of a container reaps nothing: they are dead, too.
        """
        over_at, given_up_at = time.monotonic() + timeout_s, float("inf")
        while True:
            left_s = over_at - time.monotonic()
            try:
                status = cast("int | None", self._process.wait(max(0.0, min(left_s, LOOK_S))))
            except psutil.TimeoutExpired:
                dead, now = not self.is_alive(), time.monotonic()
                given_up_at = min(given_up_at, now + REAP_S) if dead else float("inf")
                if now >= min(over_at, given_up_at):
                    return dead
            except psutil.NoSuchProcess:
                return True
            else:
                self._status = self._status if status is None else int(status)  # None: not a child of ours
                return True

    def terminate(self) -> None:
        """Send SIGTERM to it alone."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.terminate()

    def kill_tree(self, timeout_s: float = KILL_TIMEOUT_S) -> bool:
        """SIGKILL it and all it started, in its session or below it; whether all are dead within `timeout_s`."""
        self.note_offspring()
        doomed = [*self._offspring.values(), *session_of(self.pid, self.started_at)]
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.kill()
        return _kill(doomed, timeout_s) and self.wait(timeout_s)

    def memory_bytes(self) -> int:
        """What the whole tree holds, shared pages divided among their users where the system can tell."""
        self.note_offspring()
        total = 0
        for process in [self._process, *self._offspring.values()]:
            with contextlib.suppress(psutil.Error, OSError):
                full = process.memory_full_info()
                total += getattr(full, "pss", 0) or full.rss
        return total

    def activity(self) -> Activity:
        """What it does right now."""
        try:
            with self._process.oneshot():
                used = self._process.cpu_times()
                return Activity(self._process.status() in AT_WORK, used.user + used.system)
        except psutil.Error:
            return Activity(False, 0.0)

    def tree(self) -> frozenset[int]:
        """The process ids of the whole tree, as it was seen last."""
        return frozenset({self.pid, *self._offspring})

    def how_it_ended(self) -> str:
        """In words: `was killed by SIGKILL`, `ended with status 1`."""
        return ending(self._status)

    def note_offspring(self) -> None:
        """Remember what it started, so that it is found when it is nobody's child any more."""
        alive = {pid: process for pid, process in self._offspring.items() if process.is_running()}
        with contextlib.suppress(psutil.Error):
            alive.update((process.pid, process) for process in self._process.children(recursive=True))
        self._offspring = alive


def ending(status: int | None) -> str:
    """How a process ended, in words, by its exit status; None when that is not known."""
    if status is None:
        return "ended"
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def session_of(leader: int, started_at: float | None) -> list[psutil.Process]:
    """The processes of the session `leader` began, other than itself.

    A number is not given out again while a session bears it, so if its bearer is alive it must be the one
    that started at `started_at`; otherwise the session is not the one meant, and nothing is returned.
    """
    try:
        if _began(leader) != started_at:
            return []
    except psutil.Error:
        pass
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if pid != leader and os.getsid(pid) == leader:
                members.append(psutil.Process(pid))
    return members


def kill_left_behind(leader: int, started_at: float | None) -> bool:
    """SIGKILL what a dead worker's session still holds; whether it is dead within KILL_TIMEOUT_S."""
    return _kill(session_of(leader, started_at), KILL_TIMEOUT_S)


def kill_strays(name: str, value: str) -> bool:
    """SIGKILL all that were started with a variable `name` of that value, wherever they went; whether all are dead."""
    strays = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name) == value:
                strays.append(process)
    return _kill(strays, KILL_TIMEOUT_S)


def _kill(processes: list[psutil.Process], timeout_s: float) -> bool:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    over_at = time.monotonic() + timeout_s
    _, left = psutil.wait_procs(processes, min(REAP_S, timeout_s))
    while (left := [process for process in left if _is_alive(process)]) and time.monotonic() < over_at:
        _, left = psutil.wait_procs(left, LOOK_S)
    return not left


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _began(pid: int) -> float:
    """When a process started, in seconds since the system did: no change of the wall clock moves that."""
    return float(started(pid)) / os.sysconf("SC_CLK_TCK")
