"""A search over a real coordinator: both are killed in the middle, and no trial is lost or begun twice."""

import json
import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.coordinator import Coordinator, eventually, short_home
from tests.jobs import TRUSTED

TRIALS = 6
PROGRAM = textwrap.dedent(
    """
    import json, os, pathlib, sys, time

    x = json.loads(os.environ["MOC_HYPERPARAMETERS"])["x"]
    with open(sys.argv[1], "a") as journal:
        journal.write(os.environ["MOC_JOB_ID"] + "\\n")
    for step in range(1, 4):
        told = {"type": "metrics", "step": step, "metrics": {"valid_loss": x * x + 1 / step}}
        with open(os.environ["MOC_PROGRESS_FILE"], "a") as file:
            file.write(json.dumps(told) + "\\n")
        time.sleep(0.1)
    """
)


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    pytest.importorskip("optuna")
    config = {"security": TRUSTED, "learning": {"max_parallel_jobs": 2}}
    with short_home() as home:
        coordinator = Coordinator(home, config=config)
        try:
            yield coordinator.start()
        finally:
            coordinator.close()


def test_a_search_survives_its_program_and_the_coordinator(coordinator: Coordinator) -> None:
    program, journal = coordinator.data_dir / "trial.py", coordinator.data_dir / "journal"
    program.write_text(PROGRAM)
    search = _submit(coordinator, **_search([sys.executable, str(program), str(journal)]))
    path = f"/api/v1/jobs/{search}"
    eventually(lambda: coordinator.get(path)["progress"]["step"] >= 1, what="the first trial to end")
    coordinator.kill()
    coordinator.start()
    eventually(lambda: coordinator.get(path)["progress"]["step"] >= 2, what="the next one to end")
    _kill_program(search)
    ended = eventually(lambda: _ended(coordinator.get(path)), timeout_s=60, what="the search to end")
    assert ended["status"] == "succeeded", ended["message"]
    assert ended["attempt_count"] == 2
    data = ended["outcome"]["data"]
    jobs = [trial["job"] for trial in data["trials"]]
    assert [trial["number"] for trial in data["trials"]] == list(range(TRIALS))
    assert {trial["state"] for trial in data["trials"]} <= {"completed", "pruned"}
    assert sorted(journal.read_text().split()) == sorted(jobs)
    children = coordinator.get(f"/api/v1/jobs?parent={search}")["jobs"]
    assert sorted(child["id"] for child in children) == sorted(jobs)
    assert [child["metadata"]["trial"] for child in sorted(children, key=lambda child: jobs.index(child["id"]))] == [
        str(number) for number in range(TRIALS)
    ]
    completed = [trial for trial in data["trials"] if trial["state"] == "completed"]
    assert data["best"] == min(completed, key=lambda trial: trial["value"])
    assert data["best"]["value"] == pytest.approx(data["best"]["hyperparameters"]["x"] ** 2 + 1 / 3)
    keys = coordinator.get("/api/v1/keys")["keys"]
    assert not [key for key in keys if search in key["name"] and key["state"] == "active"]


def test_a_search_takes_its_trials_with_it(coordinator: Coordinator) -> None:
    search = _submit(coordinator, **_search([sys.executable, "-c", "import time; time.sleep(600)"]))
    children = f"/api/v1/jobs?parent={search}"
    eventually(lambda: [job for job in coordinator.get(children)["jobs"] if job["status"] == "running"])
    assert coordinator.post(f"/api/v1/jobs/{search}/cancel").status_code == 200
    eventually(lambda: _ended(coordinator.get(f"/api/v1/jobs/{search}")), what="the search to be cancelled")
    eventually(lambda: all(_ended(job) for job in coordinator.get(children)["jobs"]), what="its trials, too")
    assert {job["reason"] for job in coordinator.get(children)["jobs"]} == {"Parent"}
    eventually(lambda: not coordinator.supervisor_pids())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_best_trial_becomes_the_model_of_the_search(coordinator: Coordinator) -> None:
    pytest.importorskip("trl")
    from tests.gguf_models import tiny_gguf  # brings torch

    source = tiny_gguf(coordinator.data_dir / "models")
    answer = coordinator.post("/api/v1/models", {"name": "tiny", "runtime": "llama_cpp", "source": f"file:{source}"})
    assert answer.status_code == 201, answer.text
    search = _submit(
        coordinator,
        name="best",
        model="tiny",
        training_file=_upload(coordinator),
        hyperparameters={"max_steps": 1, "max_length": 64},
        options={
            "base": {"type": "supervised"},
            "space": {"learning_rate": {"low": "1e-4", "high": 1e-2, "log": True}},
            "metric": "train_loss",
            "trials": 1,
        },
    )
    path = f"/api/v1/jobs/{search}"
    ended = eventually(lambda: _ended(coordinator.get(path)), timeout_s=180, what="the search to end")
    assert ended["status"] == "succeeded", ended["message"]
    assert ended["outcome"]["model"] == "best@1"
    assert {model["name"] for model in coordinator.get("/api/v1/models")["models"]} == {"tiny", "best"}
    lineage = coordinator.get("/api/v1/models/best/versions/1")["lineage"]
    best = ended["outcome"]["data"]["best"]
    assert lineage["job"] == best["job"]
    assert lineage["hyperparameters"]["learning_rate"] == best["hyperparameters"]["learning_rate"]


def _upload(coordinator: Coordinator) -> str:
    rows = [
        {"messages": [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": "A number."}]}
        for number in range(4)
    ]
    answer = httpx.post(
        f"{coordinator.url}/v1/files",
        headers=coordinator.headers,
        files={"file": ("rows.jsonl", "\n".join(map(json.dumps, rows)))},
        data={"purpose": "fine-tune"},
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def _search(command: list[str]) -> dict[str, Any]:
    """One over a script that is told `x`."""
    base = {"type": "script", "options": {"command": command}, "memory": "64MiB"}
    return {"options": {"base": base, "space": {"x": {"low": -1.0, "high": 1.0}}, "trials": TRIALS}}


def _submit(coordinator: Coordinator, **wish: Any) -> str:
    body = {"type": "tune", **wish}
    answer = coordinator.post("/api/v1/jobs", body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def _ended(job: dict[str, Any]) -> dict[str, Any]:
    """The job, or nothing while it has not ended."""
    return job if job["status"] in ("succeeded", "failed", "cancelled") else {}


def _kill_program(job: str) -> None:
    """Of the search: the child of its supervisor."""
    (supervisor,) = (
        process
        for process in psutil.process_iter(["cmdline"])
        if any(f"/jobs/{job}/attempts/" in part for part in process.info["cmdline"] or ())
    )
    (program,) = supervisor.children()
    os.kill(program.pid, signal.SIGKILL)
