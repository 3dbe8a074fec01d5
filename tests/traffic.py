"""Steady traffic on a coordinator: an open loop, in which every request comes at its time whatever became of others.

What is asked carries a token that the right answer gives back, so that an answer to somebody else's question shows.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

TICK_S = 0.01
GIVE_UP_S = 30.0
"""How long after its deadline a request is waited for before it counts as one that never ended."""

REFUSED_TENSORS = {429: "queue_full", 503: "unavailable", 504: "deadline_exceeded"}
"""The Open Inference Protocol's errors have no code; the status tells the family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request. `kind` is `chat`, `stream`, `tensors`, or `generate` of a model that does not echo."""

    kind: str
    model: str
    token: int
    deadline_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a question: `code` is `ok`, an error's code, `wrong` (somebody else's answer) or `broken`.

    `at` is when it was sent, in seconds since the traffic began; `took_s` until its answer was whole.
    """

    question: Question
    at: float
    took_s: float
    code: str
    version: str = ""
    said: str = ""

    def __str__(self) -> str:
        asked, told = self.question, f"{self.code} {self.version} {self.said}"
        return f"{self.at:7.2f} s  {asked.kind:8} {asked.model:9} {self.took_s:6.3f} s  {told}"


class Traffic:
    """Asks `rate` questions a second until closed; what came of them is in `outcomes` in the order they ended.

    `questions` makes the nth. `stalls` are the moments in which this process itself did not run, (from, seconds).
    """

    def __init__(self, url: str, key: str, *, rate: float, questions: Callable[[int], Question]) -> None:
        self.outcomes: list[Outcome] = []
        self.stalls: list[tuple[float, float]] = []
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"}
        self._rate = rate
        self._questions = questions
        self._began = time.monotonic()

    @property
    def now(self) -> float:
        """Seconds since the traffic began."""
        return time.monotonic() - self._began

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator["Traffic"]:
        """Ask while inside; all that was asked has ended on leaving."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        async with httpx.AsyncClient(base_url=self._url, headers=self._headers, limits=limits, timeout=None) as client:
            asking: set[asyncio.Task[None]] = set()
            tasks = [asyncio.create_task(self._flow(client, asking)), asyncio.create_task(self._watch_stalls())]
            try:
                yield self
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.gather(*asking)

    def between(self, start: float, end: float) -> list[Outcome]:
        """Those sent in a span of time."""
        return [outcome for outcome in self.outcomes if start <= outcome.at < end]

    def late_s(self, outcome: Outcome) -> float:
        """How long after its deadline an answer came, less the stalls of this process; negative when in time."""
        return outcome.took_s - outcome.question.deadline_s - self._stalled_s(outcome)

    def undisturbed(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """Those during which this process ran all the time, so that how long they took tells of the coordinator."""
        return [outcome for outcome in outcomes if not self._stalled_s(outcome)]

    def _stalled_s(self, outcome: Outcome) -> float:
        end = outcome.at + outcome.took_s
        return sum(length for at, length in self.stalls if outcome.at - length <= at <= end)

    async def _flow(self, client: httpx.AsyncClient, asking: set["asyncio.Task[None]"]) -> None:
        number = 0
        while True:
            await asyncio.sleep(max(0.0, number / self._rate - self.now))
            task = asyncio.create_task(self._ask(client, self._questions(number)))
            asking.add(task)
            task.add_done_callback(asking.discard)
            number += 1

    async def _watch_stalls(self) -> None:
        while True:
            before = self.now
            await asyncio.sleep(TICK_S)
            lost = self.now - before - TICK_S
            if lost > TICK_S:
                self.stalls.append((before, lost))

    async def _ask(self, client: httpx.AsyncClient, question: Question) -> None:
        at = self.now
        headers = {"x-moc-deadline-ms": str(int(question.deadline_s * 1000))}
        code, version, said = "never", "", ""
        try:
            async with asyncio.timeout(question.deadline_s + GIVE_UP_S):
                code, version, said = await ASK[question.kind](client, question, headers)
        except TimeoutError:
            pass
        except httpx.HTTPError as error:
            code, said = "broken", repr(error)
        self.outcomes.append(
            Outcome(question=question, at=at, took_s=self.now - at, code=code, version=version, said=said[:200])
        )


Told = tuple[str, str, str]


def _chat(question: Question, *, stream: bool) -> dict[str, Any]:
    return {
        "model": question.model,
        "stream": stream,
        "messages": [{"role": "user", "content": str(question.token)}],
    }


async def _ask_chat(client: httpx.AsyncClient, question: Question, headers: dict[str, str]) -> Told:
    answer = await client.post("/v1/chat/completions", json=_chat(question, stream=False), headers=headers)
    version, document = answer.headers.get("x-moc-model", ""), answer.json()
    if answer.status_code != 200:
        return document["error"]["code"], version, document["error"]["message"]
    return _judged(document["choices"][0]["message"]["content"], question, version)


async def _ask_generate(client: httpx.AsyncClient, question: Question, headers: dict[str, str]) -> Told:
    body = {**_chat(question, stream=False), "max_tokens": 4}
    answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    version, document = answer.headers.get("x-moc-model", ""), answer.json()
    if answer.status_code != 200:
        return document["error"]["code"], version, document["error"]["message"]
    said = document["choices"][0]["message"]["content"]
    return ("ok" if said else "wrong"), version, said


async def _ask_stream(client: httpx.AsyncClient, question: Question, headers: dict[str, str]) -> Told:
    body = _chat(question, stream=True)
    async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        version = answer.headers.get("x-moc-model", "")
        if answer.status_code != 200:
            error = json.loads(await answer.aread())["error"]
            return error["code"], version, error["message"]
        said = ""
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                return _judged(said, question, version)
            if line.startswith("data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    told = str(question.token).startswith(said)
                    return (event["error"]["code"] if told else "wrong"), version, event["error"]["message"]
                said += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    return "broken", version, f"ended without a word after {said!r}"


async def _ask_tensors(client: httpx.AsyncClient, question: Question, headers: dict[str, str]) -> Told:
    tensor = {"name": "INPUT0", "datatype": "INT64", "shape": [1, 2], "data": [question.token, -question.token]}
    answer = await client.post(f"/v2/models/{question.model}/infer", json={"inputs": [tensor]}, headers=headers)
    version, document = answer.headers.get("x-moc-model", ""), answer.json()
    if answer.status_code != 200:
        code = REFUSED_TENSORS.get(answer.status_code, f"http {answer.status_code}")
        return code, version, document["error"]
    first, second = document["outputs"][0]["data"]
    return _judged(str(first) if first == -second else "", question, version)


def _judged(said: str, question: Question, version: str) -> Told:
    return ("ok" if said == str(question.token) else "wrong"), version, "" if said == str(question.token) else said


ASK = {"chat": _ask_chat, "stream": _ask_stream, "tensors": _ask_tensors, "generate": _ask_generate}


def p95_s(outcomes: Iterable[Outcome]) -> float:
    """Of those that were answered."""
    times = sorted(outcome.took_s for outcome in outcomes if outcome.code == "ok")
    return times[int(0.95 * (len(times) - 1))] if times else float("inf")


def tally(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many there are of each code."""
    codes = sorted({outcome.code for outcome in outcomes})
    return {code: sum(outcome.code == code for outcome in outcomes) for code in codes}
