"""What a program's lines make of its job, whatever it writes."""

import json
import random
from typing import Any

import msgspec
import pytest

from moc.learning.job import Attempt, Job, JobSpec, JobType
from moc.learning.told import CHECKPOINTS_MAX, METRICS_MAX, take_up
from tests.job_house import made_job

JOB = made_job(
    JobSpec(type=JobType.SCRIPT),
    attempts=(Attempt(number=1, host="here", started_at=1.0),),
    attempt_count=1,
)


def told(*lines: dict[str, Any], job: Job = JOB, gone: tuple[str, ...] = ()) -> tuple[Job, list[tuple[str, str]]]:
    """The job, and type and message of each event."""
    found = take_up(job, lines, now=5.0, exists=lambda name: name not in gone)
    return found.job, [(tale.type, tale.message) for tale in found.tales]


def test_metrics_are_progress_and_events() -> None:
    job, events = told(
        {"type": "metrics", "step": 3, "total_steps": 20, "epoch": 0.3, "eta_s": 12.5, "metrics": {"train_loss": 1.25}},
        {"type": "metrics", "step": 4, "metrics": {"memory_bytes": 1000}},
    )

    assert (job.progress.step, job.progress.total_steps, job.progress.epoch) == (4, 20, 0.3)
    assert job.progress.metrics == {"train_loss": 1.25, "memory_bytes": 1000}
    assert job.progress.memory_bytes == 1000
    assert job.attempts[-1].last_step == 4
    assert events == [("metrics", "Step 3/20: train_loss=1.25"), ("metrics", "Step 4/20")]


def test_checkpoints_are_those_that_are_there() -> None:
    lines = [{"type": "checkpoint", "name": f"checkpoint-{step}", "step": step} for step in (10, 20, 20, 30)]
    job, events = told(*lines, gone=("checkpoint-10",))

    assert [(each.name, each.step) for each in job.checkpoints] == [("checkpoint-20", 20), ("checkpoint-30", 30)]
    assert len(events) == 4
    many, _ = told(*({"type": "checkpoint", "name": f"c{n}", "step": n} for n in range(CHECKPOINTS_MAX + 5)))
    assert len(many.checkpoints) == CHECKPOINTS_MAX


def test_of_too_many_lines_the_most_telling_are_heard_and_it_is_said_once() -> None:
    lines: list[dict[str, object]] = [{"type": "metrics", "step": step} for step in range(1, 100)]
    lines[10:10] = [
        {"type": "checkpoint", "name": "checkpoint-10", "step": 10},
        {"type": "message", "message": "hello"},
    ]
    first = take_up(JOB, lines, now=1.0, exists=lambda name: True, events_max=4)
    again = take_up(first.job, lines, now=1.0, exists=lambda name: True, events_max=4)

    heard = ["Checkpoint checkpoint-10 was saved", "hello", "Step 98", "Step 99"]
    assert [tale.message for tale in first.tales[:-1]] == heard
    assert "left out" in first.tales[-1].message
    assert [tale.message for tale in again.tales] == heard
    assert (again.job.progress.step, again.job.attempts[-1].left_out) == (99, 2 * 97)


def test_the_last_word_is_remembered_with_the_attempt() -> None:
    job, events = told(
        {"type": "error", "reason": "DiskFull", "message": "no room"}, {"type": "result", "metrics": {"a": 1}}
    )

    assert job.attempts[-1].told == {"type": "result", "metrics": {"a": 1}, "trained_tokens": 0, "data": {}}
    assert events == [("message", "no room")]


@pytest.mark.parametrize(
    "line",
    [
        {"type": "metrics", "step": -1, "metrics": {"loss": float("nan"), "x": float("inf"), "y": "no", "z": 10**400}},
        {"type": "metrics", "step": "three", "total_steps": None, "metrics": [1, 2]},
        {"type": "metrics", "step": True, "epoch": float("inf"), "eta_s": "soon"},
        {"type": "metrics", "metrics": {f"m{n}": n for n in range(1000)}},
        {"type": "message", "message": {"not": "text"}, "level": "shout"},
        {"type": "message", "message": "x" * 100_000},
        {"type": "checkpoint", "name": None, "step": 1e300, "metrics": 3},
        {"type": "result", "data": {"deep": [[[1]]], "big": 2**70}},
        {"type": "result", "metrics": [1], "trained_tokens": "many", "data": 3},
        {"type": "error"},
        {"type": "nothing known"},
        {"type": ["a", "list"]},
        {},
        {"type": "message", "message": "\ud800 alone"},
    ],
)
def test_nothing_a_program_writes_does_harm(line: dict[str, Any]) -> None:
    found = take_up(JOB, [line], now=5.0, exists=lambda _: True)

    again = msgspec.json.decode(msgspec.json.encode(found.job), type=Job)
    assert again == found.job
    assert len(found.job.progress.metrics) <= METRICS_MAX
    assert all(len(tale.message) <= 2_000 for tale in found.tales)
    msgspec.json.encode([tale.data for tale in found.tales])


def test_random_lines_do_no_harm_either() -> None:
    dice = random.Random(20261123)
    values = [None, True, -1, 3, 2.5, "x", "", [1], {"a": 1}, {"train_loss": 0.5}, float("nan"), 2**80]
    names = ["type", "step", "total_steps", "metrics", "message", "name", "level", "epoch", "eta_s", "data"]
    kinds = ["metrics", "message", "checkpoint", "error", "result", "other"]
    job = JOB
    for _ in range(3000):
        line: dict[str, Any] = {name: dice.choice(values) for name in dice.sample(names, dice.randint(0, 6))}
        line["type"] = dice.choice(kinds)
        job = take_up(job, [line], now=1.0, exists=lambda _: True).job
        assert json.loads(msgspec.json.encode(job))
        assert job.attempts[-1].last_step >= 0
