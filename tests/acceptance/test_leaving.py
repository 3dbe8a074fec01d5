"""Who leaves gives back its place and the engine at once, over every protocol. Against a real coordinator."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import json_format

from moc.transports.grpc.stubs.moc.v1 import inference_pb2 as pb
from tests import zmq_peer
from tests.acceptance.conftest import model, served
from tests.coordinator import Coordinator, short_home
from tests.hosted import eventually

MODEL = """
import asyncio
from pathlib import Path

class Model:
    def load(self, notes):
        self.notes = Path(notes)

    async def chat(self, request):
        said = request["messages"][0]["content"]
        self.note("began", said)
        try:
            await asyncio.sleep(0 if said == "next" else 600)
            return {"choices": [{"message": {"role": "assistant", "content": said}}]}
        except asyncio.CancelledError:
            self.note("cancelled", said)
            raise

    async def stream(self, request):
        said = request["messages"][0]["content"]
        self.note("began", said)
        try:
            yield {"choices": [{"delta": {"content": "one"}}]}
            await asyncio.sleep(600)
        finally:
            self.note("cancelled", said)

    def note(self, what, said):
        with self.notes.open("a") as notes:
            notes.write(f"{what} {said}\\n")
"""


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the model writes down."""
    return tmp_path_factory.mktemp("leaving") / "notes"


@pytest.fixture(scope="module")
def own(notes: Path) -> Iterator[Coordinator]:
    """A coordinator with a model that takes one request at a time, and takes ten minutes over it."""
    path = notes.with_name("patient.py")
    path.write_text(MODEL)
    patient = model("python", path, options={"notes": str(notes)}, preload=True)
    with short_home() as data_dir:
        yield from served(Coordinator(data_dir, config={"models": {"patient": patient}}))


def chat(said: str) -> dict[str, Any]:
    return {"model": "patient", "messages": [{"role": "user", "content": said}]}


@asynccontextmanager
async def over_rest(own: Coordinator, said: str, *, stream: bool) -> AsyncIterator[None]:
    async with httpx.AsyncClient(base_url=own.url, headers=own.headers, timeout=60) as client:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json={**chat(said), "stream": stream}))
        yield
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


@asynccontextmanager
async def over_grpc(own: Coordinator, said: str, *, stream: bool) -> AsyncIterator[None]:
    assert stream  # it does nothing else
    text = {"messages": [{"role": "user", "content": said}]}
    path, request = "/moc.v1.Inference/Chat", json_format.ParseDict({"model": "patient", **text}, pb.ChatRequest())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{own.grpc_port}") as channel:
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(path)
        call = method(request.SerializeToString(), metadata=(("authorization", f"Bearer {own.key}"),))
        yield
        call.cancel()


@asynccontextmanager
async def over_zmq(own: Coordinator, said: str, *, stream: bool) -> AsyncIterator[None]:
    with zmq_peer.peers(own.endpoints["zmq"], own.key) as peers:
        await peers.dealer().send(action="chat", payload={**chat(said), "stream": stream})
        yield


def noted(notes: Path) -> list[str]:
    return notes.read_text().splitlines() if notes.exists() else []


@pytest.mark.parametrize(
    ("over", "stream"), [(over_rest, False), (over_rest, True), (over_grpc, True), (over_zmq, False), (over_zmq, True)]
)
async def test_who_leaves_lets_the_next_one_in(own: Coordinator, notes: Path, over: Any, stream: bool) -> None:
    """The engine is told to stop; who left while it waited is never begun; the next is answered at once."""
    first, second = f"{over.__name__} {stream} first", f"{over.__name__} {stream} second"
    async with httpx.AsyncClient(base_url=own.url, headers=own.headers, timeout=60) as client:
        async with over(own, first, stream=stream):
            await eventually(lambda: f"began {first}" in noted(notes))
            async with over(own, second, stream=stream):
                last = asyncio.create_task(client.post("/v1/chat/completions", json=chat("next")))
                await asyncio.sleep(0.2)  # both are in line by then; nothing outside tells
        answer = await last
    assert answer.status_code == 200, answer.text
    assert f"cancelled {first}" in noted(notes)
    assert f"began {second}" not in noted(notes)
