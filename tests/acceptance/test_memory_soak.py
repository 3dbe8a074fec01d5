"""Mixed traffic on less memory than the models need together, for as long as SOAK_S says: `make soak` takes 600."""

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import model
from tests.coordinator import Coordinator, short_home
from tests.memory import MIB, events, held_bytes, most_charged_to_models, watched
from tests.models import silero_path, smollm2_path

pytestmark = pytest.mark.alone

SOAK_S = float(os.environ.get("SOAK_S", "15"))
SEED = int(os.environ.get("MOC_TEST_SEED", "20261123"))
BUDGET = 520 * MIB
LIMIT = BUDGET * 90 // 100
NAMES = ("quick", "roomy", "silero")
SPEECH = {
    "inputs": [
        {"name": "input", "shape": [1, 576], "datatype": "FP32", "data": [0.0] * 576},
        {"name": "state", "shape": [2, 1, 128], "datatype": "FP32", "data": [0.0] * 256},
        {"name": "sr", "shape": [], "datatype": "INT64", "data": [16000]},
    ]
}
UNLOADED_BY_HAND = "Requested"
OVERTAKEN = 409
"""What those are told who wait for a model that is unloaded by hand before it is loaded."""


@pytest.fixture
def crowded() -> Iterator[Coordinator]:
    """Two language models, each from a file of its own, and one that hears speech."""
    with short_home() as home:
        models = {"silero": model("onnx", silero_path(), ttl_s=0)}
        for name, context, slots in (("quick", 1024, 2), ("roomy", 4096, 4)):
            own = Path(shutil.copy(smollm2_path(), home.parent / f"{name}.gguf"))  # pages of one file are shared out
            models[name] = model("llama_cpp", own, options={"context": context, "slots": slots}, ttl_s=0)
        config = {
            "models": models,
            "devices": [{"id": "host", "kind": "host", "memory": f"{BUDGET // MIB}MiB"}],
            "resources": {"gpu_poll_interval_s": 1, "soft_limit_pct": 90, "eviction_threshold_pct": 100},
        }
        coordinator = Coordinator(home, config=config)
        try:
            yield coordinator.start()
        finally:
            coordinator.close()


class Traffic:
    """Everybody who asks, at once, until it is over; what was answered, and what was wrong."""

    def __init__(self, coordinator: Coordinator, until: float) -> None:
        self._coordinator = coordinator
        self._until = until
        self._dice = random.Random(SEED)
        self.answered: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        threads = [threading.Thread(target=self._repeat, args=(turn,)) for turn in self._turns()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _turns(self) -> list[Callable[[], None]]:
        return [
            lambda: self._chat("quick"),
            lambda: self._chat("quick"),
            lambda: self._chat("roomy"),
            self._hear,
            self._hear,
            self._operate,
        ]

    def _repeat(self, turn: Callable[[], None]) -> None:
        while time.monotonic() < self._until:
            turn()

    def _chat(self, name: str) -> None:
        words = " ".join(["river"] * self._dice.randrange(1, 40))
        body = {"model": name, "messages": [{"role": "user", "content": words}], "max_tokens": 4}
        self._note(name, self._coordinator.post("/v1/chat/completions", body))

    def _hear(self) -> None:
        self._note("silero", self._coordinator.post("/v2/models/silero/infer", SPEECH))

    def _operate(self) -> None:
        """Load by hand what the others use, then unload it under their hands."""
        name = self._dice.choice(NAMES)
        for what in ("load", "unload"):
            self._note(what, self._coordinator.post(f"/api/v1/models/{name}/{what}"))

    def _note(self, what: str, answer: httpx.Response) -> None:
        if answer.status_code == 200:
            self.answered[what] += 1
        elif answer.status_code != OVERTAKEN:
            self.wrong.append(f"{what}: {answer.status_code} {answer.text}")


def unexplained(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Unloads that nobody asked for and that no decision told of before."""
    decided: Counter[str] = Counter()
    found = []
    for event in told:
        if event["kind"] == "model.evicted":
            data = event["data"]
            assert data["because"], event
            assert data["bytes"] > 0, event
            assert data["successor"] in {f"model:{name}@1" for name in NAMES} - {f"model:{event['subject']}"}, event
            decided[event["subject"]] += 1
        elif event["kind"] == "model.draining" and event["reason"] != UNLOADED_BY_HAND:
            decided[event["subject"]] -= 1
            if event["reason"] != "Evicted" or decided[event["subject"]] < 0:
                found.append(event)
    return found


@pytest.mark.slow
@pytest.mark.timeout(SOAK_S + 300)
def test_nothing_fails_for_memory_and_no_more_is_held_than_there_is(crowded: Coordinator) -> None:
    traffic = Traffic(crowded, time.monotonic() + SOAK_S)
    with watched(lambda: held_bytes(crowded.worker_pids())) as gauge:
        traffic.run()
    told = events(crowded)
    summary = f"seed {SEED}, answered {dict(traffic.answered)}, most {gauge}"
    assert not traffic.wrong, f"{summary}: {len(traffic.wrong)} wrong, such as {traffic.wrong[:3]}"
    assert set(traffic.answered) >= set(NAMES), summary
    assert 0 < gauge.most <= LIMIT, summary
    assert 0 < most_charged_to_models(told) <= LIMIT, summary
    evicted = [event for event in told if event["kind"] == "model.evicted"]
    assert evicted, f"{summary}: they do not fit together, so some must have left"
    assert unexplained(told) == [], summary
    text = httpx.get(f"{crowded.url}/metrics", headers=crowded.headers).text
    assert f'modelops_evictions_total{{reason="capacity"}} {len(evicted)}.0' in text, summary
    print(f"{summary}, {len(evicted)} evictions in {SOAK_S:g} s")
