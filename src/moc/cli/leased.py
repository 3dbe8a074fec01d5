"""A command that runs under a lease: told of it, and ended when somebody more urgent needs the memory."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moc.cli import screen
from moc.client.leases import OVER, beat_s
from moc.client.views import LeaseView
from moc.kernel.errors import MocError

if TYPE_CHECKING:
    from moc.client import Client

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NOT_FOUND = 127
NOT_RUNNABLE = 126


class LeasedCommand:
    """Runs `command` in a process group of its own with `environment`, while it renews `lease`.

    A preemption is passed on as SIGTERM to the group, and as SIGKILL when the grace is over.
    """

    def __init__(
        self, client: "Client", lease: LeaseView, command: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self._client = client
        self._lease = lease
        self._command = command
        self._environment = environment
        self._kill_at: float | None = None

    def run(self, *, tell_pid: bool) -> int:
        """The command's exit status, 128 and more for a signal; with `tell_pid` its memory is the lease's."""
        try:
            process = subprocess.Popen(self._command, env={**os.environ, **self._environment}, process_group=0)
        except OSError as error:
            screen.complain(f"{self._command[0]} cannot be run: {error.strerror}")
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
        with _signals_passed_on(process):
            try:
                self._keep(process, process.pid if tell_pid else None)
            finally:
                if process.poll() is None or self._kill_at is not None:
                    _signal_group(process, signal.SIGKILL)
                status = process.wait()
        return status if status >= 0 else 128 - status

    def _keep(self, process: "subprocess.Popen[bytes]", pid: int | None) -> None:
        """Renew the lease until the process ends, or has to."""
        pause_s = beat_s(self._lease["ttl_s"], self._lease["grace_s"])
        while True:
            if self._kill_at is None:
                self._renew(process, pid)
            left_s = pause_s if self._kill_at is None else self._kill_at - time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(left_s, 0))
                return
            if self._kill_at is not None:
                screen.complain(f"{self._command[0]} did not end within its grace and is killed")
                return

    def _renew(self, process: "subprocess.Popen[bytes]", pid: int | None) -> None:
        lease_id, grace_s = self._lease["id"], self._lease["grace_s"]
        try:
            told = self._client.leases.renew(lease_id, self._lease["token"] or "", pid=pid)
        except MocError as error:
            if process.poll() is not None:  # its lease ended with it
                return
            if isinstance(error, OVER):
                self._end(process, error.message, grace_s)
            else:  # a coordinator that is away keeps the lease
                screen.complain(f"{lease_id} could not be renewed and is tried again: {error.message}")
        else:
            if told["evict_in_s"] is not None:
                self._end(process, f"{lease_id} is preempted", told["evict_in_s"])

    def _end(self, process: "subprocess.Popen[bytes]", why: str, grace_s: float) -> None:
        screen.complain(f"{why}; {self._command[0]} has {grace_s:.0f} s to end")
        self._kill_at = time.monotonic() + grace_s
        _signal_group(process, signal.SIGTERM)


def environment_of(lease: LeaseView, device: Mapping[str, Any]) -> dict[str, str]:
    """What a command is told of its lease; one on a GPU sees no other GPU."""
    told = {
        "MOC_LEASE_ID": lease["id"],
        "MOC_LEASE_TOKEN": lease["token"] or "",
        "MOC_LEASE_DEVICE": lease["device"],
        "MOC_LEASE_BYTES": str(lease["bytes"]),
    }
    if device["kind"] == "cuda":
        told["CUDA_VISIBLE_DEVICES"] = device["uuid"] or lease["device"].partition(":")[2]
    return told


@contextlib.contextmanager
def _signals_passed_on(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    before = {number: signal.signal(number, lambda got, _: _signal_group(process, got)) for number in PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
