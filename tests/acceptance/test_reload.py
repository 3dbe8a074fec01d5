"""Configurations changed under a running `moc serve`: every setting that may change really does."""

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from moc.config.settings import LIVE
from tests.acceptance.conftest import EXAMPLES, model, served
from tests.coordinator import MOC, Coordinator, eventually, short_home

SLOW = Path(__file__).with_name("slow.py")
LEARNING = ["grace_s", "max_attempts", "max_parallel_jobs", "max_serving_p95_ratio", "min_runtime_s"]
"""They go the way of learning.disk_quota, which is tried."""

ASKED = {"inputs": [{"name": "INPUT0", "shape": [1], "datatype": "FP32", "data": [1.0]}]}
START: dict[str, Any] = {
    "models": {"slow": model("python", SLOW, preload=True)},
    "telemetry": {"log_level": "error"},
    "resources": {"gpu_poll_interval_s": 600},
    "devices": [{"id": "declared:0", "kind": "declared", "memory": "1GiB"}, {"id": "host", "kind": "host"}],
}


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    with short_home() as home:
        yield from served(Coordinator(home, config=START))


def put(coordinator: Coordinator, **sections: Any) -> None:
    """Change the coordinator's own file, and put it in force."""
    text = yaml.safe_dump({**START, **sections})
    (coordinator.data_dir / "moc.yaml").write_text(text)
    url, headers = f"{coordinator.url}/api/v1/config", coordinator.headers
    answer = httpx.put(url, json={"text": text}, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text


def add(coordinator: Coordinator, runtime: str, source: str, **more: Any) -> int:
    """The status with which a model is taken or refused."""
    return coordinator.post("/api/v1/models", {"name": "m", "runtime": runtime, "source": source, **more}).status_code


def ask(coordinator: Coordinator) -> int:
    return coordinator.post("/v2/models/slow/infer", ASKED).status_code


def in_flight(coordinator: Coordinator) -> int:
    return sum(worker["in_flight"] for worker in coordinator.get("/api/v1/workers")["workers"])


def limits(coordinator: Coordinator) -> dict[str, int]:
    return {device["id"]: device["limit_bytes"] for device in coordinator.get("/api/v1/devices")["devices"]}


def test_models_and_aliases_change_under_requests(coordinator: Coordinator) -> None:
    identity = EXAMPLES / "identity.py"
    put(
        coordinator,
        models={**START["models"], "identity": model("python", identity)},
        aliases={"front": {"versions": {"identity": 1}}},
    )
    assert coordinator.post("/v2/models/front/infer", _eight()).status_code == 200
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, coordinator)
        eventually(lambda: running.done() or in_flight(coordinator), what="the request to run")
        put(coordinator, models={"identity": model("python", identity, ttl_s=60)})
        assert running.result() == 200
    assert [each["reference"] for each in coordinator.get("/api/v1/models")["models"]] == ["identity@2"]
    assert coordinator.post("/v2/models/front/infer", _eight()).status_code == 404
    coordinator.kill()
    coordinator.start()
    assert [each["reference"] for each in coordinator.get("/api/v1/models")["models"]] == ["identity@2"]


