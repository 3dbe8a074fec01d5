"""kill -9 of a real training or of the coordinator at random steps: what it ends in is as if nothing had happened.

`KILL_ROUNDS=10` for a longer look (`make kills`), `MOC_TEST_SEED` for the same moments again.
"""

import hashlib
import json
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from moc.client import Client
from tests.coordinator import Coordinator, eventually
from tests.faults.test_jobs_kill import SEED, kill_something, nothing_is_left
from tests.jobs import folder_of, reaches, shown
from tests.memory import events
from tests.tiny import llama
from tests.trainings import CHATS

ROUNDS = int(os.environ.get("KILL_ROUNDS", "2"))
STEPS_A_ROUND = 60
ENDS = {"job.succeeded", "job.failed", "job.cancelled"}
ROUND_S = 90.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 2 * ROUNDS * ROUND_S)]


@pytest.fixture
def coordinator(home: Path, tmp_path: Path) -> Iterator[Coordinator]:
    """It has a tiny model with random weights that can be trained."""
    model = {"runtime": "transformers", "source": f"file:{llama(tmp_path / 'tiny')}", "options": {"device": "cpu"}}
    coordinator = Coordinator(home, config={"models": {"tiny": model}, "devices": [{"id": "host", "kind": "host"}]})
    try:
        yield coordinator.start()
    finally:
        coordinator.close()


def _submit(coordinator: Coordinator, name: str, data: Path) -> str:
    with Client(coordinator.url, key=coordinator.key) as client:
        job = client.jobs.submit(
            "sft",
            model="tiny",
            name=name,
            training_file=client.files.add(data)["id"],
            seed=3,
            hyperparameters={
                "max_steps": STEPS_A_ROUND * ROUNDS,
                "batch_size": 2,
                "learning_rate": 1e-3,
                "lora_rank": 4,
                "lora_dropout": 0.1,
                "checkpoint_steps": 7,
            },
        )
    return job["id"]


def _is_beyond(coordinator: Coordinator, job: str, step: int) -> bool:
    now = shown(coordinator, job)
    assert now["status"] in {"running", "queued"}, now
    return int(now["progress"]["step"]) >= step and now["attempts"][-1]["outcome"] == ""


def _adapter(coordinator: Coordinator, job: str) -> str:
    (file,) = folder_of(coordinator, job).glob("output/adapter/adapter_model.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _losses(coordinator: Coordinator, job: str) -> dict[int, set[float]]:
    found: dict[int, set[float]] = {}
    after: int | None = 0
    while after is not None:
        page: dict[str, Any] = coordinator.get(f"/api/v1/jobs/{job}/events?limit=1000&after={after}")
        for event in page["events"]:
            if "train_loss" in event["data"] and "step" in event["data"]:
                found.setdefault(event["data"]["step"], set()).add(event["data"]["train_loss"])
        after = page["next"]
    return found


def test_a_killed_training_ends_as_if_nothing_had_happened(coordinator: Coordinator, home: Path) -> None:
    print(f"MOC_TEST_SEED={SEED} KILL_ROUNDS={ROUNDS}")
    dice = random.Random(SEED)
    data = home.parent / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    calm = _submit(coordinator, "calm", data)
    reaches(coordinator, calm, "succeeded", timeout_s=ROUND_S * ROUNDS)

    job = _submit(coordinator, "shaken", data)
    for number in range(ROUNDS):
        step = STEPS_A_ROUND * number + dice.randrange(1, STEPS_A_ROUND // 2)
        eventually(partial(_is_beyond, coordinator, job, step), timeout_s=ROUND_S, what=f"step {step}")
        kill_something(coordinator, ("program", "coordinator")[number % 2])
    done = reaches(coordinator, job, "succeeded", "failed", timeout_s=ROUND_S * ROUNDS)

    assert done["status"] == "succeeded", done
    assert done["attempt_count"] == 1 + (ROUNDS + 1) // 2  # a killed coordinator costs none
    assert _adapter(coordinator, job) == _adapter(coordinator, calm)
    assert _losses(coordinator, job) == _losses(coordinator, calm)
    ends = [event["subject"] for event in events(coordinator) if event["kind"] in ENDS]
    assert sorted(ends) == sorted([calm, job])
    eventually(lambda: nothing_is_left(coordinator), what="nothing to be left")
