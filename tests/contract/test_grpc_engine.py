"""What every gRPC engine has to do for the handlers behind it, whatever it is built of."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed

from moc.kernel.errors import InvalidRequest, NotFound, QueueFull
from moc.transports.grpc.call import Call, Method, Stream, Unary
from moc.transports.grpc.engine import GrpcioEngine
from moc.transports.grpc.failure import DETAILS
from moc.transports.grpc.limits import Limits
from moc.transports.grpc.stubs.moc.wire.status_pb2 import ErrorInfo, RetryInfo, Status

ENGINES = [GrpcioEngine]
SOON_S = 10
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PING = bytes([0, 0, 8, 6, 0])
Channel = grpc.aio.Channel


@dataclass
class Handlers:
    """The methods of the service `test.Test`; `gate` holds back what waits for it."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[Call] = field(default_factory=list)

    def methods(self) -> dict[str, Method]:
        return {
            "/test.Test/Echo": Unary(self.echo),
            "/test.Test/Wait": Unary(self.wait),
            "/test.Test/Refuse": Unary(self.refuse),
            "/test.Test/Each": Stream(self.each),
            "/test.Test/Endless": Stream(self.endless),
            "/test.Test/Break": Stream(self.break_off),
        }

    async def echo(self, request: bytes, call: Call) -> bytes:
        self.calls.append(call)
        call.trailers.append(("x-told", "yes"))
        return request[::-1]

    async def wait(self, request: bytes, call: Call) -> bytes:
        self.calls.append(call)
        await self._wait()
        return request

    async def refuse(self, request: bytes, call: Call) -> bytes:
        if request == b"full":
            raise QueueFull("there is no place", retry_after_s=2.5)
        raise NotFound("there is café of that name", details={"name": "x", "versions": [1, 2]})

    async def each(self, requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes, None]:
        async for request in requests:
            yield request.upper()

    async def endless(self, requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes, None]:
        async for request in requests:
            yield request
            await self._wait()
            return

    async def break_off(self, requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes, None]:
        async for request in requests:
            yield request
            raise InvalidRequest("that was one too many")

    async def _wait(self) -> None:
        self.began.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@dataclass
