"""The program of evaluations against an API that does what the test says."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from moc.client.calls import Answer, Call, StreamCall
from moc.client.connection import AsyncConnection, AsyncStream
from moc.kernel.errors import (
    Cancelled,
    InvalidRequest,
    MocError,
    NoCapacity,
    NotFound,
    Unavailable,
    Unimplemented,
    WorkerLost,
)
from moc.learning.suite import Suite
from moc.workers.trainers.assignment import Away, Failure
from moc.workers.trainers.endpoint import Endpoint
from moc.workers.trainers.evaluate import Run
from moc.workers.trainers.harness import ENVIRONMENT
from moc.workers.trainers.report import Report

T = TypeVar("T")
HEADERS = {"x-moc-model": "m@1", "x-moc-digest": "d"}
ECHO = {"name": "t", "type": "exact_match", "items": [{"prompt": str(n), "expected": str(n)} for n in range(10)]}


class Line(AsyncConnection):
    """Answers a chat with what was said last, or with what `on` makes of it; `asked` are the requests' bodies."""

    def __init__(self) -> None:
        super().__init__("http://nowhere.invalid", "key", None, 1.0)
        self.asked: list[dict[str, Any]] = []
        self.headers = HEADERS
        self.on: Callable[[dict[str, Any]], dict[str, Any] | MocError] = said

    async def send(self, call: Call[T]) -> T:
        body = json.loads(call.asked.body)
        self.asked.append(body)
        answer = self.on(body)
        if isinstance(answer, MocError):
            raise answer
        return call.read(Answer(self.headers, json.dumps(answer).encode()))

    async def open(self, call: StreamCall[T]) -> AsyncStream[T]:
        self.asked.append(json.loads(call.asked.body))
        chunk = {"choices": [{"delta": {"content": "yes"}}]}
        body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
        return AsyncStream(self, httpx.Response(200, headers=self.headers, content=body), call)


def said(body: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"message": {"content": body["messages"][-1]["content"]}}], "usage": {"completion_tokens": 1}}


