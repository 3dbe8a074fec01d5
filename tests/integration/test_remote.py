"""Engines that run elsewhere as workers: a coordinator, llama.cpp's own server, and one that comes and goes."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moc.inference.request import Reply, Request
from moc.kernel.clock import SystemClock
from moc.kernel.errors import DeadlineExceeded, InvalidRequest, LoadFailed, Unavailable, Unimplemented, WorkerLost
from moc.kernel.events import Event
from moc.kernel.records import Op
from moc.models.ports import Launch, Worker
from moc.resilience.deadline import NEVER, Deadline
from moc.store.memory import MemoryStore
from moc.testing.seat import FakeSeat
from moc.workers.remote import RemoteLink, RemoteWorkers
from tests.coordinator import free_port
from tests.hosted import arrays, tensors
from tests.models import smollm2_path
from tests.rest_stack import RestStack
from tests.upstream_server import UpstreamServer, hanging, serving, streamed

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "tests" / "llama_server.py"
KEY = "sesame-of-the-llama"


class Store(MemoryStore):
    """Commits nothing while `open` is not set; `asked` when it was to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def commit(self, ops: Sequence[Op], events: Sequence[Event] = ()) -> int:
        self.asked.set()
        await self.open.wait()
        return await super().commit(ops, events)


class Remotes:
    """Remote workers over a store of their own."""

    def __init__(self, folder: Path) -> None:
        self.store = Store()
        self.secrets = folder / "secrets"
        self.secrets.mkdir()
        self.workers = RemoteWorkers(
            store=self.store,
            seat=FakeSeat(self.store),
            host="here",
            clock=SystemClock(),
            secrets=self.secrets,
            reach=lambda host, port, address: None,
        )

    async def load(self, url: str, **options: Any) -> tuple[Worker, RemoteLink]:
        """A worker and the line to it."""
        launch = Launch(model="far@2", digest="sha256:0", runtime="remote", path=url, options=options)
        worker = await self.workers.start_worker(launch, NEVER)
        link = self.workers.link(worker.id)
        assert link is not None
        return worker, link

    def key(self, secret: str) -> str:
        """A key's file as `key_file` takes it."""
        (self.secrets / "key").write_text(secret)
        return "key"

    async def told(self, kind: str) -> Event:
        """Wait for the first event of a kind."""
        async with asyncio.timeout(30):
            async for event in self.store.follow(after=0):
                if event.kind == kind:
                    return event
        raise AssertionError(kind)


@pytest.fixture
async def remotes(tmp_path: Path) -> AsyncIterator[Remotes]:
    it = Remotes(tmp_path)
    await it.store.start()
    await it.workers.start()
    try:
        yield it
    finally:
        await it.workers.stop()
        await it.store.stop()


@pytest.fixture
async def server() -> AsyncIterator[UpstreamServer]:
    async with serving() as it:
        yield it


def chat(content: str = "Say hello.", **fields: Any) -> Request:
    body = {"model": "far", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8}
    return Request("chat", json.dumps({**body, **fields}).encode())


def answer(reply: Reply) -> Any:
    return json.loads(bytes(reply.body))


# a life


async def test_it_is_a_worker_without_a_process(remotes: Remotes, server: UpstreamServer) -> None:
    worker, link = await remotes.load(f"{server.url}/v1")
    assert worker.id.startswith("rem-")
    assert (worker.pid, worker.bytes, worker.devices, worker.state) == (0, 0, (), "ready")
    assert remotes.workers.workers() == [worker]
    assert worker.info["details"] == {"upstream": server.url.removeprefix("http://"), "model": "far"}
    assert answer(await link.infer(chat()))["choices"]
    assert server.last.json()["model"] == "far"
    await remotes.workers.stop_worker(worker.id, reason="Requested")
    assert remotes.workers.workers() == []
    assert not link.alive
    with pytest.raises(WorkerLost) as caught:
        await link.infer(chat())
    assert not caught.value.sent
    await remotes.workers.stop_worker(worker.id, reason="Requested")
    assert [event.kind for event in await remotes.store.events()] == ["worker.ready", "worker.gone"]


async def test_requests_are_counted_while_they_last(remotes: Remotes, server: UpstreamServer) -> None:
    server.answer = hanging
    worker, link = await remotes.load(f"{server.url}/v1")
    asking = asyncio.create_task(link.infer(chat()))
    await server.asked.wait()
    assert remotes.workers.in_flight(worker.id) == 1
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert remotes.workers.in_flight(worker.id) == 0


async def test_one_that_is_not_well_does_not_load(remotes: Remotes, server: UpstreamServer) -> None:
    server.health = 503
    with pytest.raises(LoadFailed, match="not available"):
        await remotes.load(f"{server.url}/v1")
    server.health = 401
    with pytest.raises(LoadFailed, match=r"refused access .* the key in the file .*secrets/key") as caught:
        await remotes.load(f"{server.url}/v1", key_file=remotes.key("wrong"))
    assert caught.value.reason == "load_failed"
    await server.stop()
    with pytest.raises(LoadFailed, match="cannot be reached"):
        await remotes.load(f"{server.url}/v1")
    assert remotes.workers.workers() == []


async def test_a_load_keeps_to_its_deadline(remotes: Remotes) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    mute = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with mute:
        url = f"http://127.0.0.1:{mute.sockets[0].getsockname()[1]}"
        launch = Launch(model="far@1", digest="", runtime="remote", path=url)
        with pytest.raises(DeadlineExceeded):
            await remotes.workers.start_worker(launch, Deadline.after(0.1))


async def test_a_load_that_is_cancelled_at_its_end_leaves_nothing(remotes: Remotes, server: UpstreamServer) -> None:
    remotes.store.open.clear()
    loading = asyncio.create_task(remotes.load(f"{server.url}/v1"))
    await asyncio.wait_for(remotes.store.asked.wait(), 30)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert remotes.workers.workers() == []


