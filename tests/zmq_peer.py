"""Clients of the ZeroMQ transport, as plain as pyzmq gives them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from moc.transports.zmq.limits import Limits
from moc.transports.zmq.server import ZmqServer
from tests.rest_stack import RestStack

SOON = 10.0


class Peer:
    """One connection that sends and receives JSON; `key` goes into every message unless it is None."""

    def __init__(self, socket: zmq.asyncio.Socket, key: str | None) -> None:
        self.socket = socket
        self.key = key

    async def ask(self, action: str, payload: Any = None, **fields: Any) -> dict[str, Any]:
        """Send a request and take the next answer."""
        await self.send(action=action, **({} if payload is None else {"payload": payload}), **fields)
        return await self.receive()

    async def send(self, **fields: Any) -> None:
        """Send a message."""
        key = {} if self.key is None else {"key": self.key}
        await self.socket.send(msgspec.json.encode({**key, **fields}))

    async def receive(self) -> dict[str, Any]:
        """The next answer, which must be one frame of JSON."""
        (frame,) = await self.frames()
        found: dict[str, Any] = msgspec.json.decode(frame)
        return found

    async def frames(self) -> list[bytes]:
        """The next answer as it came."""
        async with asyncio.timeout(SOON):
            return await self.socket.recv_multipart()

    async def ask_msgpack(self, message: Any, *tensors: bytes) -> tuple[dict[str, Any], list[bytes]]:
        """Send msgpack with tensors behind it; the answer and the tensors behind that."""
        key = {} if self.key is None else {"key": self.key}
        await self.socket.send_multipart([msgspec.msgpack.encode({**key, **message}), *tensors])
        head, *frames = await self.frames()
        return msgspec.msgpack.decode(head), frames

    def close(self) -> None:
        """Leave at once."""
        self.socket.close(linger=0)


class Peers:
    """Makes connections to a server."""

    def __init__(self, context: zmq.asyncio.Context, url: str, key: str | None) -> None:
        self._context = context
        self._sockets: list[zmq.asyncio.Socket] = []
        self.url = url
        self.key = key

    def dealer(self, **options: Any) -> Peer:
        """Many requests at once."""
        return self._peer(zmq.DEALER, options)

    def req(self, **options: Any) -> Peer:
        """One request at a time."""
        return self._peer(zmq.REQ, options)

    def subscriber(self, url: str, topic: str, **options: Any) -> zmq.asyncio.Socket:
        """Listens to events."""
        socket = self._peer(zmq.SUB, {**options, "url": url}).socket
        socket.subscribe(topic.encode())
        return socket

    def close(self) -> None:
        """Leave at once, on every connection."""
        for socket in self._sockets:
            socket.close(linger=0)

    def _peer(self, kind: int, options: dict[str, Any]) -> Peer:
        key, url = options.pop("key", self.key), options.pop("url", self.url)
        socket = self._context.socket(kind)
        self._sockets.append(socket)
        for name, value in options.items():
            setattr(socket, name, value)
        socket.connect(url)
        return Peer(socket, key)


@contextmanager
def peers(url: str, key: str | None) -> Iterator[Peers]:
    """Connections that are all gone at the end."""
    context = zmq.asyncio.Context()
    made = Peers(context, url, key)
    try:
        yield made
    finally:
        made.close()
        context.destroy(linger=0)


@asynccontextmanager
async def serving(
    stack: RestStack,
    *,
    limits: Limits | None = None,
    events_port: int | None = None,
    curve_folder: Path | None = None,
) -> AsyncIterator[ZmqServer]:
    """A ZeroMQ server over the services of `stack`."""
    server = ZmqServer(
        stack.services,
        host="127.0.0.1",
        port=0,
        limits=limits or Limits(),
        events_port=events_port,
        curve_folder=curve_folder,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
