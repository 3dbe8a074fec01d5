"""Programs of jobs as processes of this host, each looked after by a supervisor that outlives the coordinator."""

import asyncio
import contextlib
import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import psutil

from moc.kernel.errors import Unavailable
from moc.learning.job import JobType
from moc.learning.ports import Ending, News, Order, Started
from moc.workers.process import Process, clean_environment, kill_left_behind, kill_strays
from moc.workers.trainers.news import read_news
from moc.workers.trainers.priority import gpu_share, thread_limit
from moc.workers.trainers.supervisor import (
    CLAIM_FILE,
    EXIT_FILE,
    EXIT_FILE_BYTES,
    LAUNCH_FILE,
    LOG_FILE,
    NEW_EXIT_FILE,
    OLDER_LOG_FILE,
)

MODULES = {
    JobType.SUPERVISED: "training",
    JobType.DPO: "training",
    JobType.EVALUATE: "evaluate",
    JobType.TUNE: "tune",
}
"""The programs of ours, in this package."""

PROGRESS_FILE = "progress.jsonl"
TASK_FILE = "task.json"
CHECKPOINTS, OUTPUT = "checkpoints", "output"
ROOM_BYTES = 64 * 1024
"""With less left on its disk a program may not even say what it lacked."""

ENDING_LOG_BYTES = 16 * 1024
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_PYTHON = (sys.executable, "-P", "-u", "-m")
_PACKAGE = "moc.workers.trainers"


class LocalPrograms:
    """Implements `Programs`. A program nobody claims for `orphan_grace_s` is asked to end, and killed `grace_s` later.

    It may compute with `threads` threads, None for half of the cores.
    """

    def __init__(self, *, orphan_grace_s: float, grace_s: float, threads: int | None) -> None:
        self._orphan_grace_s = orphan_grace_s
        self._grace_s = grace_s
        self._threads = threads

    def adjust(self, *, grace_s: float) -> None:
        """Give programs that start from now on so long to end."""
        self._grace_s = grace_s

    async def start(self, order: Order) -> Started:
        """Write down what it is to do and start its supervisor; see `Programs.start`."""
        try:
            return await asyncio.to_thread(self._start, order)
        except OSError as error:
            if error.errno in _FULL:
                raise
            raise Unavailable(f"no program can be started for job {order.job_id}: {error.strerror or error}") from None

    async def find(self, folder: Path) -> Started | None:
        """See `Programs.find`."""
        found = await asyncio.to_thread(Process.search, folder)
        return None if found is None else Started(found.pid, found.started_at)

    async def look(self, folder: Path, process: Started) -> Ending | None:
        """See `Programs.look`."""
        return await asyncio.to_thread(self._look, folder, process)

    async def claim(self, folder: Path) -> None:
        """Touch the file its supervisor looks at; no error when there is none."""
        with contextlib.suppress(OSError):
            os.utime(folder / CLAIM_FILE)

    async def news(self, folder: Path, after_bytes: int) -> News:
        """See `Programs.news`; each call reads a bounded piece."""
        return await asyncio.to_thread(_news, folder, after_bytes)

    async def interrupt(self, folder: Path, process: Started) -> None:
        """SIGTERM, which the supervisor passes on."""
        found = Process.known(process.pid, process.process_started_at)
        if found is not None:
            found.terminate()

    def halt(self, process: Started) -> None:
        """SIGSTOP all but the supervisor."""
        _signal_program(process, signal.SIGSTOP)

    def proceed(self, process: Started) -> None:
        """SIGCONT the same."""
        _signal_program(process, signal.SIGCONT)

    async def kill(self, folder: Path, process: Started) -> None:
        """See `Programs.kill`."""
        await asyncio.to_thread(_kill, folder, process)

    def memory_bytes(self, process: Started) -> int:
        """See `Programs.memory_bytes`."""
        found = Process.known(process.pid, process.process_started_at)
        return 0 if found is None else found.memory_bytes()

    def log(self, folder: Path, *, tail_bytes: int) -> str:
        """See `Programs.log`."""
        tail = b""
        for name in (LOG_FILE, OLDER_LOG_FILE):
            with contextlib.suppress(OSError), (folder / name).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - max(0, tail_bytes - len(tail))))
                tail = file.read() + tail
        return tail[-tail_bytes:].decode("utf-8", "replace")

    def _start(self, order: Order) -> Started:
        folder = order.folder / "attempts" / str(order.attempt)
        for path in (order.folder, folder.parent, folder, order.folder / CHECKPOINTS, order.folder / OUTPUT):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        told = {"type": order.type, "job": order.job_id, "attempt": order.attempt, "seed": order.seed}
        task = {**told, "device": order.device, "bytes": order.bytes, **order.task}
        launch = {
            "command": order.command or (*_PYTHON, f"{_PACKAGE}.{MODULES[JobType(order.type)]}"),
            "environment": self._environment(order, folder),
            "workdir": order.workdir or str(order.folder),
            "orphan_grace_s": self._orphan_grace_s,
            "grace_s": self._grace_s,
        }
        _write(folder / TASK_FILE, json.dumps(task))
        _write(folder / LAUNCH_FILE, json.dumps(launch))
        _write(folder / NEW_EXIT_FILE, " " * EXIT_FILE_BYTES)
        (folder / PROGRESS_FILE).touch(0o600)
        (folder / CLAIM_FILE).touch(0o600)
        return _spawn(folder)

    def _environment(self, order: Order, folder: Path) -> dict[str, str]:
        threads = str(thread_limit(self._threads))
        files = {
            f"MOC_{name.upper()}": str(order.task[name])
            for name in ("training_file", "validation_file")
            if order.task.get(name)
        }
        return {
            **clean_environment(order.gpus),
            **gpu_share(order.gpus),
            "OMP_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            **order.environment,
            **files,
            "MOC_JOB_ID": order.job_id,
            "MOC_JOB_ATTEMPT": str(order.attempt),
            "MOC_JOB_FOLDER": str(order.folder),
            "MOC_TASK_FILE": str(folder / TASK_FILE),
            "MOC_CHECKPOINT_FOLDER": str(order.folder / CHECKPOINTS),
            "MOC_OUTPUT_FOLDER": str(order.folder / OUTPUT),
            "MOC_PROGRESS_FILE": str(folder / PROGRESS_FILE),
            "MOC_SEED": str(order.seed),
            "MOC_DEVICE": order.device,
            "MOC_MEMORY_BYTES": str(order.bytes),
            "MOC_THREADS": threads,
        }

    def _look(self, folder: Path, process: Started) -> Ending | None:
        if Process.known(process.pid, process.process_started_at) is not None:
            return None
        if not (folder / EXIT_FILE).exists():
            _close(folder)
            _kill(folder, process)
        log = self.log(folder, tail_bytes=ENDING_LOG_BYTES)
        return Ending(_status(folder), log, disk_full=_is_full(folder))


