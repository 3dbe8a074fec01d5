"""One request, one path: find the model, take a place, hand the request to the worker, give the place back.

Nothing is awaited that need not be: for a loaded model with a free place the only await is the worker's
answer.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from moc.inference.ports import Link, Links, Resident, Residents
from moc.inference.request import Reply, Request
from moc.kernel.errors import DeadlineExceeded, MocError, Unimplemented, WorkerLost
from moc.resilience.bulkhead import Bulkhead
from moc.resilience.deadline import Deadline


class Meter(Protocol):
    """Who is told about every request."""

    def finished(self, reference: str, kind: str, code: str, *, queue_s: float, engine_s: float) -> None:
        """A request is over: `code` is `ok` or an error's code; seconds waited and seconds in the engine."""
        ...


class Answer(msgspec.Struct, gc=False):
    """What came back, from which version, after how long a wait for a place."""

    reply: Reply
    reference: str
    digest: str
    queue_s: float


class _Visit:
    """One request's stay at one resident: a place in its bulkhead, counted until `end`."""

    __slots__ = ("_began", "_bulkhead", "_entered", "_kind", "_meter", "link", "queue_s", "resident")

    def __init__(self, resident: Resident, link: Link, bulkhead: Bulkhead, meter: Meter, kind: str) -> None:
        self.resident = resident
        self.link = link
        self.queue_s = 0.0
        self._bulkhead = bulkhead
        self._meter = meter
        self._kind = kind
        self._entered = False
        self._began = time.monotonic()
        resident.enter()

    async def wait(self, deadline: Deadline) -> None:
        await self._bulkhead.enter(deadline)
        self.entered()

    def try_enter(self) -> bool:
        if not self._bulkhead.try_enter():
            return False
        self._entered = True
        return True

    def entered(self) -> None:
        self._entered = True
        now = time.monotonic()
        self.queue_s, self._began = now - self._began, now

    def end(self, code: str) -> None:
        if self._entered:
            self._bulkhead.leave()
        self.resident.leave()
        engine_s = time.monotonic() - self._began
        self._meter.finished(self.resident.reference, self._kind, code, queue_s=self.queue_s, engine_s=engine_s)


class AnswerStream:
    """The JSON chunks of one answer; holds its place at the model until exhausted, failed or closed."""

    def __init__(self, visit: _Visit, chunks: AsyncIterator[bytes], deadline: Deadline) -> None:
        self.reference = visit.resident.reference
        self.digest = visit.resident.digest
        self.queue_s = visit.queue_s
        self._visit: _Visit | None = visit
        self._chunks = chunks
        self._deadline = deadline
        self._first: bytes | None = None
        self._given = 0
        self._at_end: list[Callable[[], None]] = []

    async def begin(self) -> None:
        """Wait for the first chunk, so that what goes wrong before it is raised here."""
        try:
            self._first = await self._next()
        except StopAsyncIteration:
            self._first = None

    def at_end(self, tell: Callable[[], None]) -> None:
        """Call `tell` once the place is given back; at once when it is."""
        if self._visit is None:
            tell()
        else:
            self._at_end.append(tell)

    def __aiter__(self) -> "AnswerStream":
        return self

    async def __anext__(self) -> bytes:
        chunk, self._first = self._first, None
        if chunk is None:
            chunk = await self._next()
        self._given += 1
        return chunk

    async def aclose(self) -> None:
        """Stop the engine's work on it and give the place back; idempotent."""
        await self._end("cancelled")

    async def _next(self) -> bytes:
        if self._visit is None:
            raise StopAsyncIteration
        try:
            async with asyncio.timeout(self._deadline.remaining_s()):
                return await anext(self._chunks)
        except StopAsyncIteration:
            await self._end("ok")
            raise
        except TimeoutError:
            await self._end("deadline_exceeded")
            raise DeadlineExceeded(f"the deadline passed after {self._given} chunks; allow more time") from None
        except MocError as error:
            await self._end(error.code)
            raise
        except BaseException:
            await self._end("cancelled")
            raise

    async def _end(self, code: str) -> None:
        visit, self._visit = self._visit, None
        if visit is None:
            return
        try:
            close = getattr(self._chunks, "aclose", None)
            if close is not None:
                await close()
        finally:
            visit.end(code)
            for tell in self._at_end:
                tell()


