"""The gRPC port itself: health, reflection, draining, a port that is taken."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from moc.kernel.errors import Conflict, InvalidRequest
from moc.security.certificates import PrivateAuthority
from moc.security.tls import TlsFiles
from moc.transports.grpc.call import Call, Stream
from moc.transports.grpc.engine import GrpcioEngine
from moc.transports.grpc.limits import Limits
from moc.transports.grpc.reflection import V1, V1ALPHA
from moc.transports.grpc.server import GrpcServer, methods_of
from moc.transports.grpc.stubs.inference.grpc_service_pb2 import ModelInferRequest
from tests.grpc_stack import OIP, GrpcStack, reason_of, serving

HEALTH = "/grpc.health.v1.Health"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def check(stack: GrpcStack, service: str = "") -> int:
    message = health_pb2.HealthCheckRequest(service=service)
    return (await stack.ask(f"{HEALTH}/Check", message, health_pb2.HealthCheckResponse)).status


async def watch(stack: GrpcStack, service: str) -> "grpc.aio.StreamStreamCall[bytes, bytes]":
    stream = stack.stream(f"{HEALTH}/Watch")
    await stream.write(health_pb2.HealthCheckRequest(service=service).SerializeToString())
    await stream.done_writing()
    return stream


async def next_status(stream: "grpc.aio.StreamStreamCall[bytes, bytes]") -> int:
    async with asyncio.timeout(10):
        answer = await stream.read()
    assert isinstance(answer, bytes)
    return health_pb2.HealthCheckResponse.FromString(answer).status


async def test_health_needs_no_key_and_follows_readiness(grpc_stack: GrpcStack) -> None:
    grpc_stack.key = None
    assert await check(grpc_stack) == SERVING
    assert await check(grpc_stack, OIP[1:]) == SERVING
    grpc_stack.rest.replica.state = "draining"
    assert await check(grpc_stack) == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(grpc_stack, "nothing")
    assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


async def test_health_is_watched(grpc_stack: GrpcStack) -> None:
    stream = await watch(grpc_stack, OIP[1:])
    assert await next_status(stream) == SERVING
    grpc_stack.rest.replica.state = "draining"
    assert await next_status(stream) == NOT_SERVING
    unknown = await watch(grpc_stack, "nothing")
    assert await next_status(unknown) == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def test_draining_is_told_to_who_watches(grpc_stack: GrpcStack) -> None:
    stream = await watch(grpc_stack, "")
    assert await next_status(stream) == SERVING
    draining = asyncio.create_task(grpc_stack.server.drain())
    assert await next_status(stream) == NOT_SERVING
    async with asyncio.timeout(10):
        assert await stream.read() is grpc.aio.EOF
        await draining


async def test_reflection_describes_every_service(grpc_stack: GrpcStack) -> None:
    def look() -> tuple[set[str], list[str]]:
        with grpc.insecure_channel(grpc_stack.server.target) as plain:
            channel = grpc.intercept_channel(plain, WithKey(grpc_stack.key or ""))
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(database)
            services = set(database.get_services())
            for service in services:
                assert pool.FindServiceByName(service).methods
            infer = pool.FindServiceByName(OIP[1:]).methods_by_name["ModelInfer"].input_type
            return services, [field.name for field in infer.fields]

    services, fields = await asyncio.to_thread(look)
    assert {OIP[1:], HEALTH[1:], V1, V1ALPHA} <= services
    assert "raw_input_contents" in fields


class WithKey(grpc.StreamStreamClientInterceptor):
    """Sends a key with each stream."""

    def __init__(self, key: str) -> None:
        self._metadata = (("x-api-key", key),)

    def intercept_stream_stream(self, continuation, client_call_details, request_iterator):  # type: ignore[no-untyped-def]
        return continuation(client_call_details._replace(metadata=self._metadata), request_iterator)


async def test_a_message_over_the_limit_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(message_bytes=1000, stop_grace_s=0.2)) as stack:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(stack, "x" * 1000)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await check(stack) == SERVING


async def test_a_client_that_does_not_read_its_answers_is_given_up() -> None:
    over = asyncio.Event()

    async def flood(requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield bytes(64 * 1024)
        finally:
            over.set()

    engine = GrpcioEngine({"/test/Flood": Stream(flood)}, limits=Limits(write_timeout_s=0.1, stop_grace_s=0.2))
    port = await engine.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream("/test/Flood")
        call = method()
        async with asyncio.timeout(10):
            await over.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            assert [len(answer) async for answer in call]
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await engine.stop()


async def test_a_port_that_is_taken_is_said(grpc_stack: GrpcStack) -> None:
    services, port = grpc_stack.rest.services, grpc_stack.server.port
    with pytest.raises(Conflict, match=f"port {port} on 127.0.0.1 is taken .* --grpc-port"):
        await GrpcServer(services, host="127.0.0.1", port=port).start()
    with pytest.raises(InvalidRequest, match="not an address of this machine"):
        await GrpcServer(services, host="nowhere.invalid", port=0).start()


async def test_it_starts_and_stops_any_number_of_times(grpc_stack: GrpcStack) -> None:
    await grpc_stack.server.start()
    assert await check(grpc_stack) == SERVING
    for _ in range(2):
        await grpc_stack.server.stop()
        await grpc_stack.server.drain()


async def asked_over_tls(stack: GrpcStack, ca: bytes) -> bool:
    """Whether a new connection that trusts that authority is served."""
    credentials = grpc.ssl_channel_credentials(ca)
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(stack.server.target, credentials, options=options) as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{HEALTH}/Check")
        try:
            return health_pb2.HealthCheckResponse.FromString(await check(b"", timeout=10)).status == SERVING
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False


async def test_tls_is_served_and_new_certificates_are_taken_up(tmp_path: Path) -> None:
    authority, other = PrivateAuthority(tmp_path / "certs"), PrivateAuthority(tmp_path / "other")
    for each in (authority, other):
        each.create()
        each.issue_server(["127.0.0.1"])
    files = TlsFiles(authority.folder / "server.pem", authority.folder / "server.key")
    first, second = authority.certificate.read_bytes(), other.certificate.read_bytes()
    async with serving(tmp_path, tls=files) as stack:
        assert await asked_over_tls(stack, first)
        assert not await asked_over_tls(stack, second)
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
            await check(stack)
        files.key.write_bytes((other.folder / "server.key").read_bytes())
        assert await asked_over_tls(stack, first), "a key that does not fit was taken up"
        files.certificate.write_bytes((other.folder / "server.pem").read_bytes())
        assert await asked_over_tls(stack, second)
        assert not await asked_over_tls(stack, first)


async def test_files_that_are_wrong_are_said(grpc_stack: GrpcStack, tmp_path: Path) -> None:
    files = TlsFiles(tmp_path / "no.pem", tmp_path / "no.key")
    with pytest.raises(InvalidRequest, match=r"no\.pem cannot be read"):
        await GrpcServer(grpc_stack.rest.services, host="127.0.0.1", port=0, tls=files).start()


def mangled(chance: random.Random, message: bytes) -> bytes:
    """A message with some of its bytes changed, or bytes that never were one."""
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(200))
    found = bytearray(message)
    for _ in range(chance.randrange(1, 6)):
        found[chance.randrange(len(found))] = chance.randrange(256)
    return bytes(found[: chance.randrange(len(found)) + 1])


async def test_bytes_without_sense_are_answered_and_do_no_harm(grpc_stack: GrpcStack) -> None:
    async def code_of(path: str, data: bytes) -> grpc.StatusCode:
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = grpc_stack.channel.stream_stream(path)
        stream = method(iter([data]), metadata=grpc_stack.metadata, timeout=0.5)
        return await stream.code()

    await grpc_stack.rest.load()
    chance = random.Random(7)
    infer = ModelInferRequest(model_name="echo", id="x", raw_input_contents=[bytes(16)])
    infer.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 4]).parameters["a"].int64_param = 1
    message = infer.SerializeToString()
    codes = set()
    for path in methods_of(grpc_stack.rest.services, asyncio.Event()):
        codes |= set(await asyncio.gather(*(code_of(path, mangled(chance, message)) for _ in range(20))))
    assert grpc.StatusCode.INVALID_ARGUMENT in codes
    assert not codes & {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}
    assert await check(grpc_stack) == SERVING
