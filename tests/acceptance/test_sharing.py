"""A job and a model that do not fit beside each other: who asks for the model is served, and the job goes on later."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import model, served
from tests.coordinator import Coordinator, eventually, short_home
from tests.jobs import TRUSTED, folder_of, reaches, shown, submit_counting
from tests.memory import MIB, charges, events
from tests.models import smollm2_path

MODEL, JOB = 450 * MIB, 300 * MIB
STEPS, PAUSE_S = 120, 0.05
QUESTION = {"model": "smollm2", "messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 4}


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    """Room for the model or for the job."""
    config = {
        "models": {"smollm2": model("llama_cpp", smollm2_path(), options={"context": 512}, memory=MODEL, ttl_s=0)},
        "devices": [{"id": "host", "kind": "host", "memory": "600MiB"}],
        "resources": {"soft_limit_pct": 100, "eviction_threshold_pct": 100},
        "learning": {"min_runtime_s": 0.5, "grace_s": 120},  # longer than a load waits otherwise
        "security": TRUSTED,
    }
    with short_home() as data_dir:
        yield from served(Coordinator(data_dir, config=config))


def place(told: list[dict[str, Any]], kind: str, subject: str) -> int:
    """Where in the log something happened last."""
    return max(number for number, event in enumerate(told) if (event["kind"], event["subject"]) == (kind, subject))


def test_a_job_makes_way_for_a_request_and_goes_on_when_the_model_is_gone(coordinator: Coordinator) -> None:
    job = submit_counting(coordinator, STEPS, PAUSE_S, memory=JOB)
    reaches(coordinator, job, "running")
    eventually(lambda: shown(coordinator, job)["progress"]["step"] > 3, what="it to count")
    foreseen = json.loads(coordinator.cli("explain", "load", "smollm2", "--json").stdout)
    assert (foreseen["fits"], [each["job"] for each in foreseen["pauses"]]) == (True, [job])

    answer = coordinator.post("/v1/chat/completions", QUESTION)
    assert answer.status_code == 200, answer.text
    assert charges(coordinator) == {"model:smollm2@1": MODEL}
    paused = reaches(coordinator, job, "paused")
    assert (paused["reason"], paused["attempts"][-1]["outcome"] != "") == ("Preempted", True)

    def has_said_why() -> bool:
        said = coordinator.cli("jobs", "show", job).stdout
        return "300MiB on host" in said and "smollm2@1 has 450MiB" in said

    eventually(has_said_why, what="it to say what it waits for")

    coordinator.post("/api/v1/models/smollm2/unload").raise_for_status()
    done = reaches(coordinator, job, "succeeded")
    assert done["progress"]["step"] == STEPS
    counted = [int(line.split()[1]) for line in (folder_of(coordinator, job) / "journal").read_text().splitlines()]
    assert counted == [*range(1, STEPS + 1)], "it went on where it was"
    told = events(coordinator)
    ready, unloaded = place(told, "model.ready", "smollm2@1"), place(told, "model.unloading", "smollm2@1")
    assert place(told, "job.paused", job) < ready < unloaded < place(told, "job.running", job)
    assert not charges(coordinator)
