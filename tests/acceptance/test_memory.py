"""Models on less memory than they need together: real workers, a real budget, every decision explained."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.acceptance.conftest import EXAMPLES, model
from tests.coordinator import Coordinator, eventually, short_home
from tests.models import smollm2_path

MIB = 2**20
BUDGET = 520 * MIB
LIMIT_PCT = 90
CHAT = {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2}
BALLAST = """
import numpy as np

class Model:
    inputs = [("INPUT0", "FP32", [-1, 8])]
    outputs = [("OUTPUT0", "FP32", [-1, 8])]

    def load(self, mib):
        self.ballast = np.ones((mib, 2**20), np.uint8)

    def infer(self, inputs):
        return {"OUTPUT0": inputs["INPUT0"]}
"""
BROKEN = """
class Model:
    def load(self):
        raise ValueError("its weights are torn")

    def infer(self, inputs):
        return inputs
"""
TENSOR = {"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.5] * 8}


@pytest.fixture
def home() -> Iterator[Path]:
    with short_home() as data_dir:
        (data_dir / "models").mkdir(parents=True)
        (data_dir / "models" / "ballast.py").write_text(BALLAST)
        (data_dir / "models" / "broken.py").write_text(BROKEN)
        yield data_dir


@pytest.fixture
def crowded(home: Path) -> Iterator[Coordinator]:
    """Three models that need some 800 MiB together, on a budget of 520."""
    ballast = home / "models" / "ballast.py"
    models = {
        "smollm2": model("llama_cpp", smollm2_path(), options={"context": 2048, "slots": 2}),
        "big": model("python", ballast, options={"mib": 250}, memory="300MiB"),
        "bigger": model("python", ballast, options={"mib": 260}, memory="310MiB"),
        "small": model("python", EXAMPLES / "identity.py"),
        "broken": model("python", home / "models" / "broken.py", memory="400MiB"),
    }
    config = {
        "models": models,
        "devices": [{"id": "host", "kind": "host", "memory": f"{BUDGET // MIB}MiB"}],
        "resources": {"gpu_poll_interval_s": 1, "soft_limit_pct": LIMIT_PCT},
    }
    coordinator = Coordinator(home, config=config)
    try:
        yield coordinator.start()
    finally:
        coordinator.close()


def ask(coordinator: Coordinator, name: str) -> httpx.Response:
    if name == "smollm2":
        return coordinator.post("/v1/chat/completions", {**CHAT, "model": name})
    return coordinator.post(f"/v2/models/{name}/infer", {"inputs": [TENSOR]})


def held_bytes(coordinator: Coordinator) -> int:
    """What the workers hold right now, shared pages divided among those that share them."""
    total = 0
    for pid in coordinator.worker_pids():
        try:
            total += psutil.Process(pid).memory_full_info().pss
        except psutil.Error:
            continue
    return total


def host_device(coordinator: Coordinator) -> dict[str, Any]:
    found: dict[str, Any] = coordinator.get("/api/v1/devices/host")
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mixed_traffic_never_fails_for_memory_and_never_takes_more_than_there_is(crowded: Coordinator) -> None:
    wrong: list[str] = []
    most = [0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            most[0] = max(most[0], held_bytes(crowded))

    def traffic(names: tuple[str, ...]) -> None:
        for name in names * 2:
            answer = ask(crowded, name)
            if answer.status_code != 200:
                wrong.append(f"{name}: {answer.status_code} {answer.text}")

    watching = threading.Thread(target=watch)
    watching.start()
    clients = [
        threading.Thread(target=traffic, args=(names,))
        for names in (("smollm2", "big", "small"), ("small", "bigger"), ("smollm2", "small"))
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(200)
    over.set()
    watching.join()
    assert not wrong, wrong
    assert most[0] <= BUDGET * LIMIT_PCT / 100, f"{most[0] / MIB:.0f} MiB were held"
    events = crowded.get("/api/v1/events?follow=false&after=0&limit=1000")["events"]
    evicted = [event for event in events if event["kind"] == "model.evicted"]
    assert evicted, "the models do not fit together, so some must have left"
    assert all(event["data"]["because"] and event["data"]["successor"] for event in evicted)
    text = httpx.get(f"{crowded.url}/metrics", headers=crowded.headers).text
    assert f'modelops_evictions_total{{reason="capacity"}} {len(evicted)}.0' in text


def test_what_explain_says_is_what_happens(crowded: Coordinator) -> None:
    ask(crowded, "big").raise_for_status()
    crowded.post("/api/v1/models/bigger/pull").raise_for_status()
    told = eventually(lambda: (e := crowded.get("/api/v1/models/bigger/explain"))["fits"] and e, timeout_s=30)
    assert [victim["reference"] for victim in told["victims"]] == ["big@1"]
    assert "big@1 would be unloaded" in crowded.cli("explain", "load", "bigger").stdout
    crowded.post("/api/v1/models/bigger/load").raise_for_status()
    assert crowded.get("/api/v1/models/big")["reason"] == "Evicted"
    assert [charge["holder"] for charge in host_device(crowded)["charges"]] == ["model:bigger@1"]


def test_a_model_that_does_not_fit_at_all_is_refused_with_the_numbers(crowded: Coordinator) -> None:
    body = {"name": "huge", "runtime": "python", "source": f"file:{crowded.data_dir / 'models' / 'ballast.py'}"}
    crowded.post("/api/v1/models", {**body, "memory": "2GiB", "options": {"mib": 1}}).raise_for_status()
    answer = crowded.post("/api/v1/models/huge/load")
    assert answer.status_code == 507
    assert answer.json()["error"]["code"] == "no_capacity"
    assert "2GiB" in answer.json()["error"]["message"]
    done = crowded.cli("explain", "load", "huge")
    assert done.returncode == 1


def test_who_made_room_for_a_model_that_cannot_load_comes_back(crowded: Coordinator) -> None:
    ask(crowded, "big").raise_for_status()
    answer = crowded.post("/api/v1/models/broken/load")
    assert answer.status_code == 503
    assert "its weights are torn" in answer.json()["error"]["message"]
    eventually(lambda: crowded.get("/api/v1/models/big")["state"] == "ready", what="the victim to be back")
    assert crowded.get("/api/v1/models/big")["reason"] == "Restored"


def test_after_a_crash_the_books_say_what_is_really_held(crowded: Coordinator) -> None:
    ask(crowded, "big").raise_for_status()
    ask(crowded, "small").raise_for_status()
    before = host_device(crowded)["charges"]
    crowded.kill()
    crowded.start()
    assert sorted(charge["holder"] for charge in before) == ["model:big@1", "model:small@1"]
    assert host_device(crowded)["charges"] == before
