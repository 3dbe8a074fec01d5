"""A search with real Optuna over trials that are not real jobs: ended at any moment, it goes on and loses nothing."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from moc.client.job_views import JobEventView, JobView
from moc.kernel.errors import InvalidRequest
from moc.workers.trainers.assignment import Failure
from moc.workers.trainers.report import Report

pytest.importorskip("optuna")
from moc.workers.trainers.search import Search

TERMS: dict[str, Any] = {
    "space": {"x": {"low": -1.0, "high": 1.0}, "n": {"low": 1, "high": 3}, "kind": {"choices": ["a", "b"]}},
    "trials": 6,
    "parallel": 2,
    "metric": "valid_loss",
    "direction": "minimize",
    "pruner": "none",
    "sampler_seed": 0,
}
STEPS = 4


class FakeJobs:
    """Jobs that tell the square of their `x`, a little less with each step, and outlive the search that submits them.

    `interrupt` is called at every step, and may end the search by raising.
    """

    def __init__(self) -> None:
        self.submitted: dict[int, dict[str, Any]] = {}
        self.times: dict[int, int] = {}
        self.fails: Mapping[int, str] = {}
        self.refuses: Mapping[int, str] = {}
        self.silent: frozenset[int] = frozenset()
        self.hopeless: frozenset[int] = frozenset()
        self.pruned: set[int] = set()
        self.interrupt: Callable[[], None] = lambda: None
        self.running = self.running_most = 0

    async def submit(self, number: int, hyperparameters: Mapping[str, Any]) -> str:
        self.interrupt()
        if number in self.refuses:
            raise InvalidRequest(self.refuses[number])
        self.times[number] = self.times.get(number, 0) + 1
        assert self.submitted.setdefault(number, dict(hyperparameters)) == dict(hyperparameters)
        self.interrupt()
        return f"job-{number}"

    async def follow(self, job_id: str) -> AsyncGenerator[JobEventView, None]:
        number = int(job_id.removeprefix("job-"))
        self.running += 1
        self.running_most = max(self.running, self.running_most)
        try:
            yield cast(JobEventView, {"type": "message", "message": "it began", "data": {}})
            for step in (1, 2, 1, 2, *range(3, STEPS + 1)):  # as one that went on from a checkpoint
                self.interrupt()
                await asyncio.sleep(0)
                if number in self.pruned:
                    return
                data = (
                    {"step": step} if number in self.silent else {"step": step, "valid_loss": self.value(number, step)}
                )
                yield cast(JobEventView, {"type": "metrics", "message": "", "data": data})
        finally:
            self.running -= 1

    async def show(self, job_id: str) -> JobView:
        self.interrupt()
        number = int(job_id.removeprefix("job-"))
        view: dict[str, Any] = {"status": "succeeded", "reason": "Done", "message": "", "outcome": {"metrics": {}}}
        if number in self.pruned:
            view |= {"status": "cancelled", "reason": "Pruned"}
        elif number in self.fails:
            view |= {"status": "failed", "reason": "ProgramFailed", "message": self.fails[number]}
        return cast(JobView, view)

    async def prune(self, job_id: str) -> None:
        self.interrupt()
        self.pruned.add(int(job_id.removeprefix("job-")))

    def value(self, number: int, step: int = STEPS) -> float:
        worse = 100.0 if number in self.hopeless else 0.0
        return float(self.submitted[number]["x"]) ** 2 + worse - step / 100


class Killed(BaseException):
    """Ends a search as SIGKILL would: nothing of it runs any more."""


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs = FakeJobs()
        self.progress = folder / "progress.jsonl"

    async def search(self, **terms: Any) -> None:
        search = Search(self.folder / "study.db", {**TERMS, **terms}, jobs=self.jobs, report=Report(str(self.progress)))
        await search.run()
        search.tell_result()

    def told(self, kind: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.progress.read_text().splitlines()]
        return [line for line in lines if line["type"] == kind]

    @property
    def result(self) -> dict[str, Any]:
        (line,) = self.told("result")
        return line


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_a_search_tries_as_many_as_it_was_told_and_keeps_the_best(bench: Bench) -> None:
    await bench.search()
    trials = bench.result["data"]["trials"]
    assert [trial["number"] for trial in trials] == list(range(6))
    assert {trial["state"] for trial in trials} == {"completed"}
    assert [trial["job"] for trial in trials] == [f"job-{number}" for number in range(6)]
    assert [trial["hyperparameters"] for trial in trials] == [bench.jobs.submitted[number] for number in range(6)]
    values = {number: bench.jobs.value(number) for number in range(6)}
    assert {trial["number"]: trial["value"] for trial in trials} == values
    best = min(values, key=lambda number: values[number])
    assert bench.result["data"]["best"] == trials[best]
    assert bench.result["metrics"] == {"valid_loss": values[best], "best_trial": best, "trials": 6}
    assert bench.jobs.running_most == 2
    last = bench.told("metrics")[-1]
    assert (last["step"], last["total_steps"]) == (6, 6)
    assert last["metrics"]["best_valid_loss"] == values[best]


async def test_values_are_of_the_types_that_were_declared(bench: Bench) -> None:
    await bench.search(trials=8)
    for point in bench.jobs.submitted.values():
        assert -1 <= point["x"] <= 1
        assert point["n"] in (1, 2, 3)
        assert isinstance(point["n"], int)
        assert point["kind"] in ("a", "b")
    assert len({json.dumps(point) for point in bench.jobs.submitted.values()}) == 8


async def test_more_can_be_what_is_better(bench: Bench) -> None:
    await bench.search(direction="maximize")
    assert bench.result["data"]["best"]["value"] == max(bench.jobs.value(number) for number in range(6))


async def test_a_trial_that_fails_is_told_and_the_search_goes_on(bench: Bench) -> None:
    bench.jobs.fails, bench.jobs.refuses, bench.jobs.silent = {1: "so it is"}, {2: "no such rank"}, frozenset({3})
    await bench.search()
    trials = bench.result["data"]["trials"]
    states = [trial["state"] for trial in trials]
    assert states == ["completed", "failed", "failed", "failed", "completed", "completed"]
    assert trials[1]["message"] == "job job-1 is failed: so it is"
    assert trials[2]["message"] == "no such rank"
    assert trials[3]["message"] == "job job-3 told no valid_loss"
    assert len(bench.told("message")) == 3
    assert bench.told("metrics")[-1]["metrics"]["trials_failed"] == 3


async def test_a_search_of_which_nothing_came_fails_and_says_why(bench: Bench) -> None:
    bench.jobs.fails = dict.fromkeys(range(6), "no memory")
    with pytest.raises(Failure, match=r"none of 6 trials came to an end.*no memory"):
        await bench.search()


async def test_a_job_without_prospects_is_pruned(bench: Bench) -> None:
    bench.jobs.hopeless = frozenset({4})
    await bench.search(parallel=1, pruner="median", trials=5)
    assert 4 in bench.jobs.pruned
    pruned = bench.result["data"]["trials"][4]
    assert pruned["state"] == "pruned"
    assert bench.result["data"]["best"]["number"] not in bench.jobs.pruned


async def test_nothing_is_pruned_unless_that_is_wanted(bench: Bench) -> None:
    bench.jobs.hopeless = frozenset({4})
    await bench.search(parallel=1, trials=5)
    assert not bench.jobs.pruned


@pytest.mark.parametrize("seed", range(3))
async def test_a_search_that_is_killed_again_and_again_loses_no_trial_and_begins_none_twice(
    bench: Bench, seed: int
) -> None:
    chance = random.Random(seed)

    def interrupt() -> None:
        if chance.random() < 0.05:
            raise Killed

    bench.jobs.interrupt = interrupt
    kills = 0
    while True:
        try:
            await bench.search(parallel=3, pruner="median", trials=6)
            break
        except Killed:
            kills += 1
    trials = bench.result["data"]["trials"]
    assert [trial["number"] for trial in trials] == list(range(6)), f"{kills} kills"
    assert sorted(bench.jobs.submitted) == list(range(6))
    assert {trial["state"] for trial in trials} <= {"completed", "pruned"}
    assert len({json.dumps(point) for point in bench.jobs.submitted.values()}) == 6
    for trial in trials:
        assert (trial["state"] == "pruned") == (trial["number"] in bench.jobs.pruned)
        assert trial["state"] == "pruned" or trial["value"] == bench.jobs.value(trial["number"])


async def test_a_search_that_is_asked_to_end_can_go_on(bench: Bench) -> None:
    reached = asyncio.Event()

    def interrupt() -> None:
        if len(bench.jobs.submitted) == 3:
            reached.set()

    bench.jobs.interrupt = interrupt
    work = asyncio.create_task(bench.search())
    await reached.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await bench.search()
    assert len(bench.result["data"]["trials"]) == 6


async def test_what_was_tried_is_not_tried_again(bench: Bench) -> None:
    await bench.search(space={"x": {"choices": [0.5, 0.1]}, "kind": {"choices": ["a", "b"]}}, trials=12, parallel=1)
    trials = bench.result["data"]["trials"]
    points = [json.dumps(trial["hyperparameters"], sort_keys=True) for trial in trials]
    assert (len(trials), len(bench.jobs.submitted)) == (12, len(set(points)))
    for trial, point in zip(trials, points, strict=True):
        first = trials[points.index(point)]
        assert (trial["job"], trial["value"]) == (first["job"], first["value"])
    assert bench.result["data"]["best"]["job"] in {f"job-{number}" for number in bench.jobs.submitted}
