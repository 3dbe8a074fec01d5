"""Tasks of the lm-evaluation-harness: what counts of them, against an engine that is a function."""

import asyncio
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from moc.kernel.errors import InvalidRequest, Unimplemented
from moc.learning.scoring import Record, TaskResult
from moc.learning.suite import Harness, Message, Suite
from moc.workers.trainers import harness
from moc.workers.trainers.assignment import Failure
from moc.workers.trainers.endpoint import Endpoint, Likelihood, Reply
from moc.workers.trainers.records import Records

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow

GENERATION = {"output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}
EXACT = {**GENERATION, "metric_list": [{"metric": "exact_match"}]}
FLEXIBLE = [{"function": "regex", "regex_pattern": "(\\d+)"}, {"function": "take_first"}]
STRICT_FIRST = [{"name": "strict", "filter": [{"function": "take_first"}]}, {"name": "flexible", "filter": FLEXIBLE}]


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": ["yes", "no"],
    "doc_to_target": "{{a}}",
}
LIKELIHOOD = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "metric_list": [{"metric": "perplexity"}],
}
CHOICES = [{"q": f"Is it {number}?", "a": number % 2} for number in range(10)]


class Engine(Endpoint):
    """Answers a number with itself, below 5 rightly; cannot read the `long` ones. Likes nothing that stands alone."""

    def __init__(self) -> None:
        self.long: tuple[int, ...] = ()
        self.asked: list[str] = []
        self.prefix = ""
        self.how: Mapping[str, Any] = {}

    async def answer(self, prompt: str | Sequence[Message], how: Mapping[str, Any], *, chat: bool) -> Reply:
        self.asked.append(str(prompt))
        self.how = how
        number = int(re.findall(r"\d+", str(prompt))[-1])
        if number in self.long:
            raise InvalidRequest("the prompt is too long")
        return Reply(text=f"{self.prefix}{number if number < 5 else 99}", digest="d")

    async def likelihood(self, text: str, begin: int, *, whole: bool = False) -> Likelihood:
        if whole:
            raise Unimplemented("there is no token before a text")
        return Likelihood(logprobs=(-1.0 if text.endswith("yes") else -2.0,), greedy=False, digest="d")


class Bench:
    """The harness over ten rows in one folder, as in the attempts of a job."""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.engine = Engine()
        self.answered = 0
        self._folder = folder
        self._loop = loop

    def run(self, config: dict[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> TaskResult:
        task = Suite.parse(
            {"name": "s", "tasks": [{"type": "harness", "name": "t", "data": {"file": "f"}, "config": config}]}
        ).tasks[0]
        assert isinstance(task, Harness)
        data = self._folder / "rows.jsonl"
        rows = rows or [{"q": f"What is {number}?", "a": str(number)} for number in range(10)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        items, answers = Records(self._folder / "items"), Records(self._folder / "answers")
        way = harness.Way(
            endpoint=self.engine,
            loop=self._loop,
            answers=answers,
            concurrency=2,
            errors_share=0.2,
            told=self._told,
        )
        try:
            return harness.run(task, data, way, items, scratch=self._folder / "scratch", seed=0)
        finally:
            items.close()
            answers.close()

    def _told(self) -> None:
        self.answered += 1

    def items(self) -> dict[str, Record]:
        return {record.id: record for record in map(_record, (self._folder / "items").read_bytes().splitlines())}


def _record(line: bytes) -> Record:
    return Record(**json.loads(line))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    for name in (*harness.ENVIRONMENT, "HF_HOME"):
        monkeypatch.setenv(name, "1")  # the program sets them, for this process too
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield Bench(tmp_path, loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_only_what_the_main_filter_let_through_counts(bench: Bench) -> None:
    bench.engine.prefix = "It is "
    found = bench.run({**EXACT, "filter_list": STRICT_FIRST})
    assert (found.metric, found.score, found.n) == ("exact_match", 0, 10)
    assert found.ci95 is not None
    assert found.ci95[0] <= found.score <= found.ci95[1]
    assert found.more["exact_match,flexible"] == 0.5
    assert [record.score for record in bench.items().values()] == [0] * 10
    found = bench.run({**EXACT, "filter_list": STRICT_FIRST[::-1]})
    assert (found.score, found.n) == (0.5, 10)
    assert found.ci95 is not None
    assert found.ci95[0] <= found.score <= found.ci95[1]


def test_an_item_without_an_answer_is_an_error_of_that_item(bench: Bench) -> None:
    bench.engine.long = (0, 7)
    found = bench.run(EXACT)
    assert (found.n, found.errors, found.score) == (8, 2, 0.5)
    items = bench.items()
    assert {name for name, item in items.items() if item.error} == {"0", "7"}
    assert items["7"].error == "the prompt is too long"
    assert (items["8"].score, items["8"].expected, items["1"].score) == (0, "8", 1)
    assert len(bench.engine.asked) == 10
    bench.engine.long, bench.engine.asked = (), []
    found = bench.run(EXACT)
    assert (found.n, found.errors, found.score) == (10, 0, 0.5)
    assert len(bench.engine.asked) == 2


def test_too_many_items_without_an_answer_end_it(bench: Bench) -> None:
    bench.engine.long = (1, 2, 3, 4, 5, 6)
    with pytest.raises(Failure, match="3 of the 10 items of t failed; the last: the prompt is too long"):
        bench.run(EXACT)


def test_what_stands_behind_nothing_is_scored_or_refused_but_never_certain(bench: Bench) -> None:
    config = {**CHOICE, "metric_list": [{"metric": "acc"}]}
    rows = [{"q": "Is it?", "a": 0}]
    assert bench.run(config, rows).score == 1
    with pytest.raises(Unimplemented, match="no token before"):
        bench.run({**config, "metric_list": [{"metric": "acc"}, {"metric": "acc_mutual_info"}]}, rows)


def test_what_the_harness_draws_for_an_error_it_draws_in_this_process(bench: Bench) -> None:
    forks: list[int] = []  # each would hear SIGTERM for the program of evaluations
    os.register_at_fork(before=lambda: forks.append(1))
    found = bench.run(LIKELIHOOD, CHOICES)
    assert (found.metric, found.n) == ("perplexity", 10)
    assert found.stderr is not None
    assert not forks


def test_an_error_that_the_harness_does_not_know_is_not_none(bench: Bench) -> None:
    found = bench.run({**CHOICE, "metric_list": [{"metric": "brier_score"}]}, CHOICES)
    assert (found.metric, found.stderr, found.ci95) == ("brier_score", None, None)


@pytest.mark.parametrize(
    ("kwargs", "asked"),
    [
        ({"max_new_tokens": 9, "do_sample": True, "temperature": 0.7, "top_p": 0.5, "seed": 3}, (9, 0.7, 0.5, 3)),
        ({"max_completion_tokens": 8, "do_sample": False, "temperature": 0.7}, (8, 0.0, None, None)),
        ({}, (256, 0.0, None, None)),
    ],
)
def test_answers_are_generated_as_the_task_says(
    bench: Bench, kwargs: dict[str, Any], asked: tuple[float | None, ...]
) -> None:
    bench.run({**EXACT, "generation_kwargs": {"until": ["."], **kwargs}})
    how = bench.engine.how
    assert tuple(how.get(name) for name in ("max_tokens", "temperature", "top_p", "seed")) == asked
    assert how["stop"] == ["."]


def test_each_answer_counts_as_a_step_forward_once(bench: Bench) -> None:
    for _ in range(2):
        bench.run(EXACT)
        assert bench.answered == 10
