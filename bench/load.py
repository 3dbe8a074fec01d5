"""A load generator over keep-alive HTTP/1.1: closed loop with N clients, or open loop at a fixed rate.

The open loop charges a request's waiting time to the request: latency counts from the moment it was due,
so a stall shows in the tail. One request, prepared beforehand, is sent over and over.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np

Ask = Callable[[bytes], Awaitable[bytes]]
"""Sends a request, and gives the body of its answer."""

Turn = Callable[[Ask], Awaitable[None]]
"""Some requests, each of them made of the answer before it."""


@dataclass(slots=True)
class Outcome:
    """Latencies in seconds, in order of completion; what was no success; how long it all took."""

    latencies: list[float] = field(default_factory=list)
    failures: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    def ms(self, percentile: float) -> float:
        """A percentile of the latency, milliseconds."""
        return float(np.percentile(self.latencies, percentile)) * 1000


class _Client(asyncio.Protocol):
    """One connection, one request at a time; only as much HTTP as a server with Content-Length needs."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._buffer = bytearray()
        self._due: deque[float] = deque()
        self._transport: asyncio.Transport | None = None
        self.on_answer: Callable[[], object] = int

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def send(self, request: bytes, due: float) -> None:
        assert self._transport is not None
        self._due.append(due)
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head = self._buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            headers = bytes(self._buffer[:head]).lower()
            at = headers.index(b"content-length:") + 15
            end = headers.find(b"\r", at)
            size = int(headers[at : end if end > 0 else None])
            if len(self._buffer) < head + 4 + size:
                return
            if not headers.startswith(b"http/1.1 2"):
                self._outcome.failures += 1
            del self._buffer[: head + 4 + size]
            self._outcome.latencies.append(time.perf_counter() - self._due.popleft())
            self.on_answer()


async def _connect(port: int, outcome: Outcome) -> _Client:
    _, client = await asyncio.get_running_loop().create_connection(lambda: _Client(outcome), "127.0.0.1", port)
    return client


async def closed_loop(port: int, request: bytes, *, clients: int, seconds: float) -> Outcome:
    """`clients` connections, each sending its next request when it has its answer."""
    outcome = Outcome()
    connections = [await _connect(port, outcome) for _ in range(clients)]
    started = time.perf_counter()
    end = started + seconds
    running = len(connections)
    over = asyncio.Event()

    def answer_to(client: _Client) -> None:
        nonlocal running
        now = time.perf_counter()
        if now < end:
            client.send(request, now)
            return
        running -= 1
        if not running:
            over.set()

    for connection in connections:
        connection.on_answer = partial(answer_to, connection)
        connection.send(request, time.perf_counter())
    await over.wait()
    outcome.seconds = time.perf_counter() - started
    return outcome


async def open_loop(port: int, request: bytes, *, rate: float, connections: int, seconds: float) -> Outcome:
    """`rate` requests a second whatever the answers do, over `connections` in turn."""
    outcome = Outcome()
    pool = [await _connect(port, outcome) for _ in range(connections)]
    over = asyncio.Event()

    def answered() -> None:
        if len(outcome.latencies) == int(rate * seconds):
            over.set()

    for connection in pool:
        connection.on_answer = answered
    started = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = started + number / rate
        while time.perf_counter() < due:  # noqa: ASYNC110 - a timer would be late by up to a millisecond
            await asyncio.sleep(0)
        pool[number % connections].send(request, due)
    async with asyncio.timeout(30):
        await over.wait()
    outcome.seconds = time.perf_counter() - started
    return outcome


async def turns(port: int, turn: Turn, *, clients: int, seconds: float) -> Outcome:
    """`clients` connections, each taking one turn after another; a latency is that of a whole turn."""
    outcome = Outcome()
    started = time.perf_counter()

    async def take_turns() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        ask = partial(_ask, reader, writer, outcome)
        while (begun := time.perf_counter()) < started + seconds:
            await turn(ask)
            outcome.latencies.append(time.perf_counter() - begun)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(take_turns() for _ in range(clients)))
    outcome.seconds = time.perf_counter() - started
    return outcome


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, outcome: Outcome, request: bytes) -> bytes:
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    outcome.failures += not head.startswith(b"http/1.1 2")
    at = head.index(b"content-length:") + 15
    return await reader.readexactly(int(head[at : head.index(b"\r", at)]))