class Served:
    """An engine that serves `handlers`."""

    engine: GrpcioEngine
    handlers: Handlers
    port: int

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[Channel]:
        options = (("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options) as channel:
            yield channel


Serve = Callable[[], Awaitable[Served]]
LIMITS = Limits(message_bytes=1024, stop_grace_s=0.2)


@pytest.fixture(params=ENGINES)
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    handlers = Handlers()
    engine = request.param(handlers.methods(), limits=LIMITS)
    port = await engine.start("127.0.0.1", 0)
    try:
        yield Served(engine, handlers, port)
    finally:
        await engine.stop()


@pytest.fixture
async def channel(served: Served) -> AsyncIterator[Channel]:
    async with served.channel() as channel:
        yield channel


def unary(channel: Channel, name: str) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]":
    return channel.unary_unary(f"/test.Test/{name}")


def stream(channel: Channel, name: str) -> "grpc.aio.StreamStreamMultiCallable[bytes, bytes]":
    return channel.stream_stream(f"/test.Test/{name}")


async def refused(call: Awaitable[bytes]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def details_of(error: grpc.aio.AioRpcError) -> tuple[Status, list[Packed]]:
    status = Status.FromString(dict(error.trailing_metadata())[DETAILS])
    return status, list(status.details)


async def test_a_request_is_answered_with_trailers(served: Served, channel: Channel) -> None:
    call = unary(channel, "Echo")(b"abc", metadata=(("x-moc-request-id", "mine"), ("x-api-key", "k")))
    assert await call == b"cba"
    trailers = dict(await call.trailing_metadata())
    assert trailers["x-moc-request-id"] == "mine"
    assert trailers["x-told"] == "yes"
    assert served.handlers.calls[0].address == "127.0.0.1"
    assert served.handlers.calls[0].method == "/test.Test/Echo"


async def test_an_empty_message_is_a_message(channel: Channel) -> None:
    assert await unary(channel, "Echo")(b"") == b""


@pytest.mark.parametrize(
    ("metadata", "token"),
    [
        ((("authorization", "Bearer abc"),), "abc"),
        ((("authorization", "bearer  abc "),), "abc"),
        ((("x-api-key", "abc"),), "abc"),
        ((("authorization", "Basic abc"),), None),
        ((), None),
    ],
)
async def test_the_key_is_found(
    served: Served, channel: Channel, metadata: tuple[tuple[str, str], ...], token: str | None
) -> None:
    await unary(channel, "Echo")(b"", metadata=metadata)
    assert served.handlers.calls[0].token() == token


async def test_an_error_carries_its_details(channel: Channel) -> None:
    error = await refused(unary(channel, "Refuse")(b""))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "there is café of that name"
    status, details = details_of(error)
    assert (status.code, status.message) == (5, "there is café of that name")
    assert [each.type_url for each in details] == ["type.googleapis.com/google.rpc.ErrorInfo"]
    info = ErrorInfo.FromString(details[0].value)
    assert (info.reason, info.domain) == ("NOT_FOUND", "moc")
    assert dict(info.metadata) == {"name": "x", "versions": "[1,2]"}


async def test_an_error_says_when_to_ask_again(channel: Channel) -> None:
    error = await refused(unary(channel, "Refuse")(b"full"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = RetryInfo.FromString(details_of(error)[1][1].value)
    assert retry.retry_delay.ToMilliseconds() == 2500


async def test_a_stream_goes_both_ways(channel: Channel) -> None:
    call = stream(channel, "Each")()
    for word in (b"one", b"two"):
        await call.write(word)
        assert await call.read() == word.upper()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_an_error_ends_a_stream_behind_its_answers(channel: Channel) -> None:
    call = stream(channel, "Break")(iter([b"one"]))
    assert await call.read() == b"one"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(caught.value)[0].message == "that was one too many"


async def test_an_unknown_method_is_unimplemented(channel: Channel) -> None:
    assert (await refused(unary(channel, "Nothing")(b""))).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_over_the_limit_is_refused_and_the_connection_stays(channel: Channel) -> None:
    error = await refused(unary(channel, "Echo")(bytes(LIMITS.message_bytes + 1)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(await unary(channel, "Echo")(bytes(LIMITS.message_bytes))) == LIMITS.message_bytes


async def test_a_deadline_reaches_the_handler_and_ends_the_call(served: Served, channel: Channel) -> None:
    error = await refused(unary(channel, "Wait")(b"", timeout=0.3))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    remaining_s = served.handlers.calls[0].deadline().remaining_s()
    assert remaining_s is not None
    assert remaining_s <= 0.3
    async with asyncio.timeout(SOON_S):
        await served.handlers.cancelled.wait()


async def test_without_a_deadline_there_is_none(served: Served, channel: Channel) -> None:
    await unary(channel, "Echo")(b"")
    assert served.handlers.calls[0].deadline().at is None


async def test_the_sooner_of_two_deadlines_holds(served: Served, channel: Channel) -> None:
    await unary(channel, "Echo")(b"", timeout=60, metadata=(("x-moc-deadline-ms", "5000"),))
    remaining_s = served.handlers.calls[0].deadline().remaining_s()
    assert remaining_s is not None
    assert remaining_s <= 5


@pytest.mark.parametrize("name", ["Wait", "Endless"])
async def test_a_client_that_gives_up_cancels_the_handler(served: Served, channel: Channel, name: str) -> None:
    call = unary(channel, name)(b"x") if name == "Wait" else stream(channel, name)(iter([b"x"]))
    async with asyncio.timeout(SOON_S):
        if isinstance(call, grpc.aio.StreamStreamCall):
            assert await call.read() == b"x"
        await served.handlers.began.wait()
        call.cancel()
        await served.handlers.cancelled.wait()


async def test_a_client_that_is_gone_cancels_the_handler(served: Served) -> None:
    async with served.channel() as channel:
        call = unary(channel, "Wait")(b"x")
        waiting = asyncio.ensure_future(refused(call))
        async with asyncio.timeout(SOON_S):
            await served.handlers.began.wait()
    async with asyncio.timeout(SOON_S):
        await served.handlers.cancelled.wait()
        await asyncio.wait([waiting])


async def test_draining_lets_calls_end_and_takes_no_new_connection(served: Served, channel: Channel) -> None:
    call = unary(channel, "Wait")(b"last")
    async with asyncio.timeout(SOON_S):
        await served.handlers.began.wait()
    draining = asyncio.create_task(served.engine.drain())
    async with served.channel() as late, asyncio.timeout(SOON_S):
        while (await refused(unary(late, "Refuse")(b""))).code() is not grpc.StatusCode.UNAVAILABLE:
            pass
    assert not draining.done()
    served.handlers.gate.set()
    async with asyncio.timeout(SOON_S):
        assert await call == b"last"
        await draining


async def test_draining_ends_the_requests_of_a_stream(served: Served, channel: Channel) -> None:
    call = stream(channel, "Each")()
    async with asyncio.timeout(SOON_S):
        await call.write(b"one")
        assert await call.read() == b"ONE"
        await served.engine.drain()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_stopping_cuts_off_what_does_not_end(served: Served, channel: Channel) -> None:
    call = unary(channel, "Wait")(b"x")
    async with asyncio.timeout(SOON_S):
        await served.handlers.began.wait()
        waiting = asyncio.ensure_future(refused(call))
        await served.engine.stop()
        assert (await waiting).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        await served.handlers.cancelled.wait()
    await served.engine.stop()


async def test_a_drain_that_is_given_up_can_be_stopped(served: Served, channel: Channel) -> None:
    call = asyncio.ensure_future(refused(unary(channel, "Wait")(b"x")))
    async with asyncio.timeout(SOON_S):
        await served.handlers.began.wait()
        draining = asyncio.create_task(served.engine.drain())
        await asyncio.sleep(0)
        draining.cancel()
        await asyncio.wait([draining])
        await served.engine.stop()
        await call


async def test_a_port_that_is_taken_is_an_error(served: Served) -> None:
    other = type(served.engine)(served.handlers.methods(), limits=LIMITS)
    with pytest.raises(OSError, match="bind"):
        await other.start("127.0.0.1", served.port)
    await other.stop()


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_connection_that_does_not_answer_is_closed(engine: type[GrpcioEngine]) -> None:
    limits = replace(LIMITS, keep_alive_s=0.1, keep_alive_grace_s=0.1)
    serving = engine(Handlers().methods(), limits=limits)
    reader, writer = await asyncio.open_connection("127.0.0.1", await serving.start("127.0.0.1", 0))
    try:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
        async with asyncio.timeout(SOON_S):
            assert PING in await reader.read()
    finally:
        writer.close()
        await serving.stop()
