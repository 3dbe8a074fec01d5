"""The Open Inference Protocol over gRPC: the same answers as over REST, the same refusals."""

import asyncio
import struct
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from moc.inference.request import Info
from moc.kernel.errors import InvalidRequest
from moc.models.model import ModelSpec
from moc.transports.grpc.stubs.inference import grpc_service_pb2 as pb
from tests.grpc_stack import OIP, GrpcStack, reason_of
from tests.rest_stack import EchoLink, client

FLOATS = struct.pack("<4f", 1, 2, 3, 4.5)
CROWD = 500


@pytest.fixture
async def link(grpc_stack: GrpcStack) -> EchoLink:
    """The line to the worker of `echo`."""
    return await grpc_stack.rest.load()


def request(data: bytes = FLOATS, **fields: Any) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(**{"model_name": "echo", **fields})
    message.inputs.add(name="INPUT0", datatype="FP32", shape=[1, len(data) // 4])
    message.raw_input_contents.append(data)
    return message


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_tensors_make_the_round_trip(grpc_stack: GrpcStack, link: EchoLink) -> None:
    call = grpc_stack.call(f"{OIP}/ModelInfer", request(id="seven"))
    answer = pb.ModelInferResponse.FromString(await call)
    assert (answer.model_name, answer.model_version, answer.id) == ("echo", "1", "seven")
    assert [(each.name, each.datatype, list(each.shape)) for each in answer.outputs] == [("OUTPUT0", "FP32", [1, 4])]
    assert list(answer.raw_output_contents) == [FLOATS]
    trailers = dict(await call.trailing_metadata())
    assert trailers["x-moc-model"] == "echo@1"
    assert str(trailers["x-moc-digest"]).startswith("sha256:")
    assert float(trailers["x-moc-queue-ms"]) >= 0
    assert trailers["x-moc-request-id"]


async def test_an_empty_id_is_filled_in(grpc_stack: GrpcStack, link: EchoLink) -> None:
    answer = await grpc_stack.infer(request(), metadata=(("x-moc-request-id", "mine"),))
    assert answer.id == "mine"


async def test_a_version_can_be_named(grpc_stack: GrpcStack, link: EchoLink) -> None:
    assert (await grpc_stack.infer(request(model_version="1"))).model_version == "1"
    for version in ("2", "x"):
        error = await refused(grpc_stack.infer(request(model_version=version)))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


@pytest.mark.parametrize("key", [None, "moc_wrong"])
async def test_calls_need_a_key(grpc_stack: GrpcStack, link: EchoLink, key: str | None) -> None:
    grpc_stack.key = key
    error = await refused(grpc_stack.infer(request()))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert (await grpc_stack.ask(f"{OIP}/ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)).live
    assert (await grpc_stack.ask(f"{OIP}/ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)).ready
    stream = grpc_stack.stream(f"{OIP}/ModelStreamInfer")
    assert (await refused(stream.read())).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_bytes_that_are_no_message_are_refused(grpc_stack: GrpcStack, link: EchoLink) -> None:
    for path in ("ModelInfer", "ModelMetadata", "RepositoryModelLoad"):
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = grpc_stack.channel.unary_unary(f"{OIP}/{path}")
        error = await refused(method(b"\xff\xff\xff", metadata=grpc_stack.metadata))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert link.given == []


async def test_a_fault_of_ours_tells_nothing_of_its_inside(grpc_stack: GrpcStack, link: EchoLink) -> None:
    link.fault = RuntimeError("secret")
    error = await refused(grpc_stack.infer(request(), metadata=(("x-moc-request-id", "mine"),)))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in str(error.details())
    assert "mine" in str(error.details())


async def test_a_deadline_ends_the_request_and_frees_its_place(grpc_stack: GrpcStack, link: EchoLink) -> None:
    link.gate.clear()
    late = request()
    late.parameters["timeout"].int64_param = 20_000
    error = await refused(grpc_stack.infer(late))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert (await refused(grpc_stack.infer(request(), timeout=0.2))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await link.idle()


async def test_a_client_that_gives_up_frees_its_place(grpc_stack: GrpcStack, link: EchoLink) -> None:
    link.gate.clear()
    call = grpc_stack.call(f"{OIP}/ModelInfer", request())
    async with asyncio.timeout(10):
        await link.began.wait()
    call.cancel()
    await link.idle()
    assert link.cancelled == 1


async def test_five_hundred_at_once_all_succeed(grpc_stack: GrpcStack) -> None:
    spec = ModelSpec(runtime="python", source="file:echo.py", ttl_s=0, max_queue=CROWD)
    await grpc_stack.rest.manager.add("echo", spec, actor="test")
    await grpc_stack.rest.load()
    calls = [grpc_stack.infer(request(struct.pack("<4f", number, 0, 0, 0))) for number in range(CROWD)]
    answers = await asyncio.gather(*calls)
    assert [struct.unpack("<4f", each.raw_output_contents[0])[0] for each in answers] == list(range(CROWD))


async def test_a_stream_answers_each_request_in_turn(grpc_stack: GrpcStack, link: EchoLink) -> None:
    stream = grpc_stack.stream(f"{OIP}/ModelStreamInfer")
    for message in (request(id="1"), request(id="2", model_name="nobody"), request(id="3")):
        await stream.write(message.SerializeToString())
    await stream.done_writing()
    answers = [pb.ModelStreamInferResponse.FromString(data) async for data in stream]
    assert [each.infer_response.id for each in answers] == ["1", "2", "3"]
    assert [bool(each.error_message) for each in answers] == [False, True, False]
    assert list(answers[2].infer_response.raw_output_contents) == [FLOATS]


def prompt(text: bytes = b"Once", **parameters: Any) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="echo", id="p")
    message.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(text)
    for key, value in parameters.items():
        setattr(message.parameters[key], f"{'bool' if isinstance(value, bool) else 'int64'}_param", value)
    return message


@pytest.fixture
async def text_link(grpc_stack: GrpcStack) -> EchoLink:
    """The line to the worker of `echo`, which can only write."""
    grpc_stack.rest.workers.info = Info(kinds=("chat", "completion"), engine="echo", concurrency=2)
    link = await grpc_stack.rest.load()
    link.info = grpc_stack.rest.workers.info
    return link


async def texts(stream: "grpc.aio.StreamStreamCall[bytes, bytes]") -> list[tuple[str, bool]]:
    """Each piece of text with whether it is the last response, until the stream ends."""
    found = []
    async for data in stream:
        answer = pb.ModelStreamInferResponse.FromString(data)
        response = answer.infer_response
        text = response.raw_output_contents[0][4:].decode() if response.raw_output_contents else answer.error_message
        found.append((text, response.parameters["triton_final_response"].bool_param))
    return found


@pytest.mark.parametrize("final", [False, True])
async def test_a_model_that_writes_text_answers_in_pieces(
    grpc_stack: GrpcStack, text_link: EchoLink, final: bool
) -> None:
    stream = grpc_stack.stream(f"{OIP}/ModelStreamInfer")
    message = prompt(max_tokens=3, triton_enable_empty_final_response=True) if final else prompt(max_tokens=3)
    await stream.write(message.SerializeToString())
    await stream.done_writing()
    pieces = [("one", False), (" two", False), (" three", False)]
    expected = [*pieces, ("", True)] if final else pieces
    assert await texts(stream) == expected
    body = httpx.Response(200, content=bytes(text_link.given[0].body)).json()
    assert body == {"max_tokens": 3, "model": "echo", "prompt": "Once", "stream": True}


async def test_a_text_that_fails_says_so_and_the_stream_goes_on(grpc_stack: GrpcStack, text_link: EchoLink) -> None:
    text_link.error = InvalidRequest("the engine gave up")
    stream = grpc_stack.stream(f"{OIP}/ModelStreamInfer")
    for _ in range(2):
        await stream.write(prompt().SerializeToString())
    await stream.done_writing()
    told = "the answer is incomplete, it broke off after 2 chunks: the engine gave up"
    once = [("one", False), (" two", False), (told, False)]
    assert await texts(stream) == [*once, *once]


async def test_a_client_that_leaves_a_text_stops_the_engine(grpc_stack: GrpcStack, text_link: EchoLink) -> None:
    text_link.gate.clear()
    stream = grpc_stack.stream(f"{OIP}/ModelStreamInfer")
    await stream.write(prompt().SerializeToString())
    await stream.read()
    assert text_link.running == 1
    stream.cancel()
    await text_link.idle()


def from_json(document: Any, kind: type[Message]) -> Message:
    return json_format.ParseDict(document, kind())


@pytest.mark.parametrize(
    ("method", "message", "answer", "path", "wrap"),
    [
        ("ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse, "/v2", None),
        ("ModelMetadata", pb.ModelMetadataRequest(name="echo"), pb.ModelMetadataResponse, "/v2/models/echo", None),
        ("ModelConfig", pb.ModelConfigRequest(name="echo"), pb.ModelConfigResponse, "/v2/models/echo/config", "config"),
        (
            "ModelStatistics",
            pb.ModelStatisticsRequest(name="echo", version="1"),
            pb.ModelStatisticsResponse,
            "/v2/models/echo/versions/1/stats",
            None,
        ),
        ("ModelStatistics", pb.ModelStatisticsRequest(), pb.ModelStatisticsResponse, "/v2/models/stats", None),
    ],
)
async def test_what_is_told_is_what_rest_tells(
    grpc_stack: GrpcStack, link: EchoLink, method: str, message: Message, answer: type[Message], path: str, wrap: Any
) -> None:
    await grpc_stack.infer(request())
    told = await grpc_stack.ask(f"{OIP}/{method}", message, answer)
    async with client(grpc_stack.rest) as rest:
        document = (await rest.get(path)).json()
    assert told == from_json({wrap: document} if wrap else document, answer)
    assert told != answer()


async def test_the_repository_is_listed_loaded_and_unloaded(grpc_stack: GrpcStack, link: EchoLink) -> None:
    async def index(*, ready: bool) -> list[tuple[str, str, str]]:
        found = await grpc_stack.ask(
            f"{OIP}/RepositoryIndex", pb.RepositoryIndexRequest(ready=ready), pb.RepositoryIndexResponse
        )
        return [(each.name, each.version, each.state) for each in found.models]

    async def is_ready() -> bool:
        found = await grpc_stack.ask(f"{OIP}/ModelReady", pb.ModelReadyRequest(name="echo"), pb.ModelReadyResponse)
        return found.ready

    assert await index(ready=False) == [("echo", "1", "READY")]
    assert await is_ready()
    unload = pb.RepositoryModelUnloadRequest(model_name="echo")
    unloaded = await grpc_stack.ask(f"{OIP}/RepositoryModelUnload", unload, pb.RepositoryModelUnloadResponse)
    assert (unloaded.model_name, unloaded.isUnloaded) == ("echo", True)
    assert not await is_ready()
    assert await index(ready=True) == []
    assert await index(ready=False) == [("echo", "1", "UNAVAILABLE")]
    load = pb.RepositoryModelLoadRequest(repository_name="echo")  # what KServe's clients send
    loaded = await grpc_stack.ask(f"{OIP}/RepositoryModelLoad", load, pb.RepositoryModelLoadResponse)
    assert (loaded.model_name, loaded.isLoaded) == ("echo", True)
    assert await is_ready()


async def test_what_is_not_there_is_not_found_but_may_be_unloaded(grpc_stack: GrpcStack) -> None:
    for method, message in (
        ("ModelReady", pb.ModelReadyRequest(name="nobody")),
        ("ModelMetadata", pb.ModelMetadataRequest(name="nobody")),
        ("ModelConfig", pb.ModelConfigRequest(name="nobody")),
        ("ModelStatistics", pb.ModelStatisticsRequest(name="nobody")),
        ("ModelInfer", request(model_name="nobody")),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nobody")),
    ):
        assert (await refused(grpc_stack.call(f"{OIP}/{method}", message))).code() is grpc.StatusCode.NOT_FOUND
    await grpc_stack.call(f"{OIP}/RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="nobody"))


async def test_loading_does_not_change_a_model(grpc_stack: GrpcStack, link: EchoLink) -> None:
    message = pb.RepositoryModelLoadRequest(model_name="echo")
    message.parameters["config"].string_param = "{}"
    error = await refused(grpc_stack.call(f"{OIP}/RepositoryModelLoad", message))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED")


async def test_a_model_is_loaded_by_its_first_request(grpc_stack: GrpcStack) -> None:
    await grpc_stack.rest.manager.add("echo", ModelSpec(runtime="python", source="file:echo.py", ttl_s=0), actor="test")
    await grpc_stack.infer(request())
    resident = grpc_stack.rest.manager.find("echo")
    assert resident is not None
    assert resident.reference == "echo@1"
