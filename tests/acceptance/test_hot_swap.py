"""Versions are exchanged and rolled out while requests come without a pause: not one of them fails."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest

from moc.cli.main import main
from moc.client import AsyncClient
from moc.client.views import RolloutView
from tests.acceptance.conftest import served
from tests.coordinator import Coordinator, short_home

SWAPS = 20
ROLLOUTS = 20
CALLERS = 3
PAUSE_S = 0.01
TENSORS = {"inputs": [{"name": "INPUT0", "shape": [1, 1], "datatype": "INT64", "data": [7]}]}
MODEL = """
class Model:
    inputs = (("INPUT0", "INT64", (-1, 1)),)
    outputs = (("OUTPUT0", "INT64", (-1, 1)),)

    def load(self, number):
        self.number = number

    def infer(self, inputs):
        if self.number < 0:
            raise RuntimeError("this version is broken")
        return {"OUTPUT0": inputs["INPUT0"] * 0 + self.number}
"""


@pytest.fixture(scope="module")
def swapping() -> Iterator[Coordinator]:
    with short_home() as data_dir:
        (data_dir.parent / "number.py").write_text(MODEL)
        yield from served(Coordinator(data_dir, config={"security": {"trusted_python_roots": [str(data_dir.parent)]}}))


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A name of its own for each test: the numbers of versions never come back."""
    return f"model-{request.node.name[:20]}"


@pytest.fixture
async def client(swapping: Coordinator, model: str) -> AsyncIterator[AsyncClient]:
    """A client of a coordinator in which version 1 is loaded, and what `front` stands for."""
    async with AsyncClient(swapping.url, swapping.key) as client:
        await add(client, swapping, model, 1)
        await client.models.load(f"{model}@1")
        await client.aliases.set("front", {f"{model}@1": 1})
        yield client
        await client.aliases.remove("front")
        await client.models.remove(model)