class Bench:
    """Runs of suites in one folder, as the attempts of a job are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.line = Line()
        self.stopped = False
        self.retry_for_s = 60.0
        self.answered_by: list[str] = []
        self.paths: dict[str, Path] = {}
        self.items = folder / "output" / "items.jsonl"

    async def run(self, *tasks: dict[str, Any], digests: Collection[str] = (), **defaults: Any) -> dict[str, Any]:
        suite = Suite.parse({"name": "s", "tasks": tasks, "defaults": defaults})
        endpoint = Endpoint(self.line, "m", lambda: self.stopped, retry_for_s=self.retry_for_s)
        report = Report(str(self.folder / "progress"))
        run = Run(suite, self.paths, endpoint, report, folder=self.folder, seed=0, digests=digests)
        try:
            return await run.work()
        finally:
            self.answered_by = run.answered_by()
            await run.aclose()

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "progress").read_text().splitlines()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_each_item_is_asked_as_the_suite_says(bench: Bench) -> None:
    results = await bench.run({**ECHO, "max_tokens": 3, "stop": ["."]}, system="Be brief.", seed=5)
    assert (results["t"].score, results["t"].n) == (1, 10)
    assert bench.line.asked[0] == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "0"}],
        "max_tokens": 3,
        "temperature": 0,
        "seed": 5,
        "stop": ["."],
    }
    first = json.loads(bench.items.read_bytes().splitlines()[0])
    assert (first["score"], first["model"], first["digest"], first["got"]) == (1, "m@1", "d", "0")
    assert bench.told()[-1]["metrics"] == {"t/accuracy": 1}


async def test_what_is_on_the_disk_is_not_asked_again(bench: Bench) -> None:
    await bench.run({**ECHO, "limit": 4})
    with bench.items.open("ab") as items:
        items.write(b'{"task": "t", "id": "4", "sco')  # as a crash leaves it
    results = await bench.run(ECHO)
    assert results["t"].n == 10
    assert [body["messages"][-1]["content"] for body in bench.line.asked] == [str(number) for number in range(10)]
    assert len([json.loads(line) for line in bench.items.read_bytes().splitlines()]) == 10


async def test_what_another_version_answered_is_asked_again(bench: Bench) -> None:
    await bench.run({**ECHO, "limit": 4})
    assert bench.answered_by == ["d"]
    bench.line.asked = []
    await bench.run({**ECHO, "limit": 4}, digests=["d", "e"])
    assert bench.line.asked == []
    bench.line.headers = {"x-moc-digest": "e"}
    await bench.run({**ECHO, "limit": 4}, digests=["e"])
    assert (len(bench.line.asked), bench.answered_by) == (4, ["e"])


async def test_an_item_that_fails_is_told_of_and_tried_by_the_next_attempt(bench: Bench) -> None:
    bench.line.on = lambda body: InvalidRequest("too long") if body["messages"][-1]["content"] == "3" else said(body)
    results = await bench.run(ECHO)
    assert (results["t"].n, results["t"].errors) == (9, 1)
    assert any("item 3: too long" in line.get("message", "") for line in bench.told())
    bench.line.on, bench.line.asked = said, []
    results = await bench.run(ECHO)
    assert (results["t"].n, results["t"].errors) == (10, 0)
    assert len(bench.line.asked) == 1


async def test_too_many_failures_end_it(bench: Bench) -> None:
    bench.line.on = lambda body: InvalidRequest("too long")
    with pytest.raises(Failure, match="3 of the 10 items of t failed; the last: too long"):
        await bench.run(ECHO)
    assert len(bench.line.asked) < 10


async def test_what_may_go_better_is_asked_again(bench: Bench) -> None:
    failures: list[MocError] = [NoCapacity("a moment"), Unavailable("another")]
    bench.line.on = lambda body: failures.pop() if failures else said(body)
    results = await bench.run({**ECHO, "limit": 1})
    assert results["t"].score == 1
    assert len(bench.line.asked) == 3


@pytest.mark.parametrize("error", [Unavailable("no coordinator answers"), NoCapacity("all is held")])
async def test_an_outage_ends_the_attempt_and_is_no_error_of_an_item(bench: Bench, error: MocError) -> None:
    await bench.run({**ECHO, "limit": 4})
    bench.line.on, bench.retry_for_s = (lambda body: error), 0
    with pytest.raises(Away, match=error.message):
        await bench.run(ECHO)
    bench.line.on, bench.line.asked = said, []
    assert len(bench.items.read_bytes().splitlines()) == 4
    results = await bench.run(ECHO)
    assert (results["t"].n, results["t"].errors, len(bench.line.asked)) == (10, 0, 6)


@pytest.mark.parametrize("error", [WorkerLost("it crashed", sent=True), NoCapacity("send a shorter one")])
@pytest.mark.parametrize("place", ["3", "9"])
async def test_what_an_item_is_to_blame_for_is_an_error_of_that_item(bench: Bench, error: MocError, place: str) -> None:
    bench.retry_for_s = 0
    bench.line.on = lambda body: error if body["messages"][-1]["content"] == place else said(body)
    results = await bench.run(ECHO, concurrency=1)
    assert (results["t"].n, results["t"].errors) == (9, 1)


async def test_latencies_are_of_a_model_that_is_loaded_and_name_it(bench: Bench) -> None:
    task = {"name": "t", "type": "latency", "repeat": 2, "items": [{"prompt": "a"}, {"prompt": "b"}]}
    results = await bench.run(task)
    assert results["t"].n == 4
    assert [body["messages"][-1]["content"] for body in bench.line.asked] == ["Hello", "a", "b", "a", "b"]
    assert bench.line.asked[0]["max_tokens"] == 1
    items = [json.loads(line) for line in bench.items.read_bytes().splitlines()]
    assert [item["id"] for item in items] == ["0#0", "1#0", "0#1", "1#1"]
    assert {(item["model"], item["digest"]) for item in items} == {("m@1", "d")}
    assert bench.answered_by == ["d"]
    bench.line.asked = []
    await bench.run(task)
    assert bench.line.asked == []


@pytest.mark.parametrize("error", [NotFound("no such model"), Unimplemented("cannot")])
async def test_what_no_item_would_survive_ends_it_at_once(bench: Bench, error: MocError) -> None:
    bench.line.on = lambda body: error
    with pytest.raises(type(error)):
        await bench.run({**ECHO, "concurrency": 1})
    assert len(bench.line.asked) == 1


async def test_nothing_is_asked_once_it_is_stopped(bench: Bench) -> None:
    bench.stopped = True
    with pytest.raises(Cancelled):
        await bench.run(ECHO)
    assert bench.line.asked == []


async def test_choices_are_weighed_by_what_stands_behind_the_prompt(bench: Bench) -> None:
    def scored(body: dict[str, Any]) -> dict[str, Any]:
        assert body["echo_from"] == len("The sky is")
        token = body["prompt"][len("The sky is") :]
        logprobs = {
            "tokens": ["The sky is", token],
            "token_logprobs": [None, -1.0 if "blue" in token else -2.0],
            "top_logprobs": [None, {token: -1.0}],
            "text_offset": [0, 10],
        }
        return {"choices": [{"text": body["prompt"], "logprobs": logprobs}]}

    bench.line.on = scored
    item = {"prompt": "The sky is", "choices": ["green", "blue"], "answer": "blue"}
    results = await bench.run({"name": "t", "type": "multiple_choice", "items": [item]})
    assert results["t"].score == 1
    assert json.loads(bench.items.read_bytes())["logprobs"] == [-2, -1]
    bench.line.on = lambda body: {"choices": [{"text": "", "logprobs": None}]}
    with pytest.raises(Unimplemented, match="tells no log-probabilities"):
        await bench.run({"name": "u", "type": "multiple_choice", "items": [item]})


def _logprobs(*tokens: tuple[str, int, float | None]) -> dict[str, Any]:
    """What an engine tells of tokens, each with the character it begins at."""
    logprobs = {
        "tokens": [token for token, _, _ in tokens],
        "text_offset": [start for _, start, _ in tokens],
        "token_logprobs": [logprob for _, _, logprob in tokens],
        "top_logprobs": [None if logprob is None else {token: logprob} for token, _, logprob in tokens],
    }
    return {"choices": [{"text": "", "logprobs": logprobs}]}


async def test_a_whole_text_is_scored_only_by_an_engine_that_puts_a_token_before_it(bench: Bench) -> None:
    endpoint = Endpoint(bench.line, "m", lambda: False)
    bench.line.on = lambda body: _logprobs(("<s>", 0, None), ("yes", 0, -3.0))
    assert (await endpoint.likelihood("yes", 0, whole=True)).logprobs == (-3.0,)
    without = [
        _logprobs(("yes", 0, None)),
        _logprobs(("ye", 0, None), ("s", 2, -1.0)),
        _logprobs(("\N{REPLACEMENT CHARACTER}", 0, None), ("\N{REPLACEMENT CHARACTER}", 0, -1.0)),
    ]
    for answer in without:
        bench.line.on = lambda body, answer=answer: answer  # type: ignore[misc]
        with pytest.raises(Unimplemented, match="no token before a text"):
            await endpoint.likelihood("yes", 0, whole=True)


@pytest.mark.parametrize(
    "task",
    [
        {"type": "perplexity", "items": [{"text": "yes"}]},
        {"type": "multiple_choice", "items": [{"prompt": "yes", "choices": ["", "no"], "answer": 0}], "joiner": ""},
    ],
)
async def test_a_text_of_which_nothing_can_be_scored_is_an_error(bench: Bench, task: dict[str, Any]) -> None:
    bench.line.on = lambda body: _logprobs(("yes", 0, None))
    with pytest.raises(Failure, match="1 of the 1 items of t failed; the last: there is nothing to score"):
        await bench.run({**task, "name": "t"})


@pytest.mark.slow
async def test_a_template_of_the_harness_gets_nowhere_it_should_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    for name in ("HF_HOME", *ENVIRONMENT):
        monkeypatch.setenv(name, "1")  # the program sets them, for this process too
    bench.paths["f"] = bench.folder / "rows.jsonl"
    bench.paths["f"].write_text('{"question": "?", "answer": "x"}\n')
    config = {
        "output_type": "generate_until",
        "doc_to_text": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "exact_match"}],
    }
    with pytest.raises(InvalidRequest, match=r"the harness cannot work on the task t: .*unsafe"):
        await bench.run({"name": "t", "type": "harness", "data": {"file": "f"}, "config": config})
    assert bench.line.asked == []
