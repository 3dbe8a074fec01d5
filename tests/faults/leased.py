"""A process that has a lease and does not give it up: it never hears SIGTERM."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from tests.coordinator import MOC, Coordinator, eventually
from tests.memory import MIB, runs

LEASED = 400 * MIB
HELD = 350 * MIB
_STUBBORN = f"""
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
eaten = bytearray(b"x") * {HELD}
print(1, flush=True)
while True:
    signal.pause()
"""


@dataclass(frozen=True, slots=True)
class Stubborn:
    """`starter` is `moc lease run`, which kills it after its grace; `pid` is the process itself."""

    starter: "subprocess.Popen[str]"
    pid: int
    lease_id: str


@contextmanager
def stubborn(coordinator: Coordinator, *, grace_s: float) -> Iterator[Stubborn]:
    """It has LEASED bytes at low priority and holds HELD of them; dead afterwards."""
    command = [*MOC, "lease", "run", "--memory", str(LEASED), "--priority", "8", "--grace", f"{grace_s:g}s"]
    with subprocess.Popen(
        [*command, "--", sys.executable, "-c", _STUBBORN],
        env=coordinator.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as starter:
        assert starter.stdout is not None
        starter.stdout.readline()
        (process,) = psutil.Process(starter.pid).children()
        try:
            (lease,) = coordinator.get("/api/v1/leases")["leases"]
            eventually(lambda: shown(coordinator, lease["id"])["pid"] == process.pid, what="it to be named")
            yield Stubborn(starter, process.pid, lease["id"])
        finally:
            starter.kill()
            if runs(process.pid):
                process.kill()


def shown(coordinator: Coordinator, lease_id: str) -> Any:
    """A lease, now or as it ended."""
    return coordinator.get(f"/api/v1/leases/{lease_id}")