class Callers:
    """Some who ask for the alias and some for the bare name, each its next question when the last is answered.

    `answered` counts answers by what was asked for and the version that answered; `failed` has what was none.
    """

    def __init__(self, coordinator: Coordinator, model: str) -> None:
        self.answered: Counter[tuple[str, str]] = Counter()
        self.failed: list[str] = []
        self._coordinator = coordinator
        self._names = ("front", model)
        self._news = asyncio.Condition()

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Ask while inside."""
        tasks = [asyncio.create_task(self._ask(name)) for name in self._names for _ in range(CALLERS)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def until(self, name: str, version: str) -> None:
        """Wait for an answer of a version."""
        before = self.answered[name, version]
        async with asyncio.timeout(30), self._news:
            await self._news.wait_for(lambda: self.failed or self.answered[name, version] > before)

    async def _ask(self, name: str) -> None:
        url, headers = self._coordinator.url, self._coordinator.headers
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
            while True:
                answer = await client.post(f"/v2/models/{name}/infer", json=TENSORS)
                version = answer.headers.get("x-moc-model", "")
                said = answer.json()["outputs"][0]["data"] if answer.status_code == 200 else answer.text
                if said != [int(version.partition("@")[2] or -1)]:
                    self.failed.append(f"{name}: {answer.status_code} {version} {said}")
                self.answered[name, version] += 1
                async with self._news:
                    self._news.notify_all()
                await asyncio.sleep(PAUSE_S)


async def add(client: AsyncClient, coordinator: Coordinator, model: str, number: int) -> None:
    """Register another version, which answers with this number."""
    source = f"file:{coordinator.data_dir.parent / 'number.py'}"
    await client.models.add(model, runtime="python", source=source, options={"number": number}, ttl_s=0)


async def left(client: AsyncClient, *running: str) -> RolloutView:
    """The newest rollout, once it is in none of these states."""
    async with asyncio.timeout(30):
        while True:
            rollout = await client.rollouts.show("front")
            if rollout["state"] not in running:
                return rollout
            await asyncio.sleep(PAUSE_S)  # it is another process's doing


async def test_twenty_swaps_and_twenty_rollouts_fail_no_request(
    swapping: Coordinator, client: AsyncClient, model: str
) -> None:
    callers = Callers(swapping, model)
    async with callers.asking():
        for newer in range(2, SWAPS + 2):
            await add(client, swapping, model, newer)
            await client.aliases.set("front", {f"{model}@{newer}": 1})
            await asyncio.gather(*(callers.until(name, f"{model}@{newer}") for name in ("front", model)))
            await client.models.unload(f"{model}@{newer - 1}")
        await client.models.load(f"{model}@{SWAPS}")
        for turn in range(ROLLOUTS):
            to = f"{model}@{SWAPS + turn % 2}"
            await client.rollouts.start("front", to, steps=[50], hold_s=0, min_requests=3, max_error_rate=0)
            assert (await left(client, "warming", "progressing"))["state"] == "promoted", (turn, callers.failed[:3])
    assert not callers.failed, (len(callers.failed), callers.failed[:3])
    assert len([version for name, version in callers.answered if name == model]) == SWAPS + 1
    history = (await client.aliases.history("front", limit=1000))["items"]
    assert len(history) == 1 + SWAPS + 2 * ROLLOUTS


async def test_from_the_answer_to_an_abort_on_the_old_version_answers_alone(
    swapping: Coordinator, client: AsyncClient, model: str
) -> None:
    callers, after = Callers(swapping, model), Callers(swapping, model)
    await add(client, swapping, model, 2)
    await client.rollouts.start("front", f"{model}@2", steps=[100], hold_s=3600)
    async with callers.asking():
        await callers.until("front", f"{model}@2")
        await client.rollouts.abort("front")
    async with after.asking():
        for _ in range(10):
            await after.until("front", f"{model}@1")
    assert after.answered["front", f"{model}@2"] == 0
    assert not callers.failed + after.failed


async def test_a_broken_version_is_rolled_back_without_anybody_watching(
    swapping: Coordinator, client: AsyncClient, model: str
) -> None:
    await add(client, swapping, model, -2)
    arguments = ("rollout", "start", "front", "--to", f"{model}@2", "--steps", "50", "--hold", "1h")
    begun = swapping.cli(*arguments, "--max-error-rate", "0.01", "--min-requests", "10")
    assert begun.returncode == 0, begun.stderr
    callers = Callers(swapping, model)
    async with callers.asking():
        watched = await asyncio.to_thread(swapping.cli, "rollout", "watch", "front")
    assert watched.returncode == 1, watched.stderr
    assert "rolled_back at 0 %" in watched.stdout
    assert "requests failed, 0.01 may" in watched.stdout
    shown = swapping.cli("aliases", "show", "front").stdout
    assert f"{model}@1" in shown
    assert f"{model}@2" not in shown


async def test_the_commands(
    swapping: Coordinator,
    client: AsyncClient,
    model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MOC_URL", swapping.url)
    monkeypatch.setenv("MOC_DATA_DIR", str(swapping.data_dir))

    def moc(*arguments: str, ends: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["rollout", *arguments])
        printed = capsys.readouterr()
        assert ended.value.code == ends, printed.err
        return printed.out + printed.err

    await add(client, swapping, model, 2)
    begun = json.loads(moc("start", "front", "--to", f"{model}@2", "--steps", "50,100", "--hold", "1h", "--json"))
    assert (begun["state"], begun["steps"], begun["hold_s"], begun["min_requests"]) == ("warming", [50, 100], 3600, 50)
    await left(client, "warming")
    shown = moc("show", "front")
    assert f"{model}@2 at 50 %" in shown
    assert "0 requests, 0 failed" in shown
    assert "judged by 50 requests" in shown
    assert "is paused: " in moc("pause", "front")
    assert "it is paused" in moc("list")
    assert "is progressing: " in moc("resume", begun["id"])
    assert "--force" in moc("promote", "front", ends=1)
    assert "gets 100 % of front" in moc("promote", "front", "--force")
    told = [json.loads(line)["state"] for line in moc("watch", "front", "--json").splitlines()]
    assert told == ["warming", "progressing", "paused", "progressing", "promoted"]
    assert "is promoted" in moc("abort", "front", ends=1)
    assert [rollout["id"] for rollout in json.loads(moc("list", "--json"))["rollouts"]][-1] == begun["id"]
    assert "not percentages" in moc("start", "front", "--to", "x@1", "--steps", "a,b", ends=2)
    assert "no alias" in moc("start", "nobody", "--to", f"{model}@1", ends=1)
