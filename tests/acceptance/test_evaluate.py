"""Evaluations of a real model: every kind of task, a program that is killed in the middle, and two runs compared."""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from moc.client import Client
from moc.kernel.errors import Conflict, Unauthenticated
from tests.acceptance.conftest import ROOT, model
from tests.coordinator import Coordinator, eventually, short_home
from tests.models import smollm2_path

EXAMPLES = ROOT / "examples" / "evaluate"
ACCURACIES = {"capitals", "yes-or-no", "numbers", "records", "facts"}
LONG = {
    "name": "long",
    "type": "contains",
    "concurrency": 1,
    "items": [{"prompt": f"Count from {number} to {number + 9}.", "expected": str(number + 1)} for number in range(12)],
}


@pytest.fixture(scope="module")
def coordinator() -> Iterator[Coordinator]:
    models = {"smollm2": model("llama_cpp", smollm2_path(), options={"context": 4096, "slots": 4})}
    with short_home() as home:
        coordinator = Coordinator(home, config={"models": models})
        try:
            yield coordinator.start()
        finally:
            coordinator.close()


@pytest.fixture
def client(coordinator: Coordinator) -> Iterator[Client]:
    with Client(coordinator.url, coordinator.key) as client:
        yield client


def _evaluated(coordinator: Coordinator, suite: Path) -> dict[str, Any]:
    done = coordinator.cli("evaluate", "run", "--model", "smollm2", "--suite", str(suite), "--wait", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_kind_of_task_is_measured(coordinator: Coordinator, client: Client) -> None:
    suite = EXAMPLES / "suite.yaml"
    first = _evaluated(coordinator, suite)
    tasks = first["tasks"]
    assert {name for name, task in tasks.items() if task["metric"] == "accuracy"} == ACCURACIES
    assert first["score"] == pytest.approx(sum(tasks[name]["score"] for name in ACCURACIES) / len(ACCURACIES))
    assert tasks["facts"]["score"] == tasks["records"]["score"] == tasks["numbers"]["score"] == 1
    assert all(task["errors"] == 0 and task["ci95"][0] <= task["score"] <= task["ci95"][1] for task in tasks.values())
    assert 2 < tasks["prose"]["score"] < 40
    assert tasks["speed"]["n"] == 4
    assert (
        0 < tasks["speed"]["more"]["first_token_p50_ms"] < tasks["speed"]["more"]["p50_ms"] <= tasks["speed"]["score"]
    )
    items = client.evaluations.items(first["id"], limit=1000)["items"]
    digest = client.models.show("smollm2")["digest"]
    assert {item["digest"] for item in items} == {digest}
    wrong = client.evaluations.items(first["id"], task="capitals", failed=True)["items"]
    assert 0 < len(wrong) < 4
    second = _evaluated(coordinator, suite)
    assert second["suite_digest"] == first["suite_digest"]
    compared = client.evaluations.compare(first["id"], second["id"])["tasks"]
    assert compared.keys() == tasks.keys()
    assert compared["facts"]["test"] == "mcnemar"
    assert compared["prose"]["test"] == "permutation"
    assert all(compared[name]["difference"] == 0 and compared[name]["p_value"] == 1 for name in ("facts", "records"))


def test_what_was_asked_before_a_pause_and_a_kill_is_not_asked_again(coordinator: Coordinator, client: Client) -> None:
    suite = {"name": "long", "defaults": {"max_tokens": 24}, "tasks": [LONG]}
    begun = client.evaluations.run("smollm2", suite)
    items = coordinator.data_dir / "jobs" / begun["id"] / "output" / "items.jsonl"
    eventually(lambda: items.exists() and items.read_bytes().count(b"\n") >= 2, what="the first items")
    client.jobs.pause(begun["id"])
    eventually(lambda: client.jobs.show(begun["id"])["status"] == "paused", what="the evaluation to be paused")
    seen = items.read_bytes().count(b"\n")
    client.jobs.resume(begun["id"])
    eventually(lambda: items.read_bytes().count(b"\n") > seen, what="more items")
    key = next((coordinator.data_dir / "jobs" / begun["id"] / "attempts" / "2").glob("*.key"))
    assert key.stat().st_mode & 0o077 == 0
    _kill_program(begun["id"])
    job = client.jobs.wait(begun["id"])
    assert (job["status"], job["attempt_count"]) == ("succeeded", 3), job["message"]
    asked = Counter(json.loads(line)["id"] for line in items.read_bytes().splitlines())
    assert asked == Counter(str(number) for number in range(12))
    with Client(coordinator.url, key.read_text().strip()) as visitor, pytest.raises(Unauthenticated):
        visitor.models.list()
    other = client.evaluations.run("smollm2", {**suite, "tasks": [{**LONG, "limit": 1}]})
    assert client.jobs.wait(other["id"])["status"] == "succeeded"
    with pytest.raises(Conflict, match="different suites"):
        client.evaluations.compare(begun["id"], other["id"])


@pytest.mark.slow
def test_a_task_of_the_harness_is_measured(coordinator: Coordinator, client: Client) -> None:
    pytest.importorskip("lm_eval")
    found = _evaluated(coordinator, EXAMPLES / "harness.yaml")
    task = found["tasks"]["sums"]
    assert (task["metric"], task["n"]) == ("acc", 3)
    assert task["score"] >= 2 / 3
    assert "acc_norm" in task["more"]
    items = client.evaluations.items(found["id"])["items"]
    assert [item["id"] for item in items] == ["0", "1", "2"]


def _kill_program(job: str) -> None:
    """SIGKILL what evaluates, not who looks after it."""
    for process in psutil.process_iter(["cmdline", "environ"]):
        command, environment = process.info["cmdline"] or (), process.info["environ"] or {}
        if "moc.workers.trainers.evaluate" in command and environment.get("MOC_JOB_ID") == job:
            os.kill(process.pid, signal.SIGKILL)
            return
    raise AssertionError("there is no program to kill")
