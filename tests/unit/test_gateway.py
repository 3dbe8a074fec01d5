"""The gateway against fakes: places, order, retries, deadlines, disconnects."""

import asyncio

import pytest

from moc.inference.gateway import Gateway
from moc.inference.request import Caller, Info, Request, Terms
from moc.kernel.errors import DeadlineExceeded, InvalidRequest, QueueFull, Unimplemented, WorkerLost
from moc.resilience.deadline import Deadline
from moc.testing.workers import INFO, FakeLink
from tests.crossroads import Crossroads, Models, until

SOMEBODY = Caller("key")


@pytest.fixture
def models() -> Models:
    return Models(max_queue=3)


@pytest.fixture
def place(models: Models) -> Crossroads:
    return Crossroads(models)


@pytest.fixture
def gateway(place: Crossroads) -> Gateway:
    return place.gateway


@pytest.fixture
def codes(place: Crossroads) -> list[str]:
    return place.journal.codes


def request(body: bytes = b"abc") -> Request:
    return Request("tensors", body)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_an_answer_names_its_version(gateway: Gateway, codes: list[str]) -> None:
    answer = await gateway.infer(SOMEBODY, "m", request(), Terms())
    assert (answer.reply.body, answer.reference, answer.digest) == (b"abc", "m@1", "sha256:0")
    assert codes == ["ok"]


async def test_no_more_run_than_the_engine_takes_and_the_rest_wait_in_order(gateway: Gateway, models: Models) -> None:
    await gateway.infer(SOMEBODY, "m", request(), Terms())
    models.link("m").gate.clear()
    waiting = [asyncio.create_task(gateway.infer(SOMEBODY, "m", request(bytes([n])), Terms())) for n in range(5)]
    await turns()
    assert models.link("m").running == 2
    with pytest.raises(QueueFull):
        await gateway.infer(SOMEBODY, "m", request(), Terms())
    models.link("m").gate.set()
    await asyncio.gather(*waiting)
    assert models.link("m").most_running == 2
    assert [given.body for given in models.link("m").given[1:]] == [bytes([n]) for n in range(5)]
    assert models.resident("m").users == 0


async def test_a_deadline_bites_in_the_queue_and_in_the_engine(gateway: Gateway, models: Models) -> None:
    await gateway.infer(SOMEBODY, "m", request(), Terms())
    models.link("m").gate.clear()
    running = [
        asyncio.create_task(gateway.infer(SOMEBODY, "m", request(), Terms(Deadline.after(0.05)))) for _ in range(2)
    ]
    await turns()
    with pytest.raises(DeadlineExceeded, match="waiting for a place"):
        await gateway.infer(SOMEBODY, "m", request(), Terms(Deadline.after(0.01)))
    for task in running:
        with pytest.raises(DeadlineExceeded, match="worked on it"):
            await task
    assert models.link("m").cancelled == 2
    assert models.link("m").running == 0


async def test_a_caller_that_leaves_frees_its_place(gateway: Gateway, models: Models, codes: list[str]) -> None:
    await gateway.infer(SOMEBODY, "m", request(), Terms())
    models.link("m").gate.clear()
    tasks = [asyncio.create_task(gateway.infer(SOMEBODY, "m", request(), Terms())) for _ in range(3)]
    await turns()
    tasks[0].cancel()
    tasks[2].cancel()
    await turns()
    assert models.link("m").running == 1
    models.link("m").gate.set()
    await tasks[1]
    assert sorted(codes) == ["cancelled", "cancelled", "ok", "ok"]


async def test_what_was_never_sent_is_tried_on_the_next_worker(gateway: Gateway, models: Models) -> None:
    await gateway.infer(SOMEBODY, "m", request(), Terms())
    models.link("m").gate.clear()
    tasks = [asyncio.create_task(gateway.infer(SOMEBODY, "m", request(), Terms())) for _ in range(4)]
    await turns()
    models.crash("m")
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results[:2]] == [WorkerLost, WorkerLost]
    assert not any(isinstance(result, BaseException) for result in results[2:])


