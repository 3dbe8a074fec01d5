"""What a caller gets: an answer, or a stream of its chunks, for which a place at the model is held."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec

from moc.inference.request import Reply
from moc.inference.station import Visit
from moc.kernel.errors import DeadlineExceeded, MocError, code_of, retold
from moc.resilience.deadline import Deadline


class _Choice(msgspec.Struct):
    delta: dict[str, Any] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


class Answer(msgspec.Struct, gc=False):
    """What came back, from which version, after how long a wait for a place."""

    reply: Reply
    reference: str
    digest: str
    queue_s: float


class AnswerStream:
    """The JSON chunks of one answer; holds its place at the model until exhausted, failed, closed or out of time.

    The deadline ends it though nobody reads: the next read says so, after the chunks that were there.
    """

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
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.Future[None] | None = None

    async def begin(self) -> None:
        """Wait for the first chunk that says something, so that what goes wrong before it is raised here."""
        while True:
            more = await self._more()
            self._ready.extend(more)
            if not more or not all(map(_says_nothing, more)):
                break
        if self._visit is not None:
            self._visit.answered()

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
        if self._expiry is not None:
            await self._expiry

    async def _more(self) -> list[bytes]:
        if self._expiry is not None:
            await self._report_expiry(self._expiry)
        if self._visit is None:
            return []
        self._stop_timer()
        try:
            async with asyncio.timeout(self._deadline.remaining_s()):
                chunks = await anext(self._chunks)
        except StopAsyncIteration:
            await self._end("ok")
            return []
        except TimeoutError:
            await self._end("deadline_exceeded")
            raise self._late() from None
        except MocError as error:
            await self._end(error.code)
            raise self._broken_off(error) from None
        except BaseException as error:
            await self._end(code_of(error))
            raise
        left_s = self._deadline.remaining_s()
        if left_s is not None:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._expire)
        return chunks

    def _expire(self) -> None:
        """The deadline has passed while nobody reads."""
        self._expiry = asyncio.ensure_future(self._end("deadline_exceeded"))

    async def _report_expiry(self, expiry: "asyncio.Future[None]") -> None:
        """Say once that the deadline has passed."""
        await asyncio.shield(expiry)
        self._expiry = None
        raise self._late()

    def _late(self) -> MocError:
        return self._broken_off(DeadlineExceeded("the deadline passed while the model worked on it; allow more time"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _broken_off(self, error: MocError) -> MocError:
        """What to tell of an error: how far the answer got, if anything of it was given."""
        if not self._given:
            return error
        message = f"the answer is incomplete, it broke off after {self._given} chunks: {error.message}"
        return retold(error, message=message, chunks=self._given, incomplete=True)

    async def _end(self, code: str) -> None:
        self._stop_timer()
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


_decode_chunk: Final = msgspec.json.Decoder(_Chunk).decode


def _says_nothing(chunk: bytes) -> bool:
    """Whether it only announces who will speak, as the first chunk of a chat often does."""
    try:
        choices = _decode_chunk(chunk).choices
    except msgspec.MsgspecError:
        return False
    deltas = [choice.delta for choice in choices]
    return bool(deltas) and not any(
        delta is None or any(value for key, value in delta.items() if key != "role") for delta in deltas
    )
