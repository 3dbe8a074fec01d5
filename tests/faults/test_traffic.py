"""Mixed traffic while workers are killed, hung and slowed, a remote fails in every way, and versions change.

`TRAFFIC_S=60 SEED=7` for a longer look, or at the same faults again (`make traffic`).
"""

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import model
from tests.coordinator import Coordinator, eventually, short_home
from tests.models import smollm2_path
from tests.traffic import Outcome, Question, Traffic, p95_s, tally
from tests.upstream_server import Peer, Seen, UpstreamServer, serving

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(400)]

ECHOING = Path(__file__).with_name("echoing.py")
FAULTY_S = float(os.environ.get("TRAFFIC_S", "15"))
SEED = int(os.environ.get("SEED", str(random.SystemRandom().randrange(10**6))))
QUIET_S = 5.0
RATE = 30.0
LATE_S = 0.25
FAULT_EVERY_S = 2.0
CIRCUIT_S = 1.0
"""How long a circuit stays open here."""

HONEST = frozenset(
    {
        "ok",
        "circuit_open",
        "deadline_exceeded",
        "deadline_unreachable",
        "load_failed",
        "queue_full",
        "rate_limited",
        "unavailable",
        "worker_lost",
    }
)
"""What a request may come to while things fail."""


def questions(number: int) -> Question:
    """The nth: most of them quick, one in 40 of a language model."""
    deadline_s = (0.5, 1.0, 3.0)[number % 3]
    if number % 40 == 39:
        return Question(kind="generate", model="smollm2", token=number, deadline_s=5.0)
    kind, name = (
        ("chat", "front"),
        ("tensors", "numbers"),
        ("stream", "front"),
        ("chat", "cloud"),
        ("tensors", "numbers"),
        ("stream", "cloud"),
    )[number % 6]
    return Question(kind=kind, model=name, token=1_000_000 + number, deadline_s=deadline_s)


# the remote engine


async def echo(seen: Seen, peer: Peer, *, slowly_s: float = 0.0) -> None:
    """Answer a chat with what it said last."""
    asked = seen.json()
    said = asked["messages"][-1]["content"]
    await asyncio.sleep(slowly_s)
    if not asked.get("stream"):
        message = {"role": "assistant", "content": said}
        await peer.answer(json.dumps({"choices": [{"index": 0, "message": message}]}).encode())
        return
    await peer.begin_stream()
    for letter in said:
        await peer.piece(_chunk(letter))
    await peer.piece(b"data: [DONE]\n\n")
    await peer.piece(b"")


