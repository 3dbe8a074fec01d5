"""The coordinator's end of the line to one worker."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

from moc.inference.request import Info, Reply, Request
from moc.kernel.errors import MocError, WorkerLost, error_for
from moc.workers.wire import (
    WINDOW,
    BrokenFrame,
    Cancel,
    Chunk,
    Credit,
    End,
    Failure,
    Frames,
    Hello,
    Infer,
    Loaded,
    Message,
    NotLoaded,
    Outbox,
    Ping,
    Pong,
    Refused,
    Result,
    Sleep,
    Stop,
    Stream,
    Welcome,
)

PONGS = 2
"""The first `VERSION` of a worker that answers `Ping`."""


class _Inflow:
    """The chunks of one stream that came and were not read yet."""

    __slots__ = ("chunks", "ended", "error", "wake")

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.ended = False
        self.error: MocError | None = None
        self.wake: asyncio.Future[None] | None = None

    def notify(self) -> None:
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)


class WorkerLink(asyncio.Protocol):
    """One claimed connection to a worker; implements the `Link` of inference.

    `on_lost` is called once, on the event loop, when the connection ends other than by `close`. Whoever calls `beat`
    learns whether the worker is `responsive`, and for how long it has been silent; anything it says is a sign of life.
    Writes are not held back here: admission bounds how many requests are under way.
    """

    def __init__(self, worker_id: str, on_lost: Callable[["WorkerLink"], None]) -> None:
        self.worker_id = worker_id
        self.responsive = True
        self.silent_s = 0.0
        self._pinged = False
        self._can_pong = False
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._outbox: Outbox | None = None
        self._frames = Frames()
        self._next_id = 0
        self._answers: dict[int, asyncio.Future[Reply]] = {}
        self._streams: dict[int, _Inflow] = {}
        self._welcomed: asyncio.Future[None] = self._loop.create_future()
        self._loaded: asyncio.Future[Info] = self._loop.create_future()
        self._closing = False
        self._welcomed.add_done_callback(_retrieve)
        self._loaded.add_done_callback(_retrieve)

    @classmethod
    async def connect(
        cls, worker_id: str, socket: str, hello: Hello, on_lost: Callable[["WorkerLink"], None]
    ) -> "WorkerLink":
        """Connect and claim the worker.

        NotLeader when a newer coordinator has it, Unauthenticated for a wrong token, WorkerLost when it
        cannot be reached. Waits as long as the worker takes to answer: give it a timeout.
        """
        loop = asyncio.get_running_loop()
        try:
            _, link = await loop.create_unix_connection(lambda: cls(worker_id, on_lost), socket)
        except OSError as error:
            raise WorkerLost(f"worker {worker_id} cannot be reached: {error.strerror or error}", sent=False) from None
        try:
            link._send(hello)
            await link._welcomed
        except BaseException:
            link.close()
            raise
        return link

    @property
    def info(self) -> Info:
        """What the engine said of its model; only once it is loaded."""
        return self._loaded.result()

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._loaded.done() and not self._loaded.cancelled() and self._loaded.exception() is None

    @property
    def alive(self) -> bool:
        """False from the moment the connection is lost or closed."""
        return self._transport is not None and not self._closing

    @property
    def in_flight(self) -> int:
        """Requests whose end has not come."""
        return len(self._answers) + len(self._streams)

    async def loaded(self) -> Info:
        """Wait until the model is in memory; LoadFailed when it cannot be, WorkerLost when the worker dies."""
        return await asyncio.shield(self._loaded)

    async def infer(self, request: Request) -> Reply:
        """One answer; cancelling the caller cancels the work in the engine."""
        self._next_id = request_id = self._next_id + 1
        message = Infer(request_id, request.kind, request.inputs, request.outputs, request.parameters)
        self._send(message, request.body)
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._answers[request_id] = answer
        try:
            return await answer
        except asyncio.CancelledError:
            self._cancel(request_id)
            raise
        finally:
            self._answers.pop(request_id, None)

    async def stream(self, request: Request) -> AsyncGenerator[list[bytes], None]:
        """The chunks of one answer, those that are there; closing the iterator cancels the work in the engine."""
        self._next_id = request_id = self._next_id + 1
        self._send(Stream(request_id, request.kind, request.parameters), request.body)
        self._streams[request_id] = inflow = _Inflow()
        taken = 0
        try:
            while True:
                if inflow.chunks:
                    chunks = inflow.chunks
                    inflow.chunks = []
                    taken += len(chunks)
                    if taken >= WINDOW // 2 and not inflow.ended:
                        self._credit(request_id, taken)
                        taken = 0
                    yield chunks
                    continue
                if inflow.error is not None:
                    raise inflow.error
                if inflow.ended:
                    return
                inflow.wake = self._loop.create_future()
                await inflow.wake
        finally:
            if self._streams.pop(request_id, None) is not None:
                self._cancel(request_id)

    async def sleep(self, asleep: bool) -> None:
        """Have the engine give the memory of its devices back, or take it again; raises what it raises."""
        self._next_id = request_id = self._next_id + 1
        self._send(Sleep(request_id, asleep))
        self._answers[request_id] = answer = self._loop.create_future()
        try:
            await answer
        finally:
            self._answers.pop(request_id, None)

    def beat(self, passed_s: float, *, unresponsive_after_s: float) -> None:
        """Count `passed_s` as silence if the last ping was not answered, else ping; an old worker is not asked."""
        if not self.alive or not self._can_pong:
            return
        if self._pinged:
            self.silent_s += passed_s
            self.responsive = self.silent_s < unresponsive_after_s
        else:
            self._pinged = True
            self._send(Ping())

    def stop(self) -> None:
        """Ask the worker to end in good order; its death is the answer."""
        if self.alive:
            self._send(Stop())

    def close(self) -> None:
        """Drop the connection without a word; the worker lives on, requests under way are cancelled."""
        self._closing = True
        if self._transport is not None:
            if self._outbox is not None:
                self._outbox.flush()
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._outbox = Outbox(self._loop, self._transport)

    def data_received(self, data: bytes) -> None:
        self._pinged, self.responsive, self.silent_s = False, True, 0.0
        try:
            for message, body in self._frames.feed(data):
                self._take(message, body)
        except BrokenFrame:
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        lost = WorkerLost(f"worker {self.worker_id} went away before it answered; try again", sent=True)
        waiting: list[asyncio.Future[Any]] = [self._welcomed, self._loaded, *self._answers.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(lost)
        streams, self._streams = self._streams, {}
        for inflow in streams.values():
            inflow.error = lost
            inflow.notify()
        if not self._closing:
            self._on_lost(self)

    # messages

    def _take(self, message: Message, body: bytes) -> None:
        match message:
            case Result(id=request_id):
                answer = self._answers.get(request_id)
                if answer is not None and not answer.done():
                    answer.set_result(Reply(body, message.outputs, message.parameters))
            case Chunk(id=request_id):
                inflow = self._streams.get(request_id)
                if inflow is not None:
                    inflow.chunks.append(body)
                    inflow.notify()
            case End(id=request_id):
                self._end(request_id, None)
            case Failure():
                self._fail(message)
            case Welcome():
                self._can_pong = message.version >= PONGS
                if message.info is not None and not self._loaded.done():
                    self._loaded.set_result(message.info)
                if not self._welcomed.done():
                    self._welcomed.set_result(None)
            case Pong():
                pass  # it was heard when its bytes came
            case Refused():
                if not self._welcomed.done():
                    self._welcomed.set_exception(error_for(message.code, message.message))
                self.close()
            case Loaded():
                if not self._loaded.done():
                    self._loaded.set_result(message.info)
            case NotLoaded():
                if not self._loaded.done():
                    self._loaded.set_exception(error_for(message.code, message.message, message.details))
            case _:
                raise BrokenFrame(f"a worker does not say {type(message).__name__}")

    def _fail(self, message: Failure) -> None:
        error = error_for(message.code, message.message, message.details)
        answer = self._answers.get(message.id)
        if answer is None:
            self._end(message.id, error)
        elif not answer.done():
            answer.set_exception(error)

    def _end(self, request_id: int, error: MocError | None) -> None:
        inflow = self._streams.pop(request_id, None)
        if inflow is not None:
            inflow.ended, inflow.error = True, error
            inflow.notify()

    def _cancel(self, request_id: int) -> None:
        if self.alive:
            self._send(Cancel(request_id))

    def _credit(self, request_id: int, count: int) -> None:
        if self.alive:
            self._send(Credit(request_id, count))

    def _send(self, message: Message, body: bytes | bytearray | memoryview = b"") -> None:
        if self._outbox is None or self._transport is None or self._closing:
            raise WorkerLost(f"worker {self.worker_id} is gone; try again", sent=False)
        self._outbox.put(message, body)


def _retrieve(future: "asyncio.Future[Any]") -> None:
    # who waited has been told; nobody may have been waiting
    if not future.cancelled():
        future.exception()
