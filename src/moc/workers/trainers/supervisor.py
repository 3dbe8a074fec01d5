"""Looks after one program of a job: `python -m moc.workers.trainers.supervisor FOLDER`, the folder of an attempt.

It starts the program, bounds its log, passes SIGTERM on, writes down how it ended, leaves nothing of it behind, and
ends it when nobody claims it any more. The program does not outlive it. There is one for each job that runs, so it
imports next to nothing.
"""

import ctypes
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from moc.workers.trainers.priority import lower_priority

LAUNCH_FILE = "launch.json"
CLAIM_FILE = "claim"
EXIT_FILE = "exit.json"
NEW_EXIT_FILE = "exit.json.new"
EXIT_FILE_BYTES = 128
LOG_FILE = "program.log"
OLDER_LOG_FILE = "program.log.1"
LOG_BYTES_MAX = 8 * 1024 * 1024
"""How long the log may get before it replaces the older one."""

TICK_S = 0.5
HALTED_MAX_S = 2.0
"""Who halts a program claims it, too; so without a claim for so long nobody is there who would let it go on."""

CANNOT_START_STATUS = 127
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
_READ_BYTES = 65_536


class Claim:
    """When somebody last said that the program is wanted: its file is touched. The wall clock may jump meanwhile."""

    def __init__(self) -> None:
        self._touched_at = 0.0
        self._seen_at = time.monotonic()

    def age_s(self) -> float:
        """How long ago that was."""
        with suppress(OSError):
            touched_at = os.stat(CLAIM_FILE).st_mtime
            if touched_at != self._touched_at:
                self._touched_at, self._seen_at = touched_at, time.monotonic()
        return time.monotonic() - self._seen_at


class Log:
    """The last that the program wrote, in two files of bounded size."""

    def __init__(self) -> None:
        self._open()

    def write(self, text: bytes) -> None:
        """Append it; what a full disk has no room for is lost."""
        with suppress(OSError):
            os.write(self._file, text)
            if os.fstat(self._file).st_size > LOG_BYTES_MAX:
                os.rename(LOG_FILE, OLDER_LOG_FILE)
                os.close(self._file)
                self._open()

    def _open(self) -> None:
        self._file = os.open(LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


class ExitFile:
    """How the program ended, all or nothing. Who started it took its room on the disk, for a full one by then."""

    def __init__(self) -> None:
        self._file = os.open(NEW_EXIT_FILE, os.O_WRONLY | os.O_CREAT, 0o600)
        os.pwrite(self._file, b" " * EXIT_FILE_BYTES, 0)

    def write(self, status: int) -> None:
        """Make it durable."""
        told = json.dumps({"status": status, "at": time.time()}).encode()
        os.pwrite(self._file, told.ljust(EXIT_FILE_BYTES), 0)
        os.fsync(self._file)
        os.rename(NEW_EXIT_FILE, EXIT_FILE)
        folder = os.open(".", os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


class Supervisor:
    """One program from its start to its end."""

    def __init__(self, launch: dict[str, Any]) -> None:
        self._launch = launch
        self._claim = Claim()
        self._log = Log()
        self._exit = ExitFile()
        self._told_to_stop = False
        self._asked_at: float | None = None
        self._status: int | None = None

    def run(self) -> None:
        """Return when the program has ended, and that is written down."""
        _prctl(_SET_CHILD_SUBREAPER, 1)
        woken = self._listen()
        self._output, theirs = os.pipe()
        self._pid = _start(self._launch, theirs)
        os.close(theirs)
        poll = select.poll()
        for descriptor in (woken, self._output):
            os.set_blocking(descriptor, False)
            poll.register(descriptor, select.POLLIN)
        while self._status is None:
            for descriptor, _ in poll.poll(TICK_S * 1000):
                if descriptor == woken:
                    os.read(woken, _READ_BYTES)
                elif not self._copy():
                    poll.unregister(descriptor)  # it closed its output
            self._reap()
            if self._status is None:
                self._attend()
        self._clear_up()
        while self._copy():
            pass
        self._exit.write(self._status)

    def _listen(self) -> int:
        """Have signals end the wait for something to happen."""
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        woken, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._be_told())
        return woken

    def _be_told(self) -> None:
        self._told_to_stop = True

    def _copy(self) -> bool:
        """Take a piece of the output into the log; whether there was one, or may be one later."""
        try:
            text = os.read(self._output, _READ_BYTES)
        except BlockingIOError:
            return self._status is None
        self._log.write(text)
        return bool(text)

    def _reap(self) -> None:
        """Take note of every process below that has ended: whose parent ends becomes ours."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._pid:
                    self._status = os.waitstatus_to_exitcode(status)

    def _attend(self) -> None:
        """Pass SIGTERM on, and look whether somebody still wants the program."""
        unclaimed_s = self._claim.age_s()
        if unclaimed_s > HALTED_MAX_S:
            self._proceed()
        if self._told_to_stop:
            self._told_to_stop = False
            self._ask()
        elif unclaimed_s > self._launch["orphan_grace_s"] and self._asked_at is None:
            self._ask()
        if (
            self._asked_at is not None
            and unclaimed_s > self._launch["orphan_grace_s"]
            and time.monotonic() - self._asked_at > self._launch["grace_s"]
        ):
            os.kill(self._pid, signal.SIGKILL)

    def _ask(self) -> None:
        self._asked_at = self._asked_at or time.monotonic()
        os.kill(self._pid, signal.SIGTERM)
        self._proceed()

    def _proceed(self) -> None:
        """Whoever halted it may not be there any more."""
        for pid in _offspring():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _clear_up(self) -> None:
        """Kill and reap all that the program left behind."""
        while left := _offspring():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(-1, 0)


def _start(launch: dict[str, Any], output: int) -> int:
    """Fork it; the child writes to `output` why it cannot be started."""
    supervisor = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the child obeys it, or it would be lost there
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return pid
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.setpgid(0, 0)
        _prctl(_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == supervisor:
            _become(launch, output)
    except OSError as error:
        program, workdir = launch["command"][0], launch["workdir"]
        os.write(output, f"{program} cannot be started in {workdir}: {error.strerror}\n".encode())
    finally:
        os._exit(CANNOT_START_STATUS)


def _become(launch: dict[str, Any], output: int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for refused in lower_priority():
        os.write(2, f"{refused}\n".encode())
    os.chdir(launch["workdir"])
    os.execvpe(launch["command"][0], launch["command"], launch["environment"])  # noqa: S606 - no shell is meant


def _offspring() -> list[int]:
    """All processes below this one that have not ended."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    children.setdefault(int(parent), []).append(int(name))
    found: list[int] = []
    parents = [os.getpid()]
    while parents:
        below = children.get(parents.pop(), [])
        found += below
        parents += below
    return found


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def main(folder: str) -> None:
    """Look after the program of `folder`, unless it has ended: who asked for it may have been given up meanwhile."""
    os.chdir(folder)
    if os.path.exists(EXIT_FILE):
        return
    with open(LAUNCH_FILE, encoding="utf-8") as file:
        Supervisor(json.load(file)).run()


if __name__ == "__main__":
    main(sys.argv[1])
