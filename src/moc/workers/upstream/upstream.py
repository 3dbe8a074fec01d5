"""One upstream, and the requests that go to it."""

import contextlib
from collections import deque
from collections.abc import AsyncGenerator

import aiohttp

from moc.inference.request import Info, Reply, Request
from moc.kernel.errors import Internal, WorkerLost
from moc.workers.upstream.dialect import dialect_of
from moc.workers.upstream.events import Events
from moc.workers.upstream.line import Call, Line
from moc.workers.upstream.openai import DONE, finishes, sound
from moc.workers.upstream.options import UpstreamOptions

PROBE_TIMEOUT_S = 5.0
EVENT_STREAM = "text/event-stream"
LAST_CHUNKS = 4
"""Among how many at the end of a stream one says that it is whole: after that come numbers, such as the usage."""

DEADLINE = "x-moc-deadline-ms"
DEADLINE_MAX_MS = 86_400_000
"""The longest that a coordinator takes."""

TOLD_COORDINATORS = ("x-moc-priority", "x-moc-session", "traceparent")
"""The caller's headers that another coordinator is sent."""


class Upstream:
    """Everything that is asked of one upstream, over connections that are kept. Call it on one event loop."""

    def __init__(self, options: UpstreamOptions) -> None:
        self.options = options
        self._line = Line(options)
        self._dialect = dialect_of(options, self._line)
        passed = (*options.forward_headers, *(TOLD_COORDINATORS if options.coordinator else ()))
        self._passed = tuple((name.lower().encode(), name) for name in passed)

    async def start(self) -> None:
        """Make ready to connect; nothing is asked yet. Idempotent."""
        await self._line.start()

    async def close(self) -> None:
        """Drop every connection; requests under way end with WorkerLost. Idempotent."""
        await self._line.close()

    async def probe(self) -> None:
        """Ask whether it is well; the MocError that says why not, if it is not."""
        await self._line.get(self.options.health or self._dialect.health, timeout_s=PROBE_TIMEOUT_S)

    async def post(self, path: str, body: bytes) -> None:
        """Tell it something, in JSON, at a path of its host; errors as for `infer`."""
        headers = {"Content-Type": "application/json"} if body else {}
        with contextlib.closing(await self._line.post(Call(path, body, headers))) as response:
            await self._line.whole(response)

    async def info(self) -> Info:
        """What it can do; of one that speaks oip also what tensors it takes, if it says so."""
        return await self._dialect.info()

    async def infer(self, request: Request) -> Reply:
        """One answer; cancelling the caller closes the connection it was to come over.

        WorkerLost (`sent`) when it ends without an answer, Unavailable when it cannot be reached or will not answer,
        QueueFull when it has too much to do, InvalidRequest with its own words for a request that it refuses.
        """
        with contextlib.closing(await self._ask(request, stream=False)) as response:
            return self._dialect.reply(await self._line.whole(response), response.headers)

    async def stream(self, request: Request) -> AsyncGenerator[list[bytes], None]:
        """The JSON chunks of one answer, those that are there, at least one; errors as for `infer`.

        Closing the iterator closes the connection. A reader that does not keep up holds the upstream back.
        """
        with contextlib.closing(await self._ask(request, stream=True)) as response:
            async with contextlib.aclosing(self._bunches(response)) as bunches:
                async for bunch in bunches:
                    is_over = DONE in bunch
                    chunks, error = sound(self._line.who, bunch[: bunch.index(DONE)] if is_over else bunch)
                    if chunks:
                        yield chunks
                    if error is not None:
                        raise error
                    if is_over:
                        await self._line.finish(response)
                        return

    async def _bunches(self, response: aiohttp.ClientResponse) -> AsyncGenerator[list[bytes], None]:
        """The data of the events of an answer, those that came together.

        WorkerLost when it ends without having said so: a server that dies may still end the body as is proper.
        """
        media = response.headers.get("Content-Type", "")
        if not media.lower().startswith(EVENT_STREAM):
            raise Internal(f"{self._line.who} was asked for a stream and answers {media[:100] or 'nothing'!r}")
        events = Events()
        latest: deque[bytes] = deque(maxlen=LAST_CHUNKS)
        while block := await self._line.block(response):
            bunch = events.feed(block)
            latest += bunch
            yield bunch
        last = events.end()
        if DONE in last or any(map(finishes, last)):
            yield last
        elif last or not any(map(finishes, latest)):
            raise WorkerLost(f"{self._line.who} ended its answer before that was whole", sent=True)

    async def _ask(self, request: Request, *, stream: bool) -> aiohttp.ClientResponse:
        call = self._dialect.call(request, stream=stream)
        if request.headers is not None:
            for key, name in self._passed:
                value = request.headers.get(key)
                if value is not None:
                    call.headers[name] = value.decode("latin-1")
        if self.options.coordinator and (left_s := request.deadline.remaining_s()) is not None:
            call.headers[DEADLINE] = str(min(max(1, int(left_s * 1000)), DEADLINE_MAX_MS))
        if stream and not self._line.keeps_streams:
            call.headers["Connection"] = "close"
        return await self._line.post(call)
