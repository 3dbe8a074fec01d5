"""The worker's end of the line: who may command it, and what it is doing for them."""

import asyncio
import contextlib
import hmac
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, cast

from moc.inference.request import Reply, Request
from moc.kernel.errors import MocError, TooLarge, Unavailable, Unimplemented
from moc.workers.runtimes.runtime import Runtime, Sleeper
from moc.workers.wire import (
    LISTENER,
    VERSION,
    WINDOW,
    BrokenFrame,
    Cancel,
    Chunk,
    Credit,
    End,
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
    failure,
    portable,
)

LOG_BYTES_MAX = 8 * 1024**2
LOG_CHECK_S = 10.0
HELLO_BYTES_MAX = 64 * 1024
CLAIM_TIMEOUT_S = 10.0


class Loading(Protocol):
    """A model on its way into memory; `wait` blocks until one of the two is set."""

    runtime: Runtime | None
    error: MocError | None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None: ...

    def wait(self) -> None: ...


class Tenancy:
    """Who commands this worker: the highest term that ever claimed it, through one session at a time."""

    def __init__(self, loading: Loading, *, folder: str, token: str, orphan_grace_s: float) -> None:
        self.term = 0
        self.loading = loading
        self.runtime: Runtime | None = None
        self._folder = folder
        self._token = token.encode()
        self._orphan_grace_s = orphan_grace_s
        self._holder = ""
        self._session: Session | None = None
        self._loop = asyncio.get_running_loop()
        self._orphaned = self._loop.call_later(orphan_grace_s, self.leave)
        self._ending: asyncio.Task[None] | None = None

    def claim(self, hello: Hello, session: "Session") -> Refused | None:
        """Let `session` command from now on, or say why not."""
        if not hmac.compare_digest(hello.token.encode(), self._token):
            return Refused("unauthenticated", "the token is not this worker's")
        if hello.term < self.term or (hello.term == self.term and hello.holder != self._holder):
            return Refused(
                "not_leader", f"this worker was claimed for term {self.term}; term {hello.term} of its host is over"
            )
        self.term, self._holder = hello.term, hello.holder
        self._orphaned.cancel()
        previous, self._session = self._session, session
        if previous is not None:
            previous.end()
        return None

    def ended(self, session: "Session") -> None:
        """`session` is over; unless another took its place the worker is an orphan from now on."""
        if self._session is session:
            self._session = None
            self._orphaned = self._loop.call_later(self._orphan_grace_s, self.leave)

    async def load(self) -> None:
        """Wait for the model, then tell whoever commands."""
        self.loading.attach(self._loop)
        await asyncio.to_thread(self.loading.wait)
        self.runtime = self.loading.runtime
        if self._session is not None:
            self._session.announce()

    def stop(self) -> None:
        """End in good order, soon."""
        if self._ending is None:
            self._ending = self._loop.create_task(self._close())

    async def _close(self) -> None:
        if self.runtime is not None:
            with contextlib.suppress(Exception):
                await self.runtime.close()
        os._exit(0)  # an engine in the middle of something would hold an ordinary exit back

    def leave(self) -> None:
        """Nobody claimed the worker in time: clear up and take every child process along."""
        print("no coordinator claimed this worker in time; it ends", file=sys.stderr, flush=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(0)


class Session(asyncio.Protocol):
    """One connection. Before its `Hello` is accepted it can make the worker do and hold next to nothing."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy
        self._loop = asyncio.get_running_loop()
        self._frames = Frames(header_max=HELLO_BYTES_MAX, body_max=0)
        self._claimed = False
        self._transport: asyncio.Transport | None = None
        self._outbox: Outbox | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._windows: dict[int, _Window] = {}
        self._timeout: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._outbox = Outbox(self._loop, self._transport)
        self._timeout = self._loop.call_later(CLAIM_TIMEOUT_S, self.end)

    def data_received(self, data: bytes) -> None:
        try:
            for message, body in self._frames.feed(data):
                if self._claimed:
                    self._take(message, body)
                elif isinstance(message, Hello):
                    self._claim(message)
                else:
                    raise BrokenFrame("a session begins with a hello")
        except BrokenFrame as error:
            print(f"a connection was dropped: {error}", file=sys.stderr, flush=True)
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._timeout is not None:
            self._timeout.cancel()
        for task in self._tasks.values():
            task.cancel()
        self._tenancy.ended(self)

    def end(self) -> None:
        """Close the connection; what was asked over it is cancelled."""
        if self._transport is not None:
            if self._outbox is not None:
                self._outbox.flush()
            self._transport.close()

    # the claim

    def _claim(self, hello: Hello) -> None:
        refused = self._tenancy.claim(hello, self)
        if refused is not None:
            self._send(refused)
            self.end()
            return
        self._claimed = True
        if self._timeout is not None:
            self._timeout.cancel()
        self._frames = Frames()
        runtime = self._tenancy.runtime
        self._send(Welcome(hello.term, None if runtime is None else runtime.info, VERSION))
        if runtime is None and self._tenancy.loading.error is not None:
            self.announce()

    def announce(self) -> None:
        """Tell how loading went."""
        runtime, error = self._tenancy.runtime, self._tenancy.loading.error
        if runtime is not None:
            self._send(Loaded(runtime.info))
        elif error is not None:
            self._send(NotLoaded(error.code, error.message, portable(error.details)))

    # work

    def _take(self, message: Message, body: bytes) -> None:
        match message:
            case Infer():
                self._infer(message, body)
            case Credit(id=request_id, count=count):
                window = self._windows.get(request_id)
                if window is not None:
                    window.open(count)
            case Stream():
                work = self._stream(message.id, Request(message.kind, body, parameters=message.parameters))
                self._begin(message.id, work)
            case Cancel(id=request_id):
                task = self._tasks.get(request_id)
                if task is not None:
                    task.cancel()
            case Ping():
                self._send(Pong())
            case Sleep(id=request_id):
                self._begin(request_id, self._sleep(message))
            case Stop():
                self._tenancy.stop()
            case _:
                raise BrokenFrame(f"a coordinator does not say {type(message).__name__}")

    def _infer(self, message: Infer, body: bytes) -> None:
        request = Request(message.kind, body, message.inputs, message.outputs, message.parameters)
        try:
            answer = self._runtime(request).infer(request)
        except (Exception, SystemExit) as error:
            self._fail(message.id, error)
            return
        if isinstance(answer, Reply):
            self._reply(message.id, answer)
        else:
            self._begin(message.id, self._answer(message.id, answer))

    def _begin(self, request_id: int, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[request_id] = task = self._loop.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(request_id, None))

    async def _answer(self, request_id: int, work: Coroutine[Any, Any, Reply]) -> None:
        try:
            reply = await work
        except (Exception, SystemExit) as error:
            self._fail(request_id, error)
        else:
            self._reply(request_id, reply)

    async def _stream(self, request_id: int, request: Request) -> None:
        self._windows[request_id] = window = _Window(self._loop)
        try:
            chunks = self._runtime(request).stream(request)
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    await window.take()
                    self._send(Chunk(request_id), chunk)
            self._send(End(request_id))
        except (Exception, SystemExit) as error:
            self._fail(request_id, error)
        finally:
            del self._windows[request_id]

    async def _sleep(self, message: Sleep) -> None:
        try:
            runtime = self._tenancy.runtime
            if not isinstance(runtime, Sleeper) or not runtime.info.sleeps:
                raise Unimplemented("this model does not sleep")
            await (runtime.sleep() if message.asleep else runtime.wake())
        except Exception as error:
            self._fail(message.id, error)
        else:
            self._reply(message.id, Reply(b""))

    def _runtime(self, request: Request) -> Runtime:
        runtime = self._tenancy.runtime
        if runtime is None:
            raise Unavailable("the model is still loading; try again shortly")
        if request.kind not in runtime.info.kinds:
            raise Unimplemented(
                f"this model does not do {request.kind}; it does {', '.join(runtime.info.kinds) or 'nothing'}"
            )
        return runtime

    def _reply(self, request_id: int, reply: Reply) -> None:
        try:
            self._send(Result(request_id, reply.outputs, reply.parameters), reply.body)
        except (TooLarge, TypeError, ValueError) as error:
            self._fail(request_id, error)

    def _fail(self, request_id: int, error: BaseException) -> None:
        if not isinstance(error, MocError):
            _print_error(error)
        self._send(failure(request_id, error))

    def _send(self, message: Message, body: bytes | bytearray | memoryview = b"") -> None:
        if self._outbox is not None and self._transport is not None and not self._transport.is_closing():
            self._outbox.put(message, body)


class _Window:
    """How many chunks the reader of one stream still has room for."""

    __slots__ = ("_loop", "_room", "_wake")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._room = WINDOW
        self._wake: asyncio.Future[None] | None = None

    def open(self, count: int) -> None:
        self._room += count
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def take(self) -> None:
        while self._room <= 0:
            self._wake = self._loop.create_future()
            await self._wake
        self._room -= 1


def run(loading: Loading, *, folder: str, token: str, orphan_grace_s: float) -> None:
    """Serve until the process is ended."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(loading, folder=folder, token=token, orphan_grace_s=orphan_grace_s))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # there on every system it is made for
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _serve(loading: Loading, *, folder: str, token: str, orphan_grace_s: float) -> None:
    os.set_inheritable(LISTENER, False)  # what a model starts is not to keep its socket open
    tenancy = Tenancy(loading, folder=folder, token=token, orphan_grace_s=orphan_grace_s)
    server = await asyncio.get_running_loop().create_unix_server(
        lambda: Session(tenancy), sock=socket.socket(fileno=LISTENER)
    )
    async with server:
        await tenancy.load()
        while True:
            await asyncio.sleep(LOG_CHECK_S)
            _trim_log()


def _trim_log() -> None:
    # opened for appending, so it goes on at the new end
    if os.fstat(sys.stderr.fileno()).st_size > LOG_BYTES_MAX:
        os.ftruncate(sys.stderr.fileno(), 0)


def _print_error(error: BaseException) -> None:
    import traceback  # a start without an error does without it

    traceback.print_exception(error, file=sys.stderr)
