"""An HTTP server that answers as an engine elsewhere would, or fails in any way that one can."""

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from moc.inference.request import Request
from moc.workers.remote import RemoteLink
from moc.workers.upstream import Upstream, UpstreamOptions

CHUNK = b'{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%s"}}]}'
WORDS = (b"one", b" two", b" three")


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body's content."""
        return json.loads(self.body)


@dataclass(slots=True)
class Peer:
    """The client's end of a connection; `gone` is set when the client has left it."""

    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, data: bytes) -> None:
        """Raw bytes."""
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        """A whole answer; underscores in names of headers are dashes."""
        fields = {"content_type": "application/json", "content_length": str(len(body)), **headers}
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items()]
        await self.send(f"HTTP/1.1 {status} Said\r\n{''.join(lines)}\r\n".encode() + body)

    async def begin_stream(self, *, framed: bool = True) -> None:
        """The head of a stream of events, whose end can be told from a cut unless it is not `framed`."""
        how = "transfer-encoding: chunked" if framed else "connection: close"
        await self.send(f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{how}\r\n\r\n".encode())

    async def piece(self, data: bytes) -> None:
        """One piece of a framed body; an empty one ends it."""
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def hang(self) -> None:
        """Say nothing until the client leaves."""
        await self.gone.wait()

    def reset(self) -> None:
        """End the connection as a machine that fails does."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Answer = Callable[[Seen, Peer], Awaitable[None]]


async def answer_chat(seen: Seen, peer: Peer) -> None:
    """Answer a chat, whole or in three pieces."""
    if not seen.json().get("stream"):
        content = {"role": "assistant", "content": "one two three"}
        choice = {"index": 0, "message": content, "finish_reason": "stop"}
        await peer.answer(json.dumps({"object": "chat.completion", "choices": [choice]}).encode())
        return
    await peer.begin_stream()
    for word in WORDS:
        await peer.piece(b"data: %s\n\n" % (CHUNK % word))
    await peer.piece(b"data: [DONE]\n\n")
    await peer.piece(b"")


def refusing(status: int, body: bytes = b'{"error": {"message": "no more"}}', **headers: str) -> Answer:
    """Answer everything with a status and a body."""

    async def refuse(_: Seen, peer: Peer) -> None:
        await peer.answer(body, status, **headers)

    return refuse


def sending(data: bytes) -> Answer:
    """Send some bytes, and close the connection."""

    async def send(_: Seen, peer: Peer) -> None:
        await peer.send(data)
        peer.writer.close()

    return send


async def resetting(_: Seen, peer: Peer) -> None:
    """Reset the connection."""
    peer.reset()


async def hanging(_: Seen, peer: Peer) -> None:
    """Say nothing."""
    await peer.hang()


async def breaking_off(_: Seen, peer: Peer) -> None:
    """Reset the connection in the midst of a stream's second event."""
    await peer.begin_stream()
    await peer.piece(b"data: %s\n\ndata: {" % (CHUNK % WORDS[0]))
    peer.reset()


class UpstreamServer:
    """Listens on a free loopback port. `answer` deals with every request but GETs: these get `page`, with the status
    `health`.

    `seen` has what came, oldest first; `connections` counts those that were made.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answer: Answer = answer_chat
        self.health = 200
        self.page = b"{}"
        self.seen: list[Seen] = []
        self.connections = 0
        self.asked = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._port = 0
        self._tls = tls
        self._open: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it is, without a path."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}"

    @property
    def last(self) -> Seen:
        """The last request that was no GET."""
        return next(seen for seen in reversed(self.seen) if seen.method != "GET")

    async def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, ssl=self._tls)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections, and end those there are."""
        if self._server is not None:
            self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        try:
            while (seen := await _read(reader)) is not None:
                self.seen.append(seen)
                peer = Peer(writer)
                if seen.method == "GET":
                    await peer.answer(self.page, self.health)
                    continue
                self.asked.set()
                leaving = asyncio.create_task(_until_gone(reader, peer))
                try:
                    await self.answer(seen, peer)
                finally:
                    leaving.cancel()
                    await asyncio.gather(leaving, return_exceptions=True)
                if writer.is_closing() or peer.gone.is_set():
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Seen | None:
    """The next request, None when there is none."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.rstrip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Seen(method, path, headers, body)


async def _until_gone(reader: asyncio.StreamReader, peer: Peer) -> None:
    with contextlib.suppress(ConnectionError):
        assert await reader.read(1) == b"", "a client does not ask before it has its answer"
    peer.gone.set()


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[UpstreamServer]:
    """One that is started, and stopped at the end."""
    server = UpstreamServer(tls)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def upstream_to(server: UpstreamServer, **options: Any) -> AsyncIterator[Upstream]:
    """The way to a server, where the model is called `theirs` unless the options say something else."""
    root = "" if options.get("protocol") == "oip" else "/v1"
    upstream = Upstream(UpstreamOptions(url=f"{server.url}{root}", **{"model": "theirs", **options}))
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.close()


def chat(**fields: Any) -> Request:
    """A caller's chat with the model `mine`."""
    return Request("chat", json.dumps({"model": "mine", "messages": [], **fields}).encode())


async def streamed(engine: Upstream | RemoteLink, request: Request) -> list[bytes]:
    """Every chunk of an answer."""
    return [chunk async for bunch in engine.stream(request) for chunk in bunch]
