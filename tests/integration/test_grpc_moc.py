"""`moc.v1`: what REST has under /api/v1, and inference in batches."""

import asyncio
import dataclasses
import json
import struct
from typing import Any, get_args, get_type_hints

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from moc.kernel.errors import InvalidRequest
from moc.resilience.deadline import NEVER
from moc.security.identity import ANYONE
from moc.service.leases import LeaseWish
from moc.service.views import DeviceView, EventView, LeaseView, ModelView, SystemView
from moc.transports.grpc.stubs.moc.v1 import devices_pb2, inference_pb2, leases_pb2, models_pb2, system_pb2
from tests.grpc_stack import GrpcStack, reason_of
from tests.hosted import eventually
from tests.rest_stack import EchoLink, client

FLOATS = struct.pack("<2f", 1, 2.5)
SPEC: dict[str, Any] = {
    "runtime": "python",
    "source": "file:echo.py",
    "ttl_s": "10m",
    "max_queue": 7,
    "options": {"a": [1, None]},
}


@pytest.fixture
async def link(grpc_stack: GrpcStack) -> EchoLink:
    """The line to the worker of `echo`."""
    return await grpc_stack.rest.load()


def tensor(data: bytes = FLOATS) -> inference_pb2.Tensor:
    return inference_pb2.Tensor(name="INPUT0", datatype="FP32", shape=[len(data) // 4], data=data)


def infer_request(model: str = "echo", data: bytes = FLOATS) -> inference_pb2.InferRequest:
    return inference_pb2.InferRequest(model=model, inputs=[tensor(data)])


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), reason_of(caught.value)


async def read(stream: Any, kind: type[Message]) -> Any:
    async with asyncio.timeout(10):
        data = await stream.read()
    return None if data is grpc.aio.EOF else kind.FromString(data)


async def to_the_end(stream: Any) -> None:
    async with asyncio.timeout(10):
        while await stream.read() is not grpc.aio.EOF:
            pass


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (ModelView, models_pb2.Model),
        (DeviceView, devices_pb2.Device),
        (LeaseView, leases_pb2.Lease),
        (SystemView, system_pb2.StatusResponse),
        (EventView, system_pb2.Event),
    ],
)
def test_every_field_of_a_view_has_its_place(view: type, message: type[Message]) -> None:
    check_fields(view, message.DESCRIPTOR)


def check_fields(view: type, descriptor: Any) -> None:
    """The message has the view's fields and no others, all the way down."""
    assert [field.name for field in descriptor.fields] == [field.name for field in dataclasses.fields(view)]
    for name, hint in get_type_hints(view).items():
        inner = next((part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)), None)
        if isinstance(inner, type):
            check_fields(inner, descriptor.fields_by_name[name].message_type)


async def test_models_are_added_listed_loaded_and_removed(grpc_stack: GrpcStack) -> None:
    ask, service, reference = grpc_stack.ask, "/moc.v1.Models", models_pb2.ModelReference(reference="echo")
    add = models_pb2.AddModelRequest(name="echo")
    add.spec.update(SPEC)
    added = await ask(f"{service}/Add", add, models_pb2.Model)
    assert (added.reference, added.ttl_s, added.max_queue, list(added.devices)) == ("echo@1", 600, 7, ["auto"])
    assert json_format.MessageToDict(added.options) == {"a": [1, None]}
    loaded = await ask(f"{service}/Load", reference, models_pb2.Model)
    assert (loaded.state, loaded.worker.model) == ("ready", "echo@1")
    assert (await ask(f"{service}/Get", reference, models_pb2.Model)).state == "ready"
    listed = await ask(f"{service}/List", models_pb2.ListModelsRequest(), models_pb2.ListModelsResponse)
    assert ([model.reference for model in listed.models], listed.next) == (["echo@1"], "")
    versions = await ask(f"{service}/Versions", reference, models_pb2.ListModelsResponse)
    assert [model.version for model in versions.models] == [1]
    assert (await ask(f"{service}/Unload", reference, models_pb2.Model)).state == "registered"
    await ask(f"{service}/Remove", reference, Empty)
    call = ask(f"{service}/Get", reference, models_pb2.Model)
    assert await refused(call) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