async def half(seen: Seen, peer: Peer) -> None:
    """Begin an answer and drop the connection in the middle of it."""
    if seen.json().get("stream"):
        await peer.begin_stream()
        for letter in seen.json()["messages"][-1]["content"][:3]:
            await peer.piece(_chunk(letter))
    else:
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{")
    peer.reset()


async def hang(seen: Seen, peer: Peer) -> None:
    await peer.hang()


async def reset(seen: Seen, peer: Peer) -> None:
    peer.reset()


async def break_down(seen: Seen, peer: Peer) -> None:
    await peer.answer(b'{"error": {"message": "out of order"}}', 500)


async def be_busy(seen: Seen, peer: Peer) -> None:
    await peer.answer(b'{"error": {"message": "slow down"}}', 429, retry_after="1")


def _chunk(text: str) -> bytes:
    return b"data: %s\n\n" % json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode()


# the faults


class Faults:
    """Does one thing after the other to the engines, as a seeded dice says; what was done is in `history`."""

    def __init__(self, traffic: Traffic, coordinator: Coordinator, upstream: UpstreamServer, pace: Path) -> None:
        self.history: list[str] = []
        self._traffic = traffic
        self._coordinator = coordinator
        self._upstream = upstream
        self._pace = pace
        self._dice = random.Random(SEED)

    async def go_on(self, seconds: float) -> None:
        """One fault every two seconds, each kind about as often."""
        signals = [(name, number) for name in ("echoing", "numbers") for number in (signal.SIGKILL, signal.SIGSTOP)]
        remote = [hang, reset, half, break_down, be_busy, partial(echo, slowly_s=0.4)]
        todo: list[Callable[[], Any]] = [self._slow_down, partial(self._signal, "smollm2", signal.SIGKILL)]
        todo += [partial(self._signal, *each) for each in signals]
        todo += [partial(self._spoil, each) for each in remote]
        order: list[Callable[[], Any]] = []
        end = self._traffic.now + seconds
        while self._traffic.now < end:
            if not order:
                order = self._dice.sample(todo, len(todo))
            await order.pop()()
            await asyncio.sleep(FAULT_EVERY_S)
        self._upstream.answer = echo
        self._pace.unlink(missing_ok=True)

    def _note(self, what: str) -> None:
        self.history.append(f"{self._traffic.now:7.2f} s  {what}")

    async def _signal(self, name: str, number: signal.Signals) -> None:
        listed = await asyncio.to_thread(self._coordinator.get, "/api/v1/workers")
        for worker in listed["workers"]:
            if worker["model"].startswith(f"{name}@") and worker["state"] == "ready" and worker["pid"]:
                self._note(f"{number.name} to the worker of {worker['model']}")
                os.kill(worker["pid"], number)
                return
        self._note(f"{name} has no worker to be ended")

    async def _spoil(self, answer: Any) -> None:
        self._note(f"the remote: {getattr(answer, '__name__', 'slow')}")
        self._upstream.answer = answer

    async def _slow_down(self) -> None:
        self._note("local models are slow")
        self._pace.write_text("0.6")
        asyncio.get_running_loop().call_later(FAULT_EVERY_S, self._pace.unlink, True)


# the stage


@pytest.fixture
async def upstream() -> AsyncIterator[UpstreamServer]:
    async with serving() as server:
        server.answer = echo
        yield server


@pytest.fixture
def coordinator(upstream: UpstreamServer, tmp_path: Path) -> Iterator[Coordinator]:
    echoing = model("python", ECHOING, options={"pace": str(tmp_path / "pace")}, preload=True)
    config = {
        "models": {
            "echoing": echoing,
            "numbers": echoing,
            "smollm2": model("llama_cpp", smollm2_path(), options={"context": 1024, "slots": 2}, preload=True),
            "cloud": {
                "runtime": "remote",
                "source": f"{upstream.url}/v1",
                "options": {"model": "echo", "health_interval_s": 0.5},
                "preload": True,
            },
        },
        "aliases": {"front": {"versions": {"echoing@1": 100}, "fallback": ["cloud"]}},
        "resilience": {"circuit_breaker": {"failure_threshold": 4, "reset_timeout_s": CIRCUIT_S}},
        "security": {"trusted_python_roots": [str(ECHOING.parent)], "allowed_model_roots": [str(ECHOING.parent)]},
    }
    with short_home() as data_dir:
        running = Coordinator(data_dir, config=config)
        try:
            yield running
        finally:
            running.close()


def all_ready(coordinator: Coordinator) -> bool:
    """Whether every model is loaded."""
    models = coordinator.get("/api/v1/models")["models"]
    return all(each["state"] == "ready" for each in models)


async def change_versions(coordinator: Coordinator, seconds: float) -> list[str]:
    """Add versions, which the name of one model swaps to by itself, and to which an alias is moved by a rollout.

    And back at once, again and again; what became of each rollout.
    """
    async with httpx.AsyncClient(base_url=coordinator.url, headers=coordinator.headers, timeout=60) as client:
        spec = (await client.get("/api/v1/models/echoing")).json()
        source, options = spec["source"], spec["options"]
        added = {"runtime": "python", "source": source, "options": options, "max_queue": 250}
        for name in ("echoing", "numbers"):
            assert (await client.post("/api/v1/models", json={"name": name, **added})).status_code == 201
        ends, end = [], asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            wish = {"alias": "front", "to": "echoing@2", "steps": [20, 100], "hold_s": 1, "min_requests": 3}
            begun = await client.post("/api/v1/rollouts", json={**wish, "max_error_rate": 0.5})
            assert begun.status_code == 201, begun.text
            while (state := (await client.get("/api/v1/rollouts/front")).json()["state"]) in LIVE:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            ends.append(state)
            back = {"versions": {"echoing@1": 100}, "fallback": ["cloud"]}
            answer = await client.put("/api/v1/aliases/front", json=back)
            assert answer.status_code == 200, answer.text
    return ends


LIVE = ("warming", "progressing", "paused")


async def test_every_request_comes_to_a_right_end(
    coordinator: Coordinator, upstream: UpstreamServer, tmp_path: Path
) -> None:
    await asyncio.to_thread(coordinator.start)
    await asyncio.to_thread(partial(eventually, lambda: all_ready(coordinator), what="every model to be ready"))
    async with Traffic(coordinator.url, coordinator.key, rate=RATE, questions=questions).flowing() as traffic:
        await asyncio.sleep(QUIET_S)
        faults = Faults(traffic, coordinator, upstream, tmp_path / "pace")
        began = traffic.now
        _, rollouts = await asyncio.gather(faults.go_on(FAULTY_S), change_versions(coordinator, FAULTY_S))
        await asyncio.to_thread(partial(eventually, lambda: all_ready(coordinator), what="every model to be back"))
        await asyncio.sleep(CIRCUIT_S + 1)
        recovered = traffic.now
        await asyncio.sleep(QUIET_S)
        over = traffic.now
    story = Story(traffic, faults, rollouts)
    story.check(traffic.between(0, began), "before", only_ok=True)
    story.check(traffic.between(began, recovered), "meanwhile", only_ok=False)
    story.check(traffic.between(recovered, over), "after", only_ok=True)
    spans = [quick(traffic.between(*span)) for span in ((0, began), (recovered, over))]
    usual_s, now_s = (p95_s(traffic.undisturbed(span)) for span in spans)
    assert now_s <= max(3 * usual_s, usual_s + 0.1), story.tell(f"p95 was {usual_s:.3f} s and is {now_s:.3f} s")
    swapped = {outcome.version for outcome in traffic.between(recovered, over) if outcome.question.model == "numbers"}
    assert swapped == {"numbers@2"}, story.tell(f"after its swap, numbers was {swapped}")
    assert "promoted" in rollouts, story.tell("no rollout came to its end")
    print(story.tell("in order"))


def honest(outcome: Outcome) -> bool:
    """Whether it is what a request may come to while things fail: `internal` only for what the remote says itself."""
    return outcome.code in HONEST or (outcome.code == "internal" and "failed (500): out of order" in outcome.said)


def quick(outcomes: list[Outcome]) -> Iterator[Outcome]:
    """Without the language model's, whose answers take as long as they are."""
    return (outcome for outcome in outcomes if outcome.question.kind != "generate")


class Story:
    """What happened, for whoever has to find out why."""

    def __init__(self, traffic: Traffic, faults: Faults, rollouts: list[str]) -> None:
        self._traffic = traffic
        self._faults = faults
        self._rollouts = rollouts

    def check(self, outcomes: list[Outcome], when: str, *, only_ok: bool) -> None:
        """Every one of them right, or an honest error, and in time."""
        assert outcomes, self.tell(f"nothing was asked {when}")
        wrong = [outcome for outcome in outcomes if outcome.code != "ok" and (only_ok or not honest(outcome))]
        assert not wrong, self.tell(f"wrong {when}", wrong)
        late = [outcome for outcome in outcomes if self._traffic.late_s(outcome) > LATE_S]
        assert not late, self.tell(f"late {when}", late)

    def tell(self, what: str, culprits: list[Outcome] | None = None) -> str:
        """The seed, what was done, what came of it."""
        stalls, outcomes = sum(length for _, length in self._traffic.stalls), self._traffic.outcomes
        disturbed = len(outcomes) - len(self._traffic.undisturbed(outcomes))
        lines = [f"{what} (SEED={SEED}; the generator stalled for {stalls:.2f} s, during {disturbed} of its requests)"]
        lines += map(str, (culprits or [])[:40])
        lines += ["faults:", *self._faults.history, f"rollouts: {', '.join(self._rollouts)}"]
        lines += [f"all: {tally(self._traffic.outcomes)}"]
        return "\n".join(lines)