def _spawn(folder: Path) -> Started:
    """Start the supervisor. It is to outlive this process, so nothing here waits for it by itself."""
    pid = os.posix_spawn(
        sys.executable,
        [*_PYTHON, f"{_PACKAGE}.supervisor", str(folder)],
        clean_environment(()),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(folder / LOG_FILE), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    return Started(pid, Process(psutil.Process(pid)).started_at)


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < ROOM_BYTES
    except OSError:  # somebody deleted it
        return False


def _close(folder: Path) -> None:
    """Have no supervisor start in this folder any more: one that was asked for may come late."""
    with contextlib.suppress(OSError):  # it is there already, or there is no room for it
        descriptor = os.open(folder / EXIT_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.close(descriptor)


def _kill(folder: Path, process: Started) -> None:
    """Kill a supervisor, what it looks after, and what was left by both; Unavailable when they do not die."""
    found = Process.known(process.pid, process.process_started_at) or Process.search(folder)
    dead = found is None or found.kill_tree()
    if process.pid > 0:
        dead = kill_left_behind(process.pid, process.process_started_at) and dead
    if not (kill_strays("MOC_TASK_FILE", str(folder / TASK_FILE)) and dead):
        raise Unavailable(f"process {process.pid} of a job was sent SIGKILL and does not end")


def _status(folder: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        match json.loads((folder / EXIT_FILE).read_bytes()):
            case {"status": int(status)}:
                return status
    return None


def _news(folder: Path, after_bytes: int) -> News:
    over = (folder / EXIT_FILE).exists()  # looked at first: what is written by then is all there will be
    try:
        with (folder / PROGRESS_FILE).open("rb") as file:
            return read_news(file, after_bytes, over=over)
    except OSError:
        return News((), after_bytes)


def _signal_program(process: Started, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        found = psutil.Process(process.pid)
        if Process.known(process.pid, process.process_started_at) is not None:
            for each in found.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.send_signal(number)


def _write(path: Path, content: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(content)
