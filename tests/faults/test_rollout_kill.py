"""kill -9 of the coordinator at random moments of a rollout: it goes on, and no alias is ever half moved."""

import os
import random
import threading
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.coordinator import Coordinator, eventually
from tests.faults.conftest import EXAMPLES, Start

ROUNDS = 5
SEED = int(os.environ.get("MOC_TEST_SEED", "20261123"))
IDENTITY = {"inputs": [{"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.5] * 8}]}
STEPS = [10, 50, 90]
SHARES = {
    "warming": [0.0],
    "progressing": [float(step) for step in STEPS],
    "promoted": [100.0],
    "aborted": [0.0],
}


class Asking:
    """Asks the alias without pause in the background, whether there is a coordinator or not."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.wrong: list[str] = []
        self._coordinator = coordinator
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(60)

    def _run(self) -> None:
        with httpx.Client(base_url=self._coordinator.url, headers=self._coordinator.headers, timeout=30) as client:
            while not self._done.is_set():
                try:
                    answer = client.post("/v2/models/front/infer", json=IDENTITY)
                except httpx.TransportError:
                    continue
                if answer.status_code != 200 or answer.json()["outputs"][0]["data"] != [0.5] * 8:
                    self.wrong.append(f"{answer.status_code} {answer.text[:200]}")


@pytest.fixture
def models() -> dict[str, Any]:
    """Two that do the same."""
    identity = {"runtime": "python", "source": f"file:{EXAMPLES / 'identity.py'}", "ttl_s": 0, "preload": True}
    return {"old": identity, "new": identity}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_goes_on_whenever_the_coordinator_dies(start: Start, home: Path) -> None:
    dice = random.Random(SEED)
    coordinator = start(aliases={"front": {"versions": {"old@1": 1}}})
    for name in ("old", "new"):
        assert coordinator.post(f"/api/v1/models/{name}/load").status_code == 200
    history: list[str] = []
    with Asking(coordinator) as asking:
        for number in range(ROUNDS):
            champion, to = ("old@1", "new@1") if number % 2 == 0 else ("new@1", "old@1")
            wish = {"alias": "front", "to": to, "steps": STEPS, "hold_s": 0.2, "min_requests": 2}
            begun = coordinator.post("/api/v1/rollouts", wish)
            assert begun.status_code == 201, begun.text
            kill_after(coordinator, dice.uniform(0, 1.2))
            path = f"/api/v1/rollouts/{begun.json()['id']}"
            history.append(f"{champion} to {to}, found {consistent(coordinator, path, champion, to)['state']}")
            eventually(partial(is_promoted, coordinator, path), what=f"seed {SEED}, {history}")
            consistent(coordinator, path, champion, to)
    told = f"seed {SEED}, {history}: {asking.wrong[:3]}"
    assert not asking.wrong, told
    numbers = [change["number"] for change in coordinator.get("/api/v1/aliases/front/history?limit=1000")["changes"]]
    assert numbers == list(range(1, len(numbers) + 1)), told


def kill_after(coordinator: Coordinator, seconds: float) -> None:
    """Let it work for so long, kill it, and start it again."""
    moment = threading.Event()
    moment.wait(seconds)  # any moment is as good as another
    coordinator.kill()
    coordinator.start()


def consistent(coordinator: Coordinator, path: str, champion: str, to: str) -> dict[str, Any]:
    """A rollout, once it is read together with an alias that is what the rollout makes of it."""

    def look() -> dict[str, Any] | None:
        rollout: dict[str, Any] = coordinator.get(path)
        versions = coordinator.get("/api/v1/aliases/front")["versions"]
        if coordinator.get(path)["history"] != rollout["history"]:
            return None  # it went on meanwhile
        share = rollout["share_pct"]
        assert share in SHARES[rollout["state"]], rollout
        weights = {champion: 100.0 - share, to: share}
        if share in (0.0, 100.0):
            weights = {reference: weight for reference, weight in weights.items() if weight}
        sizes = sum(versions.values())
        assert {reference: 100 * weight / sizes for reference, weight in versions.items()} == weights, rollout
        return rollout

    found = eventually(look)
    assert found is not None
    return found


def is_promoted(coordinator: Coordinator, path: str) -> bool:
    """Whether it has come to its end."""
    rollout = coordinator.get(path)
    assert rollout["state"] in ("warming", "progressing", "promoted"), rollout
    return bool(rollout["state"] == "promoted")