async def test_lists_are_paged(grpc_stack: GrpcStack) -> None:
    for name in ("a", "b", "c"):
        await grpc_stack.rest.load(name)
    found, after = [], ""
    while True:
        request = models_pb2.ListModelsRequest(after=after, limit=2)
        page = await grpc_stack.ask("/moc.v1.Models/List", request, models_pb2.ListModelsResponse)
        found += [model.name for model in page.models]
        after = page.next
        if not after:
            break
    assert found == ["a", "b", "c"]
    wrong = grpc_stack.call("/moc.v1.Models/List", models_pb2.ListModelsRequest(limit=1001))
    assert await refused(wrong) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_a_spec_that_is_wrong_is_refused_with_its_place(grpc_stack: GrpcStack) -> None:
    add = models_pb2.AddModelRequest(name="echo")
    add.spec.update({"runtime": "python", "sorce": "file:x"})
    with pytest.raises(grpc.aio.AioRpcError, match="did you mean 'source'"):
        await grpc_stack.call("/moc.v1.Models/Add", add)


async def test_devices_are_what_rest_tells_and_can_be_cordoned(grpc_stack: GrpcStack) -> None:
    service = "/moc.v1.Devices"
    page = await grpc_stack.ask(f"{service}/List", devices_pb2.ListDevicesRequest(), devices_pb2.ListDevicesResponse)
    async with client(grpc_stack.rest) as rest:
        told = (await rest.get("/api/v1/devices")).json()["devices"]
    assert [device.id for device in page.devices] == [device["id"] for device in told]
    assert page.devices[0].measured_bytes == told[0]["measured_bytes"]
    cordon = devices_pb2.SetDeviceStateRequest(id=page.devices[0].id, state="cordoned")
    assert (await grpc_stack.ask(f"{service}/SetState", cordon, devices_pb2.Device)).state == "cordoned"
    get = devices_pb2.GetDeviceRequest(id=page.devices[0].id)
    assert (await grpc_stack.ask(f"{service}/Get", get, devices_pb2.Device)).state == "cordoned"
    wrong = grpc_stack.call(f"{service}/SetState", devices_pb2.SetDeviceStateRequest(id="host", state="broken"))
    assert (await refused(wrong))[1] == "INVALID_REQUEST"


async def test_a_lease_is_acquired_renewed_watched_and_released(grpc_stack: GrpcStack) -> None:
    service = "/moc.v1.Leases"
    stream = grpc_stack.stream(f"{service}/Acquire")
    wish = leases_pb2.AcquireLeaseRequest(bytes=2**20, ttl_s=30, priority=3)
    await stream.write(wish.SerializeToString())
    granted = await read(stream, leases_pb2.Lease)
    assert (granted.state, granted.bytes, granted.priority, granted.ttl_s) == ("admitted", 2**20, 3, 30)
    renew = leases_pb2.RenewLeaseRequest(id=granted.id, token=granted.token)
    assert (await grpc_stack.ask(f"{service}/Renew", renew, leases_pb2.Lease)).state == "admitted"
    listed = await grpc_stack.ask(f"{service}/List", leases_pb2.ListLeasesRequest(), leases_pb2.ListLeasesResponse)
    assert [lease.id for lease in listed.leases] == [granted.id]
    release = leases_pb2.ReleaseLeaseRequest(id=granted.id, token=granted.token)
    assert (await grpc_stack.ask(f"{service}/Release", release, leases_pb2.Lease)).state == "released"
    assert (await read(stream, leases_pb2.Lease)).state == "released"
    assert await read(stream, leases_pb2.Lease) is None
    get = leases_pb2.GetLeaseRequest(id=granted.id)
    assert (await grpc_stack.ask(f"{service}/Get", get, leases_pb2.Lease)).state == "released"


