"""An external server as an engine of a real coordinator: llama.cpp's own HTTP server, started from a template."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.acceptance.conftest import served
from tests.coordinator import Coordinator, eventually, short_home
from tests.models import smollm2_path

SCRIPT = str(Path(__file__).parents[1] / "llama_server.py")
MOODY = str(Path(__file__).parents[1] / "moody_server.py")
OPTIONS = {
    "command": [sys.executable, SCRIPT, "{port}", "{path}", "{model}"],
    "kinds": ["chat", "completion"],
    "concurrency": 2,
}
LLAMA = {
    "runtime": "command",
    "source": f"file:{smollm2_path()}",
    "memory": "500MiB",
    "ttl_s": 0,
    "options": {**OPTIONS, "env": {"LLAMA_API_KEY": "{key}"}},
}
CHAT = {"messages": [{"role": "user", "content": "Name three rivers."}], "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def running() -> Iterator[Coordinator]:
    with short_home() as data_dir:
        security = {"trusted_commands": [sys.executable]}
        yield from served(Coordinator(data_dir, config={"models": {"llama": LLAMA}, "security": security}))


def chat(coordinator: Coordinator, name: str = "llama", **fields: Any) -> httpx.Response:
    return coordinator.post("/v1/chat/completions", {"model": name, **CHAT, **fields})


def server_of(coordinator: Coordinator, name: str = "llama") -> psutil.Process:
    """The server below the worker of a model."""
    worker = psutil.Process(coordinator.get(f"/api/v1/models/{name}")["worker"]["pid"])
    (found,) = [child for child in worker.children() if SCRIPT in child.cmdline()]
    return found


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_it_answers_as_any_model_does(running: Coordinator) -> None:
    whole = chat(running)
    assert whole.status_code == 200, whole.text
    assert whole.headers["x-moc-model"] == "llama@1"
    assert whole.json()["model"] == "llama@1"
    streamed = chat(running, stream=True)
    assert streamed.text.rstrip().endswith("data: [DONE]")
    assert "charged" in running.cli("devices", "show", "host").stdout
    assert running.get("/api/v1/models/llama")["worker"]["memory_bytes"] > 80 * 2**20


def test_a_wrong_request_is_told_in_the_words_of_the_server(running: Coordinator) -> None:
    answer = chat(running, temperature="hot")
    assert answer.status_code == 400
    assert "temperature" in answer.json()["error"]["message"]


def test_a_killed_coordinator_finds_the_server_warm(running: Coordinator) -> None:
    chat(running)
    before = server_of(running)
    running.kill()
    running.start()
    assert running.get("/api/v1/models/llama")["adopted"] is True
    assert server_of(running) == before
    assert chat(running).status_code == 200


def losses(running: Coordinator) -> list[dict[str, Any]]:
    """The events of workers that died."""
    events = running.get("/api/v1/events?follow=false&after=0&limit=1000")["events"]
    return [event for event in events if event["kind"] == "worker.lost"]


def test_a_killed_server_is_started_again(running: Coordinator) -> None:
    chat(running)
    before = server_of(running)
    before.kill()
    eventually(lambda: chat(running).status_code == 200, what="an answer of the next server")
    assert server_of(running) != before
    (lost,) = eventually(lambda: losses(running), what="the loss to be recorded")
    assert "was killed by SIGKILL" in lost["data"]["why"]


def test_over_the_api_only_trusted_programs_are_started(running: Coordinator) -> None:
    for options, said in (
        ({"command": ["sh", "-c", "true"]}, "trusted_commands"),
        ({**OPTIONS, "env": {"LD_PRELOAD": "/tmp/x.so"}}, "`env`"),
    ):
        body = {"name": "added", "runtime": "command", "memory": "500MiB", "options": options}
        answer = running.post("/api/v1/models", body)
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]
    command = [sys.executable, SCRIPT, "{port}", str(smollm2_path())]
    added = running.cli(
        "models", "add", "added", "--runtime", "command", "--memory", "500MiB", "--option", f"command={command}"
    )
    assert added.returncode == 0, added.stderr
    assert chat(running, "added").status_code == 200


def test_one_that_can_sleeps_when_it_is_idle_and_wakes_when_it_is_asked(running: Coordinator, tmp_path: Path) -> None:
    hooks = {"sleep": {"path": "/sleep"}, "wake": {"path": "/wake"}}
    command = [sys.executable, MOODY, "{port}", str(tmp_path), "32"]
    options = {"command": command, "kinds": ["chat"], **hooks}
    body = {"name": "moody", "runtime": "command", "memory": "200MiB", "ttl_s": 0.5, "options": options}
    assert running.post("/api/v1/models", body).status_code == 201
    assert chat(running, "moody").status_code == 200
    (server,) = (process for process in psutil.process_iter(["cmdline"]) if MOODY in (process.info["cmdline"] or ()))
    eventually(lambda: running.get("/api/v1/models/moody")["reason"] == "Asleep", what="it to sleep")
    assert running.get("/api/v1/models/moody")["state"] == "registered"
    assert "moody" not in [worker["model"].partition("@")[0] for worker in running.get("/api/v1/workers")["workers"]]
    assert chat(running, "moody").status_code == 200
    assert server.is_running()
    assert running.post("/api/v1/models/moody/unload").status_code == 200
    eventually(lambda: is_gone(server), what="the server to end")


def test_unloading_ends_the_server(running: Coordinator) -> None:
    chat(running)
    server = server_of(running)
    assert running.post("/api/v1/models/llama/unload").status_code == 200
    assert is_gone(server)


def test_what_stops_a_server_from_starting_is_told(running: Coordinator) -> None:
    command = [sys.executable, SCRIPT, "{port}", "/nowhere/model.gguf"]
    body = {"name": "torn", "runtime": "command", "memory": "1MiB", "options": {"command": command}}
    assert running.post("/api/v1/models", body).status_code == 201
    answer = running.post("/api/v1/models/torn/load")
    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert "ended with status 1 before it was ready: " in message
    shown = running.get("/api/v1/models/torn")
    assert (shown["state"], shown["reason"]) == ("failed", "load_failed")
