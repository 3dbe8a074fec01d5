"""kill -9 of worker and coordinator at random moments: what was acknowledged stays, what runs is accounted for.

`KILL_ROUNDS=30` for a longer look (`make kills`), `MOC_TEST_SEED` for the same moments again.
"""

import os
import random
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import psutil
import pytest

from tests.coordinator import Coordinator, eventually
from tests.faults.conftest import EXAMPLES, Start

ROUNDS = int(os.environ.get("KILL_ROUNDS", "12"))
SEED = int(os.environ.get("MOC_TEST_SEED", "20261123"))
IDENTITY = {"inputs": [{"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.5] * 8}]}
MAY_FAIL = {429, 503}


@dataclass
class Traffic:
    """Asks and registers without pause in the background; remembers what was acknowledged and what was odd."""

    coordinator: Coordinator
    registered: list[str] = field(default_factory=list)
    answered: int = 0
    odd: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with httpx.Client(base_url=self.coordinator.url, headers=self.coordinator.headers, timeout=30) as client:
            number = 0
            while not self.done.is_set():
                number += 1
                with suppress(httpx.TransportError):
                    self._ask(client)
                    if number % 5 == 0:
                        self._register(client, f"extra-{number}")

    def reached(self, count: int) -> bool:
        """Whether that many requests have been answered."""
        return self.answered >= count

    def _ask(self, client: httpx.Client) -> None:
        answer = client.post("/v2/models/identity/infer", json=IDENTITY)
        if answer.status_code == 200:
            self.answered += 1
            if answer.json()["outputs"][0]["data"] != [0.5] * 8:
                self.odd.append(answer.text)
        elif answer.status_code not in MAY_FAIL:
            self.odd.append(f"{answer.status_code} {answer.text}")

    def _register(self, client: httpx.Client, name: str) -> None:
        body = {"name": name, "runtime": "python", "source": f"file:{EXAMPLES / 'identity.py'}"}
        answer = client.post("/api/v1/models", json=body)
        if answer.status_code == 201:
            self.registered.append(name)
        elif answer.status_code not in MAY_FAIL:
            self.odd.append(f"{answer.status_code} {answer.text}")


def _consistent(coordinator: Coordinator) -> bool:
    """One live worker per ready model, and none besides."""
    workers: list[dict[str, Any]] = coordinator.get("/api/v1/workers")["workers"]
    model = coordinator.get("/api/v1/models/identity")
    assert model["state"] == "ready", model
    assert [worker["id"] for worker in workers] == [model["worker"]["id"]], workers
    assert sorted(coordinator.worker_pids()) == [model["worker"]["pid"]]
    return True


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_rounds(start: Start, models: dict[str, Any]) -> None:
    del models["smollm2"]
    dice = random.Random(SEED)
    coordinator = start(security={"trusted_python_roots": [str(EXAMPLES)]})
    coordinator.post("/api/v1/models/identity/load")
    traffic = Traffic(coordinator)
    thread = threading.Thread(target=traffic.run)
    thread.start()
    history: list[str] = []
    try:
        for _ in range(ROUNDS):
            coordinator.post("/api/v1/models/identity/load")
            enough = traffic.answered + dice.randrange(1, 20)
            eventually(partial(traffic.reached, enough), what="traffic to flow")
            victim = dice.choice(("worker", "coordinator", "both"))
            history.append(victim)
            if victim != "coordinator":
                for pid in coordinator.worker_pids():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            if victim != "worker":
                coordinator.kill()
                coordinator.start()
    finally:
        traffic.done.set()
        thread.join(60)
    told = f"seed {SEED}, history {history}"
    assert not thread.is_alive(), told
    assert not traffic.odd, f"{told}: {traffic.odd[:3]}"
    assert coordinator.post("/api/v1/models/identity/load").status_code == 200, told
    eventually(lambda: _consistent(coordinator), what=told)
    for name in traffic.registered:
        assert coordinator.get(f"/api/v1/models/{name}")["name"] == name, told
    assert traffic.registered, told
    assert psutil.pid_exists(coordinator.get("/api/v1/models/identity")["worker"]["pid"])