class Gateway:
    """Every inference goes through here."""

    def __init__(self, *, residents: Residents, links: Links, meter: Meter) -> None:
        self._residents = residents
        self._links = links
        self._meter = meter
        self._bulkheads: dict[str, Bulkhead] = {}

    async def infer(self, reference: str, request: Request, deadline: Deadline) -> Answer:
        """One answer.

        A request that its worker was never given is tried once more on the worker that follows; one that
        was given fails with WorkerLost. Cancelling the caller frees the place and stops the engine.
        """
        try:
            return await self._infer(reference, request, deadline)
        except WorkerLost as lost:
            if lost.sent:
                raise
        return await self._infer(reference, request, deadline)

    async def stream(self, reference: str, request: Request, deadline: Deadline) -> AnswerStream:
        """An answer in chunks; returns when the first is there. Retries like `infer`, before that only."""
        try:
            return await self._stream(reference, request, deadline)
        except WorkerLost as lost:
            if lost.sent:
                raise
        return await self._stream(reference, request, deadline)

    def waiting(self, worker_id: str) -> int:
        """How many requests wait for a place at a worker."""
        bulkhead = self._bulkheads.get(worker_id)
        return 0 if bulkhead is None else bulkhead.waiting

    async def _infer(self, reference: str, request: Request, deadline: Deadline) -> Answer:
        visit = self._visit(await self._resident(reference, deadline), request)
        code = "cancelled"
        try:
            if not visit.try_enter():
                await visit.wait(deadline)
            if deadline.at is None:
                reply = await visit.link.infer(request)
            else:
                reply = await _within(deadline, visit.link, request)
            code = "ok"
            return Answer(reply, visit.resident.reference, visit.resident.digest, visit.queue_s)
        except MocError as error:
            code = error.code
            raise
        finally:
            visit.end(code)

    async def _stream(self, reference: str, request: Request, deadline: Deadline) -> AnswerStream:
        visit = self._visit(await self._resident(reference, deadline), request)
        try:
            if not visit.try_enter():
                await visit.wait(deadline)
            stream = AnswerStream(visit, visit.link.stream(request), deadline)
        except BaseException as error:
            visit.end(error.code if isinstance(error, MocError) else "cancelled")
            raise
        await stream.begin()
        return stream

    async def _resident(self, reference: str, deadline: Deadline) -> Resident:
        found = self._residents.find(reference)
        return found if found is not None else await self._residents.ensure_ready(reference, deadline)

    def _visit(self, resident: Resident, request: Request) -> _Visit:
        link = self._links.link(resident.worker_id)
        if link is None or not link.alive:
            raise WorkerLost(f"the worker of {resident.reference} is gone; try again shortly", sent=False)
        if request.kind not in link.info.kinds:
            can = ", ".join(link.info.kinds)
            raise Unimplemented(f"{resident.reference} cannot do {request.kind}; it can do {can}")
        bulkhead = self._bulkheads.get(resident.worker_id)
        if bulkhead is None:
            bulkhead = self._new_bulkhead(resident, link)
        return _Visit(resident, link, bulkhead, self._meter, request.kind)

    def _new_bulkhead(self, resident: Resident, link: Link) -> Bulkhead:
        for gone in [worker_id for worker_id in self._bulkheads if self._links.link(worker_id) is None]:
            del self._bulkheads[gone]
        bulkhead = self._bulkheads[resident.worker_id] = Bulkhead(
            resident.reference,
            max_concurrent=max(1, min(resident.max_concurrent, link.info.concurrency)),
            max_queue=resident.max_queue,
        )
        return bulkhead


async def _within(deadline: Deadline, link: Link, request: Request) -> Reply:
    try:
        async with asyncio.timeout(deadline.remaining_s()):
            return await link.infer(request)
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed while the model worked on it; allow more time") from None
