"""How soon a model that does not answer any more is said not to be ready, and what becomes of its worker."""

import os
import signal
import time
from typing import Any

import httpx
import pytest

from tests.coordinator import Coordinator, eventually
from tests.faults.conftest import Start

BOUND_S = 5.0
"""Far above what it takes, which is printed: this machine may be busy."""

HUNG_AFTER_S = 2.0
IDENTITY = {"inputs": [{"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.5] * 8}]}
INFER = "/v2/models/identity/infer"
READY = "/v2/models/identity/ready"
WELL = {READY: 200, "/readyz": 200}
UNWELL = {READY: 503, "/readyz": 503}


@pytest.fixture
def coordinator(start: Start, models: dict[str, Any]) -> Coordinator:
    del models["smollm2"]
    models["identity"]["preload"] = True
    return start(server={"ready_needs_models": True}, workers={"hung_after_s": HUNG_AFTER_S})


def pid_of(coordinator: Coordinator) -> int:
    pid: int = coordinator.get("/api/v1/models/identity")["worker"]["pid"]
    return pid


def seconds_until(asker: httpx.Client, statuses: dict[str, int]) -> dict[str, float]:
    """How long each of these paths takes to answer with its status."""
    began, found = time.monotonic(), dict[str, float]()

    def look() -> bool:
        for path, status in statuses.items():
            if path not in found and asker.get(path).status_code == status:
                found[path] = time.monotonic() - began
        return len(found) == len(statuses)

    eventually(look, what=f"{statuses}, found {found}")
    return found


def test_the_truth_is_told_soon(coordinator: Coordinator) -> None:
    with httpx.Client(base_url=coordinator.url, headers=coordinator.headers, timeout=30) as asker:
        seconds_until(asker, WELL)
        _suspend_for_a_while(coordinator, asker)
        for number in (signal.SIGKILL, signal.SIGSTOP):
            pid = pid_of(coordinator)
            os.kill(pid, number)
            took = seconds_until(asker, UNWELL)
            print(f"{number.name} to the truth: {', '.join(f'{path} {s:.2f} s' for path, s in took.items())}")
            assert max(took.values()) < BOUND_S
            took = seconds_until(asker, WELL)
            print(f"and to another worker that is ready: {max(took.values()):.2f} s")
            assert pid_of(coordinator) != pid
            assert asker.post(INFER, json=IDENTITY).status_code == 200


def _suspend_for_a_while(coordinator: Coordinator, asker: httpx.Client) -> None:
    """A worker that goes on is ready again, and stays."""
    pid = pid_of(coordinator)
    os.kill(pid, signal.SIGSTOP)
    try:
        seconds_until(asker, {READY: 503})
        assert asker.post(INFER, json=IDENTITY).status_code == 503
    finally:
        os.kill(pid, signal.SIGCONT)
    took = seconds_until(asker, WELL)
    print(f"\nSIGCONT to the truth: {took[READY]:.2f} s")
    assert pid_of(coordinator) == pid
    assert asker.post(INFER, json=IDENTITY).status_code == 200