async def test_a_new_line_to_a_worker_is_used_at_once_and_as_it_wants_to_be(gateway: Gateway, models: Models) -> None:
    await gateway.infer(SOMEBODY, "m", request(), Terms())
    models.link("m").alive = False
    new = models.workers.links[models.resident("m").worker_id] = FakeLink(Info(INFO.kinds, INFO.engine, concurrency=1))
    await asyncio.gather(*(gateway.infer(SOMEBODY, "m", request(), Terms()) for _ in range(2)))
    assert (len(new.given), new.most_running) == (2, 1)
    assert models.loads == ["m"]


async def test_the_engines_own_error_reaches_the_caller(gateway: Gateway, models: Models, codes: list[str]) -> None:
    await gateway.infer(SOMEBODY, "m", request(), Terms())
    models.link("m").error = InvalidRequest("no such input")
    with pytest.raises(InvalidRequest):
        await gateway.infer(SOMEBODY, "m", request(), Terms())
    assert codes == ["ok", "invalid_request"]


async def test_an_error_nobody_foresaw_is_counted_as_one(gateway: Gateway, models: Models, codes: list[str]) -> None:
    await models.load("m")
    models.link("m").error = RuntimeError("a bug")
    with pytest.raises(RuntimeError):
        await gateway.infer(SOMEBODY, "m", request(), Terms())
    with pytest.raises(RuntimeError):
        await gateway.stream(SOMEBODY, "m", Request("chat", b"abc"), Terms())
    assert codes == ["internal", "internal"]


async def test_a_kind_the_engine_lacks_is_refused(gateway: Gateway, codes: list[str]) -> None:
    with pytest.raises(Unimplemented, match="cannot do embeddings; it can do tensors, chat"):
        await gateway.infer(SOMEBODY, "m", Request("embeddings", b"{}"), Terms())
    assert codes == ["unimplemented"]


async def test_a_stream_gives_every_chunk_and_then_its_place_back(gateway: Gateway, models: Models) -> None:
    stream = await gateway.stream(SOMEBODY, "m", Request("chat", b"abc"), Terms())
    assert models.link("m").running == 1
    assert [chunk async for chunk in stream] == [b"a", b"b", b"c"]
    assert models.link("m").running == 0
    assert models.resident("m").users == 0


async def test_closing_a_stream_stops_the_engine(gateway: Gateway, models: Models, codes: list[str]) -> None:
    stream = await gateway.stream(SOMEBODY, "m", Request("chat", b"abc"), Terms())
    await stream.aclose()
    await stream.aclose()
    assert (models.link("m").cancelled, codes) == (1, ["cancelled"])
    assert models.resident("m").users == 0


async def test_an_error_before_the_first_chunk_is_raised_at_once(gateway: Gateway, models: Models) -> None:
    await gateway.infer(SOMEBODY, "m", request(), Terms())
    models.link("m").error = InvalidRequest("no")
    with pytest.raises(InvalidRequest):
        await gateway.stream(SOMEBODY, "m", Request("chat", b"abc"), Terms())
    assert models.resident("m").users == 0


async def test_an_error_between_chunks_ends_the_stream(gateway: Gateway, models: Models) -> None:
    stream = await gateway.stream(SOMEBODY, "m", Request("chat", b"abc"), Terms())
    assert await anext(stream) == b"a"
    models.link("m").error = InvalidRequest("no")
    with pytest.raises(InvalidRequest):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_stream_that_nobody_reads_ends_at_its_deadline(
    gateway: Gateway, models: Models, codes: list[str]
) -> None:
    stream = await gateway.stream(SOMEBODY, "m", Request("chat", b"abc"), Terms(Deadline.after(0.05)))
    await until(lambda: codes)
    assert (codes, models.link("m").running, models.resident("m").users) == (["deadline_exceeded"], 0, 0)
    assert await stream.some() == [b"a"]
    with pytest.raises(DeadlineExceeded, match=r"incomplete.*after 1 chunks"):
        await stream.some()
    assert await stream.some() == []
    await stream.aclose()


async def test_a_stream_that_is_read_in_time_ends_once(gateway: Gateway, codes: list[str]) -> None:
    stream = await gateway.stream(SOMEBODY, "m", Request("chat", b"abc"), Terms(Deadline.after(60)))
    assert [chunk async for chunk in stream] == [b"a", b"b", b"c"]
    await stream.aclose()
    assert codes == ["ok"]
