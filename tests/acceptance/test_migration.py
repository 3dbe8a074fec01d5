"""From a system that is there already to models here, in steps and back, as docs/howto/migrate.md says.

Callers ask all the time meanwhile, and every one is answered.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.acceptance.conftest import model, served
from tests.coordinator import Coordinator, short_home
from tests.upstream_server import Peer, Seen, serving

CALLERS = 4
PAUSE_S = 0.01
LOCAL = """
class Model:
    def chat(self, request):
        asked = request["messages"][-1]["content"]
        return {"choices": [{"index": 0, "message": {"role": "assistant", "content": "here: " + asked}}]}
"""
BROKEN = """
class Model:
    def chat(self, request):
        raise RuntimeError("this version is broken")
"""
SAYS = {"legacy@1": "there: ", "local@1": "here: "}


async def legacy(seen: Seen, peer: Peer) -> None:
    """A chat as the old system answers it."""
    asked = seen.json()
    assert asked["model"] == "its-name-there"
    message = {"role": "assistant", "content": SAYS["legacy@1"] + asked["messages"][-1]["content"]}
    await peer.answer(json.dumps({"choices": [{"index": 0, "message": message}]}).encode())


class Callers:
    """Some who ask the alias without a pause worth the name; `failed` has what was no right answer.

    `answered` counts the answers by the version that gave them.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self.answered: Counter[str] = Counter()
        self.failed: list[str] = []
        self._coordinator = coordinator
        self._news = asyncio.Condition()

    async def more(self, version: str, count: int = 20) -> Counter[str]:
        """Wait until a version gave so many more answers; all that were given meanwhile."""
        before = Counter(self.answered)
        async with asyncio.timeout(30), self._news:
            await self._news.wait_for(lambda: self.answered[version] >= before[version] + count)
        return self.answered - before

    async def call(self, caller: int) -> None:
        """Ask until cancelled."""
        headers, url = self._coordinator.headers, self._coordinator.url
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
            number = 0
            while True:
                number += 1
                asked = f"{caller}/{number}"
                body = {"model": "assistant", "messages": [{"role": "user", "content": asked}]}
                answer = await client.post("/v1/chat/completions", json=body)
                async with self._news:
                    self._count(asked, answer)
                    self._news.notify_all()
                await asyncio.sleep(PAUSE_S)

    def _count(self, asked: str, answer: httpx.Response) -> None:
        version = answer.headers.get("x-moc-model", "")
        said = answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else answer.text
        if said == SAYS.get(version, "?") + asked:
            self.answered[version] += 1
        else:
            self.failed.append(f"{answer.status_code} {version} {said}")


@asynccontextmanager
async def calling(coordinator: Coordinator) -> AsyncIterator[Callers]:
    """Callers that ask until the end of the block."""
    callers = Callers(coordinator)
    tasks = [asyncio.create_task(callers.call(number)) for number in range(CALLERS)]
    try:
        yield callers
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [error for error in ended if not isinstance(error, asyncio.CancelledError)] == []


class Operator:
    """Types commands."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def run(self, *arguments: str, status: int = 0) -> str:
        """What a command prints; that it exits so."""
        done = await asyncio.to_thread(self._coordinator.cli, *arguments)
        assert done.returncode == status, done.stderr
        return done.stdout

    async def read(self, *arguments: str) -> Any:
        """The JSON that a command prints."""
        return json.loads(await self.run(*arguments, "--json"))


async def move(operator: Operator, callers: Callers) -> None:
    """Shadow, then a rollout, with the old system to fall back on."""
    await operator.run("models", "load", "local")
    await operator.run("aliases", "set", "assistant", "--shadow", "local@1=100")
    assert set(await callers.more("legacy@1")) == {"legacy@1"}
    targets = (await operator.read("aliases", "show", "assistant"))["targets"]
    assert [(target["model"], target["part"]) for target in targets] == [("legacy@1", "version"), ("local@1", "shadow")]
    assert targets[1]["requests"] > 0
    await operator.run("aliases", "set", "assistant", "--no-shadow", "--fallback", "legacy")
    how = ("--steps", "10,50,100", "--hold", "200ms", "--min-requests", "5", "--max-error-rate", "0.01")
    await operator.run("rollout", "start", "assistant", "--to", "local@1", *how)
    await operator.run("rollout", "watch", "assistant")
    assert set(await callers.more("local@1")) == {"local@1"}


async def fail(operator: Operator, callers: Callers) -> None:
    """A version that does not work gets some requests, which fall back, and then none by itself."""
    how = ("--steps", "50,100", "--hold", "200ms", "--min-requests", "5", "--max-error-rate", "0.01")
    await operator.run("rollout", "start", "assistant", "--to", "broken@1", *how)
    await operator.run("rollout", "watch", "assistant", status=1)
    rollout = await operator.read("rollout", "show", "assistant")
    assert rollout["state"] == "rolled_back", rollout
    assert set(await callers.more("local@1")) == {"local@1"}


async def test_requests_move_to_a_model_here_and_back_without_one_that_fails() -> None:
    with short_home() as data_dir:
        data_dir.mkdir()
        async with serving() as old:
            old.answer = legacy
            for coordinator in served(Coordinator(data_dir, config=_config(data_dir, old.url))):
                async with calling(coordinator) as callers:
                    operator = Operator(coordinator)
                    assert set(await callers.more("legacy@1")) == {"legacy@1"}
                    await move(operator, callers)
                    await fail(operator, callers)
                    await operator.run("aliases", "rollback", "assistant", "--to", "1")
                    assert set(await callers.more("legacy@1")) == {"legacy@1"}
                    await operator.run("models", "remove", "legacy", status=1)  # the alias names it
                    await operator.run("aliases", "set", "assistant", "--to", "local@1")
                    await operator.run("models", "remove", "legacy")
                    await callers.more("local@1")
                assert callers.failed == []


def _config(data_dir: Any, url: str) -> dict[str, Any]:
    for name, text in (("local", LOCAL), ("broken", BROKEN)):
        (data_dir / f"{name}.py").write_text(text)
    python = {name: model("python", data_dir / f"{name}.py") for name in ("local", "broken")}
    remote = {"runtime": "remote", "source": f"{url}/v1", "options": {"model": "its-name-there"}}
    alias = {"versions": {"legacy": 100}}
    return {"models": {**python, "legacy": remote}, "aliases": {"assistant": alias}}
