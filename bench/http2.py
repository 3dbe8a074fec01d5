"""A load generator for unary gRPC: one connection, closed loop, N calls in flight.

It writes HTTP/2 frames prepared beforehand and looks for nothing in the answers but their ends, so that one
processor of it outruns any server in Python. A call that ends without a message has failed.
"""

import asyncio
import struct
import time
from typing import cast

from bench.load import Outcome

_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_WINDOW = 2**31 - 1
_WINDOW_START = 65_535


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name: str, value: str) -> bytes:
    """A header field that neither side has to remember."""
    return b"".join([b"\x10", *(_text(part.encode()) for part in (name, value))])


def _text(text: bytes) -> bytes:
    """A string without Huffman coding, behind its length in a prefix of seven bits."""
    length = len(text)
    if length < 127:
        return bytes([length]) + text
    prefix, rest = b"\x7f", length - 127
    while rest >= 128:
        prefix, rest = prefix + bytes([rest % 128 + 128]), rest // 128
    return prefix + bytes([rest]) + text


class _Connection(asyncio.Protocol):
    """Starts a call for each that ends until it is told to stop."""

    def __init__(self, head: bytes, message: bytes, outcome: Outcome) -> None:
        self._head = head
        self._body = b"\0" + struct.pack(">I", len(message)) + message
        self._outcome = outcome
        self._buffer = bytearray()
        self._next = 1
        self._begun: dict[int, float] = {}
        self._answered: set[int] = set()
        self._transport: asyncio.Transport | None = None
        self.end = float("inf")
        self.over = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        window = struct.pack(">HI", 4, _WINDOW)
        opening = [_frame(_SETTINGS, 0, 0, window), self._widen(0, _WINDOW - _WINDOW_START)]
        self._write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(opening))

    def connection_lost(self, exc: Exception | None) -> None:
        self._outcome.failures += len(self._begun)
        self.over.set()

    def call(self) -> None:
        stream, self._next = self._next, self._next + 2
        self._begun[stream] = time.perf_counter()
        self._write(_frame(_HEADERS, _END_HEADERS, stream, self._head) + _frame(_DATA, _END_STREAM, stream, self._body))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 9:
            size = int.from_bytes(self._buffer[:3])
            if len(self._buffer) < 9 + size:
                return
            kind, flags, stream = struct.unpack_from(">BBI", self._buffer, 3)
            payload = bytes(self._buffer[9 : 9 + size])
            del self._buffer[: 9 + size]
            self._received(kind, flags, stream, payload)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def _received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._write(_frame(_PING, _ACK, 0, payload))
        elif kind == _DATA and payload:
            self._answered.add(stream)
            self._write(self._widen(0, len(payload)))
        elif kind == _HEADERS and flags & _END_STREAM:
            self._ended(stream)

    def _ended(self, stream: int) -> None:
        now = time.perf_counter()
        self._outcome.latencies.append(now - self._begun.pop(stream))
        self._outcome.failures += stream not in self._answered
        self._answered.discard(stream)
        if now < self.end:
            self.call()
        elif not self._begun:
            self.over.set()

    def _widen(self, stream: int, size: int) -> bytes:
        return _frame(_WINDOW_UPDATE, 0, stream, struct.pack(">I", size))

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)


async def closed_loop(
    port: int, path: str, message: bytes, *, key: str, in_flight: int, seconds: float, once: bool = False
) -> Outcome:
    """Calls of one method, each begun when one before it ended; with `once`, `in_flight` of them and no more."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": f"127.0.0.1:{port}",
        "te": "trailers",
        "content-type": "application/grpc",
        "authorization": f"Bearer {key}",
    }
    head = b"".join(_literal(name, value) for name, value in fields.items())
    outcome = Outcome()
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: _Connection(head, message, outcome), "127.0.0.1", port)
    started = time.perf_counter()
    connection.end = started if once else started + seconds
    for _ in range(in_flight):
        connection.call()
    await connection.over.wait()
    outcome.seconds = time.perf_counter() - started
    connection.close()
    return outcome