async def test_it_is_unresponsive_while_it_is_not_well(remotes: Remotes, server: UpstreamServer) -> None:
    worker, link = await remotes.load(f"{server.url}/v1", health_interval_s=0.05)
    server.health = 500
    event = await remotes.told("worker.unresponsive")
    assert event.subject == worker.id
    assert (link.responsive, states(remotes)) == (False, ["unresponsive"])
    server.health = 200
    await remotes.told("worker.responsive")
    assert (link.responsive, states(remotes)) == (True, ["ready"])
    await server.stop()
    await asyncio.wait_for(_until_silent(remotes, link), 30)
    assert link.alive, "it is not lost: it may come back"


def states(remotes: Remotes) -> list[str]:
    return [worker.state for worker in remotes.workers.workers()]


async def _until_silent(remotes: Remotes, link: RemoteLink) -> None:
    async for event in remotes.store.follow(after=0):
        if event.kind == "worker.unresponsive" and not link.responsive:
            return


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"modle": "x"}, "did you mean 'model'"),
        ({"protocol": "soap"}, "one of openai, oip"),
        ({"kinds": ["song"]}, "one of tensors"),
        ({"key_env": "A", "key_file": "b"}, "leave one out"),
        ({"headers": {"Authorization": "Bearer x"}}, "carries a secret"),
        ({"headers": {"Host": "x"}}, "by the coordinator itself"),
        ({"headers": {"x-a": "1\r\nx-b: 2"}}, "no header can carry"),
        ({"headers": {"x a": "1"}}, "no name of a header"),
        ({"forward_headers": ["cookie"]}, "carries a secret"),
        ({"health": "health"}, "from the root"),
        ({"timeout_s": 0}, "a number from"),
        ({"max_connections": 0}, "a whole number"),
    ],
)
async def test_options_that_cannot_be_right_are_refused(remotes: Remotes, options: dict[str, Any], said: str) -> None:
    with pytest.raises(LoadFailed, match=said) as caught:
        await remotes.load("http://127.0.0.1:9/v1", **options)
    assert caught.value.reason == "invalid_spec"


# another coordinator


async def test_a_coordinator_answers_as_the_engine_it_has(remotes: Remotes, rest_stack: RestStack) -> None:
    await rest_stack.load()
    key = remotes.key(rest_stack.key)
    _, link = await remotes.load(f"{rest_stack.rest.url}/v1", model="echo", key_file=key, coordinator=True)
    request = chat()
    assert answer(await link.infer(request)) == {**json.loads(bytes(request.body)), "model": "echo"}
    assert [json.loads(chunk)["choices"][0]["text"] for chunk in await streamed(link, chat(stream=True))] == [
        "one",
        " two",
        " three",
    ]
    _, other = await remotes.load(f"{rest_stack.rest.url}/v1", model="none", key_file=key)
    with pytest.raises(Unavailable, match="model 'none'"):
        await other.infer(request)
    with pytest.raises(Unimplemented):
        await link.infer(Request("embeddings", b'{"model": "far", "input": "x"}'))


async def test_leaving_ends_the_work_behind_another_coordinator(remotes: Remotes, rest_stack: RestStack) -> None:
    engine = await rest_stack.load()
    engine.gate.clear()
    key = remotes.key(rest_stack.key)
    _, link = await remotes.load(f"{rest_stack.rest.url}/v1", model="echo", key_file=key, coordinator=True)
    asking = asyncio.create_task(link.infer(chat()))
    await asyncio.wait_for(engine.began.wait(), 30)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await engine.idle()
    assert engine.cancelled == 1
    stream = link.stream(chat(stream=True))
    await anext(stream)
    await stream.aclose()
    await engine.idle()


@pytest.mark.parametrize("binary", [True, False])
async def test_a_coordinator_takes_tensors(remotes: Remotes, rest_stack: RestStack, binary: bool) -> None:
    await rest_stack.load()
    key = remotes.key(rest_stack.key)
    _, link = await remotes.load(
        rest_stack.rest.url, protocol="oip", model="echo@1", key_file=key, coordinator=True, binary=binary
    )
    given = np.arange(16, dtype=np.float32).reshape(2, 8)
    came = arrays(await link.infer(tensors(INPUT0=given)))
    np.testing.assert_array_equal(came["OUTPUT0"], given)


# llama.cpp's own server


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    """Its URL."""
    port = free_port()
    command = [sys.executable, str(SERVER), str(port), str(smollm2_path())]
    process = subprocess.Popen(command, env={**os.environ, "LLAMA_API_KEY": KEY}, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"listening")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.communicate()


async def test_a_real_engine_answers_whole_and_in_pieces(remotes: Remotes, llama: str) -> None:
    _, link = await remotes.load(llama, model="llama", key_file=remotes.key(KEY), health="/health")
    whole = answer(await link.infer(chat()))["choices"][0]["message"]["content"]
    chunks = [json.loads(chunk) for chunk in await streamed(link, chat())]
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]]
    assert whole
    assert "".join(pieces) == whole
    with pytest.raises(InvalidRequest):
        await link.infer(chat(messages="none"))
    with pytest.raises(Unimplemented):
        await link.infer(Request("embeddings", b'{"input": "x"}'))


async def test_a_real_engine_refuses_a_wrong_key(remotes: Remotes, llama: str) -> None:
    with pytest.raises(LoadFailed, match="refused access"):
        await remotes.load(llama, key_file=remotes.key("wrong"))
    _, link = await remotes.load(llama, health="/health")
    with pytest.raises(Unavailable, match="no key"):
        await link.infer(chat())
