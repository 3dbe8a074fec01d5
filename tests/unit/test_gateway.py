"""The gateway against fakes: places, order, retries, deadlines, disconnects."""

import asyncio

import pytest

from moc.inference.gateway import Gateway
from moc.inference.request import Caller, Request, Terms
from moc.kernel.errors import DeadlineExceeded, InvalidRequest, QueueFull, Unimplemented, WorkerLost
from moc.models.model import ModelSpec
from moc.models.ports import Launch
from moc.models.resident import Resident
from moc.resilience.deadline import Deadline
from moc.testing.workers import FakeLink, FakeWorkers

SOMEBODY = Caller("key")


class OneModel:
    """The Residents port with a single model, loaded on demand."""

    def __init__(self, workers: FakeWorkers, *, max_queue: int = 256) -> None:
        self.workers = workers
        self.resident: Resident | None = None
        self.max_queue = max_queue

    def find(self, reference: str) -> Resident | None:
        found = self.resident
        return found if found is not None and self.workers.link(found.worker_id) is not None else None

    async def ensure_ready(self, reference: str, deadline: Deadline) -> Resident:
        launch = Launch(model="m@1", digest="sha256:0", runtime="python", path="x")
        worker = await self.workers.start_worker(launch, deadline)
        limit = ModelSpec(runtime="python", source="x").max_concurrent
        self.resident = Resident(
            reference="m@1",
            digest="sha256:0",
            worker_id=worker.id,
            max_concurrent=limit,
            max_queue=self.max_queue,
            adopted=False,
        )
        return self.resident

    @property
    def link(self) -> FakeLink:
        assert self.resident is not None
        link = self.workers.link(self.resident.worker_id)
        assert link is not None
        return link


class Ledger:
    """The Meter port: codes in the order requests ended."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def finished(self, reference: str, kind: str, code: str, *, queue_s: float, engine_s: float) -> None:
        self.codes.append(code)


@pytest.fixture
def model() -> OneModel:
    return OneModel(FakeWorkers(), max_queue=3)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def gateway(model: OneModel, ledger: Ledger) -> Gateway:
    return Gateway(residents=model, links=model.workers, meter=ledger)


def request(body: bytes = b"abc") -> Request:
    return Request("tensors", body)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_an_answer_names_its_version(gateway: Gateway, ledger: Ledger) -> None:
    answer = await gateway.infer(SOMEBODY, "m", request(), Terms())
    assert (answer.reply.body, answer.reference, answer.digest) == (b"abc", "m@1", "sha256:0")
    assert ledger.codes == ["ok"]


async def test_no_more_run_than_the_engine_takes_and_the_rest_wait_in_order(gateway: Gateway, model: OneModel) -> None:
    await gateway.infer(SOMEBODY, "m", request(), Terms())
    model.link.gate.clear()
    waiting = [asyncio.create_task(gateway.infer(SOMEBODY, "m", request(bytes([n])), Terms())) for n in range(5)]
    await turns()
    assert model.link.running == 2
    with pytest.raises(QueueFull):
        await gateway.infer(SOMEBODY, "m", request(), Terms())
    model.link.gate.set()
    await asyncio.gather(*waiting)
    assert model.link.most_running == 2
    assert [given.body for given in model.link.given[1:]] == [bytes([n]) for n in range(5)]
    assert model.resident is not None
    assert model.resident.users == 0


async def test_a_deadline_bites_in_the_queue_and_in_the_engine(gateway: Gateway, model: OneModel) -> None:
    await gateway.infer(SOMEBODY, "m", request(), Terms())
    model.link.gate.clear()
    running = [
        asyncio.create_task(gateway.infer(SOMEBODY, "m", request(), Terms(Deadline.after(0.05)))) for _ in range(2)
    ]
    await turns()
    with pytest.raises(DeadlineExceeded, match="waiting for a place"):
        await gateway.infer(SOMEBODY, "m", request(), Terms(Deadline.after(0.01)))
    for task in running:
        with pytest.raises(DeadlineExceeded, match="worked on it"):
            await task
    assert model.link.cancelled == 2
    assert model.link.running == 0


async def test_a_caller_that_leaves_frees_its_place(gateway: Gateway, model: OneModel, ledger: Ledger) -> None:
    await gateway.infer(SOMEBODY, "m", request(), Terms())
    model.link.gate.clear()
    tasks = [asyncio.create_task(gateway.infer(SOMEBODY, "m", request(), Terms())) for _ in range(3)]
    await turns()
    tasks[0].cancel()
    tasks[2].cancel()
    await turns()
    assert model.link.running == 1
    model.link.gate.set()
    await tasks[1]
    assert sorted(ledger.codes) == ["cancelled", "cancelled", "ok", "ok"]


async def test_what_was_never_sent_is_tried_on_the_next_worker(gateway: Gateway, model: OneModel) -> None:
    await gateway.infer(SOMEBODY, "m", request(), Terms())
    model.link.gate.clear()
    tasks = [asyncio.create_task(gateway.infer(SOMEBODY, "m", request(), Terms())) for _ in range(4)]
    await turns()
    assert model.resident is not None
    model.workers.crash(model.resident.worker_id)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results[:2]] == [WorkerLost, WorkerLost]
    assert not any(isinstance(result, BaseException) for result in results[2:])


async def test_the_engines_own_error_reaches_the_caller(gateway: Gateway, model: OneModel, ledger: Ledger) -> None:
    await gateway.infer(SOMEBODY, "m", request(), Terms())
    model.link.error = InvalidRequest("no such input")
    with pytest.raises(InvalidRequest):
        await gateway.infer(SOMEBODY, "m", request(), Terms())
    assert ledger.codes == ["ok", "invalid_request"]


async def test_a_kind_the_engine_lacks_is_refused(gateway: Gateway) -> None:
    with pytest.raises(Unimplemented, match="cannot do embeddings; it can do tensors, chat"):
        await gateway.infer(SOMEBODY, "m", Request("embeddings", b"{}"), Terms())


async def test_a_stream_gives_every_chunk_and_then_its_place_back(gateway: Gateway, model: OneModel) -> None:
    stream = await gateway.stream(SOMEBODY, "m", Request("chat", b"abc"), Terms())
    assert model.link.running == 1
    assert [chunk async for chunk in stream] == [b"a", b"b", b"c"]
    assert model.link.running == 0
    assert model.resident is not None
    assert model.resident.users == 0


async def test_closing_a_stream_stops_the_engine(gateway: Gateway, model: OneModel, ledger: Ledger) -> None:
    stream = await gateway.stream(SOMEBODY, "m", Request("chat", b"abc"), Terms())
    await stream.aclose()
    await stream.aclose()
    assert (model.link.cancelled, ledger.codes) == (1, ["cancelled"])
    assert model.resident is not None
    assert model.resident.users == 0


async def test_an_error_before_the_first_chunk_is_raised_at_once(gateway: Gateway, model: OneModel) -> None:
    await gateway.infer(SOMEBODY, "m", request(), Terms())
    model.link.error = InvalidRequest("no")
    with pytest.raises(InvalidRequest):
        await gateway.stream(SOMEBODY, "m", Request("chat", b"abc"), Terms())
    assert model.resident is not None
    assert model.resident.users == 0


async def test_an_error_between_chunks_ends_the_stream(gateway: Gateway, model: OneModel) -> None:
    stream = await gateway.stream(SOMEBODY, "m", Request("chat", b"abc"), Terms())
    assert await anext(stream) == b"a"
    model.link.error = InvalidRequest("no")
    with pytest.raises(InvalidRequest):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
