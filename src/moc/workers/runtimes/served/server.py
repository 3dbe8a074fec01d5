"""The process of an external server: a child of the worker that does not outlive it, whatever happens to either."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

from moc.kernel.errors import LoadFailed

GUARD = ("/bin/sh", "-c", "read _; kill -KILL 0")
"""Waits for the end of its input, which comes when the worker ends, however it does; then kills its process group."""


class Server:
    """A process that runs, with all that it starts, in a process group of its own. Its output is the worker's log."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", guard: "subprocess.Popen[bytes]") -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._guard = guard  # kept, for its input is to stay open

    @classmethod
    def start(cls, command: Sequence[str], environment: Mapping[str, str]) -> "Server":
        """Start it in this folder; LoadFailed when there is no such program or the system has no room."""
        name = os.path.basename(command[0])
        guard = subprocess.Popen(GUARD, stdin=subprocess.PIPE, process_group=0)  # first, so there is no moment without
        try:
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, process_group=guard.pid)
        except (OSError, ValueError) as error:
            guard.communicate()  # with its input, it ends
            why = getattr(error, "strerror", None) or error
            raise LoadFailed(f"{name} cannot be started: {why}", reason="load_failed") from None
        return cls(name, process, guard)

    def wait(self) -> None:
        """Block until it has ended."""
        self._process.wait()

    def stop(self, number: signal.Signals) -> None:
        """Tell it to end, with a signal; no error when it has."""
        self._process.send_signal(number)

    def how_it_ended(self) -> str:
        """In words: `was killed by SIGKILL`, `ended with status 1`."""
        from moc.workers.process import ending  # brings psutil

        return ending(self._process.returncode)
