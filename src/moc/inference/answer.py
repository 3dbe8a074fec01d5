"""What a caller gets: an answer, or a stream of its chunks, and the place at the model that is held meanwhile."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from moc.inference.ports import Link, Resident
from moc.inference.request import Reply
from moc.kernel.errors import DeadlineExceeded, MocError
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


class Visit:
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

    def __init__(self, visit: Visit, chunks: AsyncIterator[list[bytes]], deadline: Deadline) -> None:
        self.reference = visit.resident.reference
        self.digest = visit.resident.digest
        self.queue_s = visit.queue_s
        self._visit: Visit | None = visit
        self._chunks = chunks
        self._deadline = deadline
        self._ready: deque[bytes] = deque()
        self._given = 0
        self._at_end: list[Callable[[], None]] = []

    async def begin(self) -> None:
        """Wait for the first chunk, so that what goes wrong before it is raised here."""
        self._ready.extend(await self._more())

    def at_end(self, tell: Callable[[], None]) -> None:
        """Call `tell` once the place is given back; at once when it is."""
        if self._visit is None:
            tell()
        else:
            self._at_end.append(tell)

    def __aiter__(self) -> "AnswerStream":
        return self

    async def __anext__(self) -> bytes:
        if not self._ready:
            self._ready.extend(await self._more())
            if not self._ready:
                raise StopAsyncIteration
        self._given += 1
        return self._ready.popleft()

    async def some(self) -> list[bytes]:
        """The chunks that are there by now, at least one; none when the answer is whole."""
        chunks = list(self._ready) or await self._more()
        self._ready.clear()
        self._given += len(chunks)
        return chunks

    async def aclose(self) -> None:
        """Stop the engine's work on it and give the place back; idempotent."""
        await self._end("cancelled")

    async def _more(self) -> list[bytes]:
        if self._visit is None:
            return []
        try:
            async with asyncio.timeout(self._deadline.remaining_s()):
                return await anext(self._chunks)
        except StopAsyncIteration:
            await self._end("ok")
            return []
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
