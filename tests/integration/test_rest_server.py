"""The listener: ports, slow and hostile clients, draining and stopping."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from moc.kernel.errors import Conflict, InvalidRequest
from moc.transports.rest.limits import Limits
from moc.transports.rest.server import RestServer
from tests.rest_stack import RestStack, client, running

IMPATIENT = Limits(
    header_timeout_s=0.05,
    body_timeout_s=0.05,
    write_timeout_s=0.05,
    linger_s=0.05,
    watch_after_s=0.001,
    head_bytes=2048,
    headers_max=20,
    connections_max=3,
    body_bytes=1024,
    stop_grace_s=0.2,
)


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[RestStack]:
    """A stack that gives up on its clients at once."""
    async with running(tmp_path, IMPATIENT) as stack:
        yield stack


class Wire:
    """A bare connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, text: str | bytes) -> None:
        """Send as it is."""
        self.writer.write(text.encode() if isinstance(text, str) else text)

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        async with asyncio.timeout(10):
            return await self.reader.read()

    async def head(self) -> str:
        """The next answer's head; its body is read too."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next(line for line in head.split("\r\n") if line.startswith("content-length: "))
            await self.reader.readexactly(int(length.partition(": ")[2]))
            return head


@contextlib.asynccontextmanager
async def wire(stack: RestStack) -> AsyncIterator[Wire]:
    """A bare connection to the server, closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.rest.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_a_taken_port_is_a_conflict_that_names_it(rest_stack: RestStack) -> None:
    port = rest_stack.rest.port
    second = RestServer(rest_stack.services, host="127.0.0.1", port=port)
    with pytest.raises(Conflict, match=rf"{port}.*--rest-port"):
        await second.start()
    await second.stop()


async def test_a_host_that_is_not_ours_is_refused(rest_stack: RestStack) -> None:
    for host in ("192.0.2.1", "not a host"):
        with pytest.raises(InvalidRequest, match=r"server\.host"):
            await RestServer(rest_stack.services, host=host, port=0).start()


async def test_start_and_stop_may_be_repeated(rest_stack: RestStack) -> None:
    port = rest_stack.rest.port
    await rest_stack.rest.start()
    assert rest_stack.rest.port == port
    await rest_stack.rest.stop()
    await rest_stack.rest.stop()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


async def test_a_head_that_never_ends_is_not_waited_for(impatient: RestStack) -> None:
    async with wire(impatient) as slow, wire(impatient) as silent:
        slow.send("GET /livez HTTP/1.1\r\nHost: loc")
        assert b" 408 " in await slow.rest()
        assert b" 408 " in await silent.rest()


async def test_a_body_that_stops_coming_is_not_waited_for(impatient: RestStack) -> None:
    async with wire(impatient) as slow:
        slow.send(
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {impatient.key}\r\n"
            "Content-Length: 100\r\n\r\n{"
        )
        assert b" 408 " in await slow.rest()


async def test_a_refused_client_hears_why_and_may_not_send_for_ever(impatient: RestStack) -> None:
    async with wire(impatient) as endless:
        endless.send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        assert b" 401 " in await endless.rest()


@pytest.mark.parametrize(
    "head",
    [
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 4096,
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 4096 + "\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\n" + "X: y\r\n" * 30 + "\r\n",
        "GET /" + "x" * 4096 + " HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["endless header", "long header", "many headers", "long path"],
)
async def test_a_head_that_is_too_large_is_refused(impatient: RestStack, head: str) -> None:
    async with wire(impatient) as greedy:
        greedy.send(head)
        assert b" 431 " in await greedy.rest()


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=range(5),
)
async def test_what_is_not_http_is_refused(impatient: RestStack, text: bytes) -> None:
    async with wire(impatient) as other:
        other.send(text)
        answer = await other.rest()
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"Traceback" not in answer


async def test_too_many_connections_are_turned_away(impatient: RestStack) -> None:
    async with contextlib.AsyncExitStack() as open_ones:
        for _ in range(IMPATIENT.connections_max):
            one = await open_ones.enter_async_context(wire(impatient))
            one.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert " 200 " in await one.head()
        one_more = await open_ones.enter_async_context(wire(impatient))
        assert b" 503 " in await one_more.rest()


async def test_a_client_that_does_not_read_is_cut_off(impatient: RestStack) -> None:
    link = await impatient.load()
    link.piece = b'"' + b"x" * 2**24 + b'"'
    async with wire(impatient) as deaf:
        body = b'{"model": "echo", "stream": true}'
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {impatient.key}\r\n"
        deaf.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await link.began.wait()
        await link.idle()
        with contextlib.suppress(ConnectionResetError):
            assert b"[DONE]" not in await deaf.rest()


async def test_requests_on_one_connection_are_answered_in_order(rest_stack: RestStack) -> None:
    async with wire(rest_stack) as piped:
        piped.send("".join(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n" for path in ("/livez", "/v2", "/readyz")))
        statuses = [(await piped.head()).split()[1] for _ in range(3)]
    assert statuses == ["200", "401", "200"]


async def test_head_answers_have_no_body(rest_stack: RestStack) -> None:
    async with wire(rest_stack) as asking:
        asking.send("HEAD /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = await asking.rest()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-length: 13\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_draining_finishes_what_runs_and_closes_connections_after_it(rest_stack: RestStack) -> None:
    link = await rest_stack.load()
    link.gate.clear()
    async with client(rest_stack) as asking, wire(rest_stack) as kept:
        kept.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert "connection: close" not in await kept.head()
        running_one = asyncio.create_task(asking.post("/v1/completions", json={"model": "echo"}))
        await link.began.wait()
        draining = asyncio.create_task(rest_stack.rest.drain())
        kept.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert "connection: close" in await kept.head()
        assert await kept.rest() == b""
        assert not draining.done()
        link.gate.set()
        answer = await running_one
        await draining
    assert answer.status_code == 200
    assert answer.headers["connection"] == "close"


async def test_draining_ends_event_streams(rest_stack: RestStack) -> None:
    async with client(rest_stack) as asking, asking.stream("GET", "/api/v1/events") as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        async with asyncio.timeout(10):
            await rest_stack.rest.drain()
        assert [line async for line in lines if line] == []


async def test_stopping_cuts_off_what_does_not_end(impatient: RestStack) -> None:
    link = await impatient.load()
    link.gate.clear()
    async with wire(impatient) as asking:
        body = b'{"model": "echo"}'
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {impatient.key}\r\n"
        asking.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await link.began.wait()
        await impatient.rest.stop()
        await link.idle()
        with contextlib.suppress(ConnectionResetError):
            assert await asking.rest() == b""
    assert link.cancelled == 1


async def test_stopping_cuts_off_a_load_without_an_alarm(
    impatient: RestStack, caplog: pytest.LogCaptureFixture
) -> None:
    await impatient.load()
    impatient.workers.gate.clear()
    async with wire(impatient) as asking:
        head = f"Host: localhost\r\nX-API-Key: {impatient.key}\r\nContent-Length: 0\r\n\r\n"
        asking.send(f"POST /api/v1/models/echo/unload HTTP/1.1\r\n{head}")
        assert " 200 " in await asking.head()
        asking.send(f"POST /api/v1/models/echo/load HTTP/1.1\r\n{head}")
        await impatient.workers.asked.wait()
        with capture_logs() as logs:
            await impatient.rest.stop()
    assert logs == []
    assert caplog.records == []


async def test_its_address_is_one_a_client_can_use(rest_stack: RestStack) -> None:
    for host, url in (
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("localhost", "http://localhost:80"),
    ):
        assert RestServer(rest_stack.services, host=host, port=80).url == url