def _eight() -> dict[str, Any]:
    return {"inputs": [{"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.0] * 8}]}


def test_every_setting_that_may_change_does(coordinator: Coordinator, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    tried = {
        "models": _none,
        "aliases": _none,
        **{f"learning.{name}": _none for name in LEARNING},
        "learning.disk_quota": lambda: _disk_quota(coordinator),
        "resources": lambda: _resources(coordinator),
        "security": lambda: _security(coordinator, tmp_path),
        "resilience": lambda: _resilience(coordinator),
        "server.drain_grace_s": _none,
        "telemetry.log_level": lambda: _last_words(coordinator),
    }
    assert set(tried) == set(LIVE)
    for look in tried.values():
        look()


def _none() -> None:
    """Looked at elsewhere."""


def _resources(coordinator: Coordinator) -> None:
    before = limits(coordinator)["declared:0"]
    put(coordinator, resources={"soft_limit_pct": 45, "gpu_poll_interval_s": 600})
    assert limits(coordinator)["declared:0"] == before // 2


def _disk_quota(coordinator: Coordinator) -> None:
    def upload() -> int:
        files, form = {"file": ("a.jsonl", b'{"text": "a"}\n' * 500)}, {"purpose": "fine-tune"}
        url, headers = f"{coordinator.url}/v1/files", coordinator.headers
        return httpx.post(url, files=files, data=form, headers=headers, timeout=60).status_code

    assert upload() == 200
    put(coordinator, learning={"disk_quota": "1KiB"})
    assert upload() == 507


def _security(coordinator: Coordinator, folder: Path) -> None:
    file, code, web = f"file:{folder}/model.onnx", f"file:{EXAMPLES}/identity.py", "https://127.0.0.1:1/m.onnx"
    command = {"options": {"command": ["/bin/true"]}, "memory": "1MiB"}
    asked = [("onnx", file), ("python", code), ("onnx", web)]
    assert [add(coordinator, *each) for each in asked] == [400, 400, 400]
    assert add(coordinator, "command", "", **command) == 400
    assert httpx.get(f"{coordinator.url}/api/v1/models").status_code == 401
    security = {
        "require_key": False,
        "failed_logins_per_min": 1,
        "allowed_model_roots": [str(folder)],
        "trusted_python_roots": [str(EXAMPLES)],
        "trusted_commands": ["/bin/true"],
        "allowed_model_hosts": ["127.0.0.1"],
    }
    put(coordinator, security=security)
    assert [add(coordinator, *each) for each in asked] == [201, 201, 201]
    assert add(coordinator, "command", "", **command) == 201
    assert httpx.get(f"{coordinator.url}/api/v1/models").status_code == 200
    wrong = [httpx.get(f"{coordinator.url}/api/v1/models", headers={"x-api-key": "x"}).status_code for _ in range(2)]
    assert wrong == [401, 429]


def _resilience(coordinator: Coordinator) -> None:
    with ThreadPoolExecutor(3) as pool:
        assert [*pool.map(lambda _: ask(coordinator), range(3))] == [200] * 3
        models = {**START["models"], "broken": model("python", Path("/nowhere.py"))}
        put(coordinator, models=models)
        story = [coordinator.post("/v2/models/broken/infer", ASKED).text for _ in range(2)]
        assert "keeps failing" not in "".join(story)
        breaker = {"failure_threshold": 1, "reset_timeout_s": 600}
        put(coordinator, models=models, resilience={"bulkhead": {"max_queue": 0}, "circuit_breaker": breaker})
        story = [coordinator.post("/v2/models/broken/infer", ASKED).text for _ in range(2)]
        assert "keeps failing" in story[1]
        assert sorted(pool.map(lambda _: ask(coordinator), range(3))) == [200, 503, 503]


def _last_words(coordinator: Coordinator) -> None:
    put(coordinator, telemetry={"log_level": "info"}, server={"drain_grace_s": 7.5})
    assert coordinator.stop() == 0
    assert re.search(r'"grace_s": 7\.5, "event": "draining"', coordinator.output), coordinator.output


def test_a_signal_has_the_file_read_again(coordinator: Coordinator) -> None:
    assert coordinator.process is not None
    file = coordinator.data_dir / "moc.yaml"
    file.write_text(yaml.safe_dump({**START, "resources": {"soft_limit_pct": 45}}))
    before = limits(coordinator)["declared:0"]
    coordinator.process.send_signal(signal.SIGHUP)
    eventually(lambda: limits(coordinator)["declared:0"] == before // 2, what="the new limit")
    file.write_text("resources: {soft_limit: 1}\n")
    coordinator.process.send_signal(signal.SIGHUP)
    eventually(lambda: f"{file}:1: resources.soft_limit: unknown key" in coordinator.output, what="the refusal")
    assert limits(coordinator)["declared:0"] == before // 2


def test_the_command_line_tells_and_changes(coordinator: Coordinator, tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"

    def say(*arguments: str) -> str:
        done = coordinator.cli("config", *arguments)
        return f"{done.returncode} {done.stdout}{done.stderr}"

    file.write_text(yaml.safe_dump({**START, "resources": {"eviction": "lru", "gpu_poll_interval_s": 600}}))
    change = r"resources\.eviction +cost +lru +at once"
    assert re.search(change, say("diff", str(file)))
    assert re.search(r"0 revision 2 is in force\n.*\n" + change, say("apply", str(file)))
    assert say("diff", str(file)) == "0 nothing would change\n"
    assert say("rollback", "1").startswith("0 revision 3 is in force")
    assert re.search(r"\n3 .* Rollback to 1 +applied +resources\.eviction\n", say("history"))
    assert re.search(r"^0 # revision 3 .*\nserver:\n", say("show"))
    file.write_text("server: {tls: {certificate: a, key: b}}\nresource: {}\n")
    assert say("apply", str(file)).startswith("1 moc: new.yaml:2: resource: unknown key; did you mean 'resources'?")
    file.write_text(yaml.safe_dump({**START, "security": {"require_key": False}}))
    assert say("apply", str(file)).startswith("1 moc: security.require_key: only the coordinator's own file")
    file.write_text(yaml.safe_dump({**START, "models": {"new": model("python", SLOW)}}))
    assert "trusted_python_roots" in say("apply", str(file))
    file.write_text("devices: auto\n")
    assert say("apply", str(file)).startswith("1 moc: devices: only a restart changes this")
    assert say("apply", str(tmp_path / "none.yaml")).startswith("1 moc: ")


def test_the_end_of_its_terminal_ends_it() -> None:
    with short_home() as home:
        home.mkdir(mode=0o700)
        command = [*MOC, "serve", "--data-dir", str(home), "--rest-port", "0", "--grpc-port", "0", "--zmq-port", "0"]
        terminal, slave = pty.openpty()
        with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
            os.close(slave)
            try:
                eventually((home / "endpoints.json").exists, what="the coordinator to be ready")
                (home / "moc.yaml").write_text("resources: {eviction: lru}\n")
                process.send_signal(signal.SIGHUP)
                eventually(lambda: revision_in(home) == 2, what="the file to be read")
                os.close(terminal)
                process.send_signal(signal.SIGHUP)
                assert process.wait(30) == 0
            finally:
                process.kill()


def revision_in(home: Path) -> int:
    done = subprocess.run([*MOC, "--data-dir", str(home), "config", "show", "--json"], capture_output=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return int(found["revision"])
