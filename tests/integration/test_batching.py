"""Batching from a caller's request to a worker's answer."""

import asyncio

import httpx
import numpy as np

from moc.inference.batching import Batcher
from moc.inference.request import Reply, Request, Tensor
from moc.models.model import Batching, ModelSpec
from moc.resilience.deadline import NEVER
from moc.workers.local import LocalWorkers
from tests.hosted import arrays, example, link_to, start, tensors
from tests.rest_stack import INFO, EchoLink, RestStack

FOUR = Batching(max_batch=4, max_delay_ms=10_000)


async def load(stack: RestStack, link: EchoLink) -> None:
    """Register and load a model that gathers four rows; `link` is the line to its worker."""
    spec = ModelSpec(runtime="python", source="file:echo.py", ttl_s=0, batching=FOUR)
    await stack.manager.add("echo", spec, actor="test")
    resident = await stack.manager.ensure_ready("echo", NEVER)
    stack.workers.links[resident.worker_id] = link


async def ask(client: httpx.AsyncClient, number: float) -> list[float]:
    tensor = {"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [number] * 8}
    answer = await client.post("/v2/models/echo/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    assert output["shape"] == [1, 8]
    data: list[float] = output["data"]
    return data


async def test_requests_of_several_callers_are_one_call_of_the_engine(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    link = EchoLink(INFO)
    await load(rest_stack, link)
    answers = await asyncio.gather(*(ask(rest_client, number) for number in range(8)))
    assert answers == [[float(number)] * 8 for number in range(8)]
    assert [request.inputs[0].shape for request in link.given] == [(4, 8), (4, 8)]


class OneRow(EchoLink):
    """Answers with one row, however many there are."""

    async def infer(self, request: Request) -> Reply:
        self.given.append(request)
        return Reply(bytes(request.body[:32]), (Tensor("OUTPUT0", "FP32", (1, 8), 32),))


async def test_a_model_that_cannot_be_batched_is_told_of_and_answers_right(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    link = OneRow(INFO)
    await load(rest_stack, link)
    answers = await asyncio.gather(*(ask(rest_client, number) for number in range(4)))
    assert answers == [[float(number)] * 8 for number in range(4)]
    assert len(link.given) == 1 + 4
    async for event in rest_stack.store.follow(after=0):
        if event.kind == "model.unbatched":
            assert event.subject == "echo@1"
            assert event.data == {"message": "output 'OUTPUT0' has shape [1, 8] for a batch of 4 rows"}
            break


async def test_a_real_worker_answers_each_caller(workers: LocalWorkers) -> None:
    worker = await start(workers, example("identity"))
    told: list[str] = []
    batcher = Batcher(link_to(workers, worker), max_batch=8, max_delay_s=0.001, on_off=told.append)

    async def identity(number: int) -> None:
        rows = np.full((1 + number % 3, 8), number, "f4")
        answer = arrays(await batcher.infer(tensors(INPUT0=rows)))["OUTPUT0"]
        assert np.array_equal(answer, rows)

    await asyncio.gather(*(identity(number) for number in range(200)))
    assert told == []
