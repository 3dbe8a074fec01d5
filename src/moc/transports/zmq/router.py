"""A ROUTER socket on the event loop: messages come as they arrive, answers go when their peer takes them."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import zmq

Buffer = bytes | bytearray | memoryview

_BURST: Final = 64
"""How many messages are read before others get their turn."""

_RETRY_S: Final = 0.02
"""How soon a peer that had no room is tried again: libzmq does not tell when it has."""


class Gone(Exception):
    """The peer has left, or has not read for so long that it is given up."""


@dataclass(slots=True)
class _Waiting:
    """A message for a peer that has no room; `sent` tells what became of it."""

    parts: Sequence[Buffer]
    sent: asyncio.Future[None]


class Router:
    """Reads `socket` from `open` to `close`.

    The event loop is told of a socket only when its state changes, which sending may do unseen: so every `send`
    looks for messages too.
    """

    def __init__(self, socket: zmq.Socket[bytes], *, write_timeout_s: float) -> None:
        self._socket = socket
        self._arrived: Callable[[list[zmq.Frame]], None]
        self._write_timeout_s = write_timeout_s
        self._loop = asyncio.get_running_loop()
        self._unread: dict[bytes, deque[_Waiting]] = {}
        self._reading: asyncio.Handle | None = None
        self._retrying: asyncio.TimerHandle | None = None
        self._open = False

    def open(self, arrived: Callable[[list[zmq.Frame]], None]) -> None:
        """Begin to read: the frames of each message, the peer's routing id first, go to `arrived`."""
        self._arrived = arrived
        self._open = True
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._read_soon()

    def close(self, *, linger_s: float) -> None:
        """Close the socket; what was sent may still go for `linger_s`."""
        if self._open:
            self._loop.remove_reader(self._socket.fileno())
        self._open = False
        for handle in (self._reading, self._retrying):
            if handle is not None:
                handle.cancel()
        for queue in self._unread.values():
            for waiting in queue:
                if not waiting.sent.done():
                    waiting.sent.set_exception(Gone())
        self._socket.close(linger=round(linger_s * 1000))

    async def send(self, peer: bytes, parts: Sequence[Buffer]) -> None:
        """Hand a message over, behind those that wait for the same peer; Gone when the peer does not take it.

        Waits while the peer has too much unread; nobody else waits for it.
        """
        queue = self._unread.get(peer)
        if queue is None:
            if self._try(peer, parts):
                return
            queue = self._unread[peer] = deque()
        waiting = _Waiting(parts, self._loop.create_future())
        queue.append(waiting)
        self._retry_later()
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await waiting.sent
        except TimeoutError:
            raise Gone from None
        finally:
            waiting.sent.cancel()

    def offer(self, peer: bytes, parts: Sequence[Buffer]) -> None:
        """Send a message if the peer takes it now; forget it otherwise."""
        with contextlib.suppress(Gone):
            if peer not in self._unread:
                self._try(peer, parts)

    def _read(self) -> None:
        self._reading = None
        for _ in range(_BURST):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._arrived(parts)
            if not self._open:
                return
        self._read_soon()

    def _read_soon(self) -> None:
        if self._reading is None:
            self._reading = self._loop.call_soon(self._read)

    def _try(self, peer: bytes, parts: Sequence[Buffer]) -> bool:
        """Send now; False when the peer has too much unread."""
        if not self._open:
            raise Gone
        try:
            self._socket.send_multipart([peer, *parts], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise Gone from None
            raise
        if self._reading is None and int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._read_soon()
        return True

    def _retry_later(self) -> None:
        if self._retrying is None:
            self._retrying = self._loop.call_later(_RETRY_S, self._retry)

    def _retry(self) -> None:
        self._retrying = None
        for peer in [*self._unread]:
            self._flush(peer, self._unread[peer])
        if self._unread:
            self._retry_later()

    def _flush(self, peer: bytes, queue: deque[_Waiting]) -> None:
        while queue:
            waiting = queue[0]
            if not waiting.sent.done():
                try:
                    if not self._try(peer, waiting.parts):
                        return
                    waiting.sent.set_result(None)
                except Gone as gone:
                    waiting.sent.set_exception(gone)
            queue.popleft()
        del self._unread[peer]