async def test_a_lease_that_does_not_fit_is_refused(grpc_stack: GrpcStack) -> None:
    stream = grpc_stack.stream("/moc.v1.Leases/Acquire")
    await stream.write(leases_pb2.AcquireLeaseRequest(memory="900TiB").SerializeToString())
    assert await refused(stream.read()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_CAPACITY")


async def test_who_waits_is_told_its_place_and_when_it_moves(grpc_stack: GrpcStack) -> None:
    held = []
    for size in (500, 100):
        stream = grpc_stack.stream("/moc.v1.Leases/Acquire")
        await stream.write(leases_pb2.AcquireLeaseRequest(memory=f"{size}MiB", ttl_s=600).SerializeToString())
        held.append(await read(stream, leases_pb2.Lease))
    first, second = (grpc_stack.stream("/moc.v1.Leases/Acquire") for _ in range(2))
    for number, stream in enumerate((first, second), 1):
        wish = leases_pb2.AcquireLeaseRequest(memory="500MiB", wait_s=60, ttl_s=600)
        await stream.write(wish.SerializeToString())
        told = await read(stream, leases_pb2.Lease)
        assert (told.state, told.position, told.HasField("estimated_wait_s")) == ("pending", number, number == 1)
    first.cancel()
    moved = await read(second, leases_pb2.Lease)
    assert (moved.state, moved.position) == ("pending", 1)
    release = leases_pb2.ReleaseLeaseRequest(id=held[0].id, token=held[0].token)
    await grpc_stack.ask("/moc.v1.Leases/Release", release, leases_pb2.Lease)
    while (told := await read(second, leases_pb2.Lease)).state == "pending":
        assert told.position == 1
    assert (told.state, told.HasField("position"), told.HasField("estimated_wait_s")) == ("admitted", False, False)


async def test_who_waits_is_sent_away_when_the_server_stops(grpc_stack: GrpcStack) -> None:
    for size in ("600MiB", "500MiB"):
        stream = grpc_stack.stream("/moc.v1.Leases/Acquire")
        await stream.write(leases_pb2.AcquireLeaseRequest(memory=size, wait_s=60).SerializeToString())
        told = await read(stream, leases_pb2.Lease)
    assert told.state == "pending"
    draining = asyncio.create_task(grpc_stack.server.drain())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await to_the_end(stream)
    assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    await draining
    assert len(grpc_stack.rest.leases.standings()) == 1


async def test_who_stops_waiting_leaves_no_lease_behind(grpc_stack: GrpcStack) -> None:
    leases = grpc_stack.rest.leases
    capacity = grpc_stack.rest.devices.statuses()[0].device.capacity_bytes
    stream = grpc_stack.stream("/moc.v1.Leases/Acquire")
    first = leases_pb2.AcquireLeaseRequest(bytes=capacity // 2, ttl_s=60)
    await stream.write(first.SerializeToString())
    assert (await read(stream, leases_pb2.Lease)).state == "admitted"
    waiting = grpc_stack.stream("/moc.v1.Leases/Acquire")
    await waiting.write(leases_pb2.AcquireLeaseRequest(bytes=capacity // 2, wait_s=60).SerializeToString())
    await eventually(lambda: leases.count()["pending"] == 1)
    waiting.cancel()
    await eventually(lambda: not leases.count()["pending"])
    assert len(leases.standings()) == 1


async def test_who_goes_as_it_is_granted_leaves_no_lease_behind(grpc_stack: GrpcStack) -> None:
    leases, service = grpc_stack.rest.leases, grpc_stack.rest.services.leases
    followed = service.follow(ANYONE, LeaseWish(bytes=2**20), NEVER)
    asking = asyncio.ensure_future(anext(followed))
    while not leases.count()["admitted"]:  # noqa: ASYNC110 - at that very moment, before it is told
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await eventually(lambda: not leases.standings())


async def test_the_system_is_what_rest_tells(grpc_stack: GrpcStack, link: EchoLink) -> None:
    status = await grpc_stack.ask("/moc.v1.System/Status", system_pb2.StatusRequest(), system_pb2.StatusResponse)
    async with client(grpc_stack.rest) as rest:
        told = (await rest.get("/api/v1/system")).json()
    assert (status.version, status.pid, status.state) == (told["version"], told["pid"], told["state"])
    assert [worker.id for worker in status.workers] == [worker["id"] for worker in told["workers"]]


async def test_events_are_followed_until_the_server_drains(grpc_stack: GrpcStack) -> None:
    stream = grpc_stack.stream("/moc.v1.System/Events")
    await stream.write(system_pb2.EventsRequest(after=0).SerializeToString())
    await grpc_stack.rest.load("late")
    kinds = []
    while "model.ready" not in kinds:
        event = await read(stream, system_pb2.Event)
        kinds.append(event.kind)
    assert event.subject == "late@1"
    draining = asyncio.create_task(grpc_stack.server.drain())
    while await read(stream, system_pb2.Event) is not None:
        pass
    async with asyncio.timeout(10):
        await draining


async def test_tensors_make_the_round_trip(grpc_stack: GrpcStack, link: EchoLink) -> None:
    answer = await grpc_stack.ask("/moc.v1.Inference/Infer", infer_request(), inference_pb2.InferResponse)
    assert (answer.model, answer.outputs[0].name, answer.outputs[0].data) == ("echo@1", "OUTPUT0", FLOATS)
    assert answer.digest.startswith("sha256:")
    for wrong in (
        inference_pb2.InferRequest(model="echo"),
        inference_pb2.InferRequest(model="echo", inputs=[tensor(), tensor()]),
        inference_pb2.InferRequest(model="echo", inputs=[tensor(b"abcdefgh")], outputs=["a", "a"]),
        inference_pb2.InferRequest(model="echo", inputs=[inference_pb2.Tensor(name="x", datatype="INT8", data=b"ab")]),
    ):
        call = grpc_stack.call("/moc.v1.Inference/Infer", wrong)
        assert await refused(call) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_each_item_of_a_batch_has_its_own_end(grpc_stack: GrpcStack, link: EchoLink) -> None:
    stream = grpc_stack.stream("/moc.v1.Inference/InferStream")
    batch = inference_pb2.InferBatch()
    batch.items.add(id="nobody", request=infer_request("nobody"))
    batch.items.add(id="late", request=infer_request(), deadline_ms=50)
    link.gate.clear()
    await stream.write(batch.SerializeToString())
    found = {result.id: result for result in [await read(stream, inference_pb2.InferResult) for _ in range(2)]}
    assert found["nobody"].error.code == "not_found"
    assert found["late"].error.code == "deadline_exceeded"
    link.gate.set()
    link.fault = RuntimeError("secret")
    await stream.write(inference_pb2.InferBatch(items=[batch.items[1]]).SerializeToString())
    failed = await read(stream, inference_pb2.InferResult)
    assert failed.error.code == "internal"
    assert "secret" not in failed.error.message
    link.fault = None
    many = inference_pb2.InferBatch()
    for number in range(100):
        many.items.add(id=str(number), request=infer_request(data=struct.pack("<2f", number, 0)))
    await stream.write(many.SerializeToString())
    await stream.done_writing()
    answers = {}
    while (result := await read(stream, inference_pb2.InferResult)) is not None:
        answers[int(result.id)] = struct.unpack("<2f", result.response.outputs[0].data)[0]
    assert answers == {number: number for number in range(100)}


async def test_a_batch_that_is_none_ends_the_stream(grpc_stack: GrpcStack, link: EchoLink) -> None:
    stream = grpc_stack.stream("/moc.v1.Inference/InferStream")
    await stream.write(b"\xff\xff")
    assert await refused(stream.read()) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_a_client_that_leaves_frees_every_item(grpc_stack: GrpcStack, link: EchoLink) -> None:
    link.gate.clear()
    stream = grpc_stack.stream("/moc.v1.Inference/InferStream")
    batch = inference_pb2.InferBatch()
    for number in range(3):
        batch.items.add(id=str(number), request=infer_request())
    await stream.write(batch.SerializeToString())
    async with asyncio.timeout(10):
        await link.began.wait()
    stream.cancel()
    await link.idle()


async def test_a_conversation_comes_in_pieces(grpc_stack: GrpcStack, link: EchoLink) -> None:
    link.piece = b'{"choices":[{"delta":{"role":"assistant","content":"one"}}]}'
    request = inference_pb2.ChatRequest(model="echo")
    request.messages.add(role="user", content="héllo")
    request.parameters.update({"max_tokens": 8, "temperature": 0.5})
    stream = grpc_stack.stream("/moc.v1.Inference/Chat")
    await stream.write(request.SerializeToString())
    pieces = []
    while (chunk := await read(stream, inference_pb2.ChatChunk)) is not None:
        pieces.append(chunk.content)
    assert pieces[0] == "one"
    assert dict(await stream.trailing_metadata())["x-moc-model"] == "echo@1"
    assert link.given[0].kind == "chat"
    body = json.loads(bytes(link.given[0].body))
    assert body == {
        "model": "echo",
        "messages": [{"role": "user", "content": "héllo"}],
        "stream": True,
        "max_tokens": 8,
        "temperature": 0.5,
    }
    assert isinstance(body["max_tokens"], int)


async def test_a_conversation_that_fails_ends_with_the_reason(grpc_stack: GrpcStack, link: EchoLink) -> None:
    link.error = InvalidRequest("the engine gave up")
    stream = grpc_stack.stream("/moc.v1.Inference/Chat")
    await stream.write(inference_pb2.ChatRequest(model="echo").SerializeToString())
    for _ in range(2):
        assert await read(stream, inference_pb2.ChatChunk) is not None
    with pytest.raises(grpc.aio.AioRpcError, match="the engine gave up"):
        await stream.read()
    clash = inference_pb2.ChatRequest(model="echo")
    clash.parameters.update({"stream": False})
    refusing = grpc_stack.stream("/moc.v1.Inference/Chat")
    await refusing.write(clash.SerializeToString())
    assert await refused(refusing.read()) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
