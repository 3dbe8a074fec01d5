"""Workers outlive the coordinator, and are found again."""

import threading
from pathlib import Path

import httpx
import psutil

from tests.coordinator import Coordinator, eventually
from tests.faults.conftest import Start

CHAT = {"model": "smollm2", "temperature": 0, "messages": [{"role": "user", "content": "Name three rivers."}]}
IDENTITY = {"inputs": [{"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.5] * 8}]}


def worker_of(coordinator: Coordinator, name: str = "smollm2") -> dict[str, object]:
    worker: dict[str, object] = coordinator.get(f"/api/v1/models/{name}")["worker"]
    return worker


def test_a_killed_coordinator_finds_its_worker_warm(start: Start) -> None:
    coordinator = start()
    assert coordinator.post("/v1/chat/completions", CHAT | {"max_tokens": 2}).status_code == 200
    before = worker_of(coordinator)
    body = CHAT | {"stream": True, "max_tokens": 900, "ignore_eos": True}
    with httpx.stream(
        "POST", f"{coordinator.url}/v1/chat/completions", json=body, headers=coordinator.headers, timeout=30
    ) as answer:
        lines = answer.iter_lines()  # kept: dropping it would close the connection
        next(lines)
        coordinator.kill()
    coordinator.start()
    shown = coordinator.get("/api/v1/models/smollm2")
    assert shown["state"] == "ready"
    assert shown["adopted"] is True
    assert shown["worker"]["pid"] == before["pid"]
    assert shown["worker"]["id"] == before["id"]
    assert shown["worker"]["term"] > before["term"]
    assert "adopted" in coordinator.cli("models", "show", "smollm2").stdout
    events = coordinator.get("/api/v1/events?follow=false&after=0&limit=1000")["events"]
    assert [event["kind"] for event in events].count("worker.starting") == 1
    # the stream that was cut off does not go on in the engine
    eventually(lambda: coordinator.get("/api/v1/models/smollm2")["worker"]["in_flight"] == 0)
    assert coordinator.post("/v1/chat/completions", CHAT | {"max_tokens": 2}).status_code == 200


def test_an_upgrade_reloads_nothing(start: Start) -> None:
    coordinator = start()
    coordinator.post("/api/v1/models/identity/load")
    pid = worker_of(coordinator, "identity")["pid"]
    assert coordinator.stop() == 0
    assert psutil.pid_exists(int(str(pid)))
    coordinator.start()
    assert worker_of(coordinator, "identity")["pid"] == pid
    assert coordinator.post("/v2/models/identity/infer", IDENTITY).status_code == 200


def test_an_orphan_ends_itself_and_leaves_nothing(start: Start) -> None:
    coordinator = start(workers={"orphan_grace_s": 1})
    coordinator.post("/api/v1/models/identity/load")
    pid = int(str(worker_of(coordinator, "identity")["pid"]))
    coordinator.kill()
    eventually(lambda: not psutil.pid_exists(pid), timeout_s=15, what="the orphan to end")
    folders = Path(coordinator.data_dir / "run")
    assert [path.name for path in folders.iterdir()] == []
    coordinator.start()
    eventually(lambda: coordinator.get("/api/v1/models/identity")["state"] == "ready")
    assert worker_of(coordinator, "identity")["pid"] != pid


def test_stopping_the_workers_too(start: Start) -> None:
    coordinator = start("--stop-workers")
    coordinator.post("/api/v1/models/identity/load")
    pid = int(str(worker_of(coordinator, "identity")["pid"]))
    assert coordinator.stop() == 0
    assert not psutil.pid_exists(pid)


def test_sigterm_lets_the_running_request_finish(start: Start) -> None:
    coordinator = start()
    coordinator.post("/v1/chat/completions", CHAT | {"max_tokens": 1})
    answers: list[httpx.Response] = []
    body = CHAT | {"max_tokens": 120, "ignore_eos": True}
    asking = threading.Thread(target=lambda: answers.append(coordinator.post("/v1/chat/completions", body)))
    asking.start()
    eventually(lambda: worker_of(coordinator)["in_flight"] == 1)
    assert coordinator.stop() == 0
    asking.join(60)
    assert [answer.status_code for answer in answers] == [200]
    assert answers[0].json()["usage"]["completion_tokens"] == 120


def test_a_second_coordinator_on_the_same_data_is_refused(start: Start, tmp_path: Path) -> None:
    coordinator = start()
    second = Coordinator(coordinator.data_dir)
    second.start(wait=False)
    assert second.process is not None
    assert second.process.wait(30) == 1
    assert f"{coordinator.process.pid}" in second.output if coordinator.process else False
    assert coordinator.post("/v2/models/identity/infer", IDENTITY).status_code == 200
