"""What is told of a model that is loaded and does not answer, and what canaries do about it."""

import asyncio
from typing import Any

import httpx
import pytest

from moc.inference.request import Info, TensorSpec
from moc.kernel.errors import Internal, InvalidRequest, LoadFailed
from moc.models.model import Batching, Canary, ModelSpec
from moc.resilience.deadline import NEVER
from moc.service import health
from moc.service.inference import Description
from moc.service.models import spec_from
from moc.testing.workers import FakeLink
from moc.transports.oip.server import model_config
from tests.hosted import eventually
from tests.rest_stack import RestStack, client, running

QUICK = Canary(kind="tensors", interval_s=0.1, timeout_s=0.5)
BROKEN = Internal("the tea is cold")
TENSORS = {"inputs": [{"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.0] * 8}]}


async def load(stack: RestStack, canary: Canary | None = None, **more: Any) -> FakeLink:
    """Register and load the model `bird`; the line to its worker."""
    spec = ModelSpec(runtime="python", source="file:bird.py", ttl_s=0, canary=canary, **more)
    await stack.manager.add("bird", spec, actor="test")
    resident = await stack.manager.ensure_ready("bird", NEVER)
    return stack.workers.links[resident.worker_id]


async def is_ready(asker: httpx.AsyncClient) -> bool:
    answer = await asker.get("/v2/models/bird/ready")
    assert answer.json()["ready"] is (answer.status_code == 200)
    return answer.status_code == 200


async def problem(asker: httpx.AsyncClient) -> str:
    found: str = (await asker.get("/api/v1/models/bird")).json()["problem"]
    return found


def fault(stack: RestStack) -> str:
    """What is wrong with the model; `not loaded` is, too."""
    resident = stack.manager.find("bird")
    return "not loaded" if resident is None else stack.health.problem(resident.worker_id)


async def test_a_model_whose_worker_is_silent_is_not_ready_until_it_is_not(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    link = await load(rest_stack)
    assert await is_ready(rest_client)
    link.responsive = False
    assert not await is_ready(rest_client)
    assert await problem(rest_client) == "its worker gives no sign of life"
    refused = await rest_client.post("/v2/models/bird/infer", json=TENSORS)
    assert refused.status_code == 503
    link.responsive = True
    assert await is_ready(rest_client)
    assert await problem(rest_client) == ""


async def test_every_part_is_named_and_models_only_to_those_who_may_see_them(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    link = await load(rest_stack, preload=True)
    link.responsive = False
    probe = await rest_client.get("/readyz")
    assert probe.status_code == 200
    assert probe.json()["parts"] == {
        "replica": True,
        "seat host/fake": True,
        "store": True,
        "device declared:0": True,
        "models": False,
    }
    assert probe.json()["reasons"] == {
        "models": "1 of the 1 that should be there do not answer; /health names them",
    }
    told = (await rest_client.get("/health")).json()
    assert told["parts"]["model bird@1"] is False
    assert told["reasons"] == {"model bird@1": "its worker gives no sign of life"}


async def test_the_start_is_over_when_it_was_ready_once(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    rest_stack.replica.state = "starting"
    assert (await rest_client.get("/startupz")).status_code == 503
    answer = await rest_client.get("/readyz")
    assert (answer.status_code, answer.json()["reasons"]) == (503, {"replica": "it is starting"})
    rest_stack.replica.state = "draining"
    assert (await rest_client.get("/startupz")).status_code == 200
    assert (await rest_client.get("/v2/health/ready")).json()["error"] == "not ready: replica: it is draining"


async def test_a_canary_that_fails_makes_a_model_not_ready_and_one_that_passes_ready_again(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    link = await load(rest_stack, QUICK)
    link.error = BROKEN
    await eventually(lambda: fault(rest_stack) != "")
    assert not await is_ready(rest_client)
    assert await problem(rest_client) == "its canary failed: the tea is cold"
    link.error = None
    await eventually(lambda: fault(rest_stack) == "")
    assert await is_ready(rest_client)
    assert rest_stack.workers.starts == 1


async def test_a_model_whose_canary_keeps_failing_gets_another_worker(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    link = await load(rest_stack, QUICK)
    link.error = BROKEN
    await eventually(lambda: rest_stack.workers.starts == 2 and fault(rest_stack) == "")
    assert await is_ready(rest_client)
    assert len(link.given) == 1 + health.FAILURES_MAX
    assert not link.alive


async def test_a_canary_is_no_use_and_no_figure(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    link = await load(rest_stack, QUICK)
    await eventually(lambda: len(link.given) >= 3)
    resident = rest_stack.manager.find("bird")
    assert resident is not None
    assert resident.uses == 0
    (figures,) = (await rest_client.get("/v2/models/bird/stats")).json()["model_stats"]
    assert figures["inference_count"] == 0


async def test_a_canary_that_has_no_turn_says_nothing_of_the_model(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    link = await load(rest_stack, QUICK)
    link.gate.clear()
    asked = [asyncio.create_task(rest_client.post("/v2/models/bird/infer", json=TENSORS)) for _ in range(2)]
    await eventually(lambda: link.running == 2)
    before = link.cancelled
    await eventually(lambda: link.cancelled >= before + 2)
    assert await is_ready(rest_client)
    link.gate.set()
    await asyncio.gather(*asked)


async def test_a_canary_without_an_answer_fails(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    link = await load(rest_stack, QUICK)
    link.gate.clear()
    await eventually(lambda: fault(rest_stack) != "")
    assert not await is_ready(rest_client)
    assert await problem(rest_client) == "its canary had no answer within 0.5 s"


async def test_a_model_whose_canary_fails_is_not_loaded(rest_stack: RestStack) -> None:
    rest_stack.workers.info = Info(("tensors",), "silent", concurrency=1)
    rest_stack.workers.link_error = BROKEN
    with pytest.raises(LoadFailed, match="bird@1: its canary failed: the tea is cold") as caught:
        await load(rest_stack, QUICK)
    assert caught.value.reason == "runtime_unhealthy"
    assert rest_stack.workers.workers() == []


async def test_the_canary_of_a_model_on_tensors_is_a_row_of_zeros(rest_stack: RestStack) -> None:
    inputs = (TensorSpec("A", "FP16", (-1, 2)), TensorSpec("B", "BYTES", (1, 3)), TensorSpec("C", "BOOL", ()))
    rest_stack.workers.info = Info(("tensors",), "test", inputs, concurrency=1)
    link = await load(rest_stack, Canary(kind="tensors"))
    assert [(tensor.shape, tensor.size) for tensor in link.given[0].inputs] == [((1, 2), 4), ((1, 3), 12), ((), 1)]
    assert link.given[0].body == bytes(17)


async def test_the_canary_of_a_chat_is_what_it_says(rest_stack: RestStack) -> None:
    link = await load(rest_stack, Canary(kind="chat", body={"messages": []}))
    assert (link.given[0].kind, link.given[0].body) == ("chat", b'{"messages":[]}')


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"canary": {"kind": "smoke"}}, "canary.kind is 'smoke'; it is one of tensors, chat"),
        ({"canary": {"kind": "chat"}}, "the canary needs a `body`"),
        ({"canary": {"kind": "tensors", "body": {"a": 1}}}, "the canary takes no `body`"),
        ({"canary": {"kind": "tensors", "interval_s": 0}}, "canary.interval_s is 0"),
        ({"canary": {"kind": "tensors", "every": 3}}, "canary: unknown key 'every'"),
        ({"batching": {"max_batch": 1}}, "batching.max_batch is 1; it must be from 2 to 65536"),
        ({"batching": {"max_batch": 8, "max_delay": 1}}, "unknown key 'max_delay'; did you mean 'max_delay_ms'"),
        ({"batching": {}}, "max_batch"),
    ],
)
def test_what_cannot_be_right_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        spec_from({"runtime": "python", "source": "file:x.py", **fields}, where="model 'x'")


async def test_batching_is_told_as_triton_tells_it(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    body = {"name": "bird", "runtime": "python", "source": "file:x.py", "batching": {"max_batch": 8, "max_delay_ms": 2}}
    added = (await rest_client.post("/api/v1/models", json=body)).json()
    assert added["batching"] == {"max_batch": 8, "max_delay_ms": 2.0}
    await rest_stack.manager.ensure_ready("bird", NEVER)
    config = (await rest_client.get("/v2/models/bird/config")).json()
    assert config["max_batch_size"] == 8
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 2000}


@pytest.mark.parametrize(("batching", "dims"), [(None, (-1, 8)), (Batching(max_batch=4), (8,))])
def test_a_server_that_batches_fills_the_first_dimension_itself(
    batching: Batching | None, dims: tuple[int, ...]
) -> None:
    found = Description("x", 1, (1,), "python", (TensorSpec("A", "FP32", (-1, 8)),), (), ("tensors",), 0.0, 1, batching)
    assert model_config(found).input[0].dims == dims


async def test_models_count_where_they_are_said_to(tmp_path: Any) -> None:
    async with running(tmp_path, ready_needs_models=True) as stack, client(stack) as asker:
        link = await load(stack, preload=True)
        assert (await asker.get("/readyz")).status_code == 200
        link.responsive = False
        assert (await asker.get("/readyz")).status_code == 503
        assert (await asker.get("/health")).status_code == 503
        await stack.manager.unload("bird", NEVER, actor="test")
        assert (await asker.get("/readyz")).status_code == 200
