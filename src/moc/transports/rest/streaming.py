"""Answers that come in pieces, as server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from moc.kernel.errors import InvalidRequest, MocError
from moc.service.inference import AnswerStream
from moc.transports.rest.exchange import EVENTS, Exchange, inference_headers
from moc.transports.status import http_body, unexpected

log = structlog.get_logger(__name__)

V = TypeVar("V")


class Teller(Protocol):
    """Tells an answer in the events of some protocol; each method gives what is to be sent, maybe nothing."""

    def begin(self, reference: str) -> bytes:
        """Before the first piece; `reference` is the version that answers."""
        ...

    def piece(self, data: bytes) -> bytes:
        """One piece, as the engine made it."""
        ...

    def end(self) -> bytes:
        """After the last piece."""
        ...

    def fail(self, error: MocError, body: bytes) -> bytes:
        """Instead of all that would have followed; `body` is the error as an answer of its own would have it."""
        ...


def event(data: bytes) -> bytes:
    """One server-sent event. `data` is JSON, in which a line break can only be white space."""
    if b"\n" in data or b"\r" in data:
        data = data.replace(b"\r", b" ").replace(b"\n", b" ")
    return b"data: " + data + b"\n\n"


def typed_event(document: Mapping[str, Any]) -> bytes:
    """One server-sent event that is called what the document's `type` says."""
    return b"event: " + str(document["type"]).encode() + b"\n" + event(msgspec.json.encode(document))


def numbered_event(number: int, name: str, view: Any) -> bytes:
    """One server-sent event with an id, behind which a client that comes again may go on."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, name.encode(), msgspec.json.encode(view))


def event_id(text: str) -> int:
    """The number in `Last-Event-ID`."""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidRequest(f"Last-Event-ID must be the id of an event, a number, not {text[:40]!r}")
    return int(text)


async def endless(
    exchange: Exchange,
    views: AsyncIterator[V],
    tell: Callable[[V], bytes],
    closing: asyncio.Event,
    *,
    last: bytes = b"",
) -> AsyncGenerator[bytes, None]:
    """Views as they come, each as `tell` has it, a comment when none came for a while; ends with the server.

    When there are no more views, `last` is the end; an error on the way becomes the last event.
    """
    closed = asyncio.create_task(closing.wait(), name="events-closed")
    coming = asyncio.ensure_future(anext(views, None))
    try:
        yield b": connected\n\n"
        while not closed.done():
            keep_alive_s = exchange.limits.event_keep_alive_s
            done, _ = await asyncio.wait({coming, closed}, timeout=keep_alive_s, return_when=asyncio.FIRST_COMPLETED)
            if coming in done:
                view = coming.result()
                if view is None:
                    yield last
                    return
                coming = asyncio.ensure_future(anext(views, None))
                yield tell(view)
            elif not done:
                yield b": still here\n\n"
    except MocError as error:
        yield event(http_body(error, exchange.shape, exchange.request_id))
    finally:
        closed.cancel()
        coming.cancel()
        await asyncio.gather(closed, coming, return_exceptions=True)
        if isinstance(views, AsyncGenerator):
            await views.aclose()


async def send_stream(
    exchange: Exchange, stream: AnswerStream, *, chunk: Callable[[bytes], bytes] = bytes, last: bytes = b""
) -> None:
    """Send each piece as `chunk` makes it, then `last`; an error on the way becomes the last event.

    The engine's work ends with this call, however it ends.
    """
    await tell_stream(exchange, stream, _Pieces(chunk, last))


async def tell_stream(exchange: Exchange, stream: AnswerStream, teller: Teller) -> None:
    """Send what `teller` makes of the pieces. The engine's work ends with this call, however it ends."""
    try:
        await exchange.start(200, media=EVENTS, headers=inference_headers(stream))
        try:
            await _write(exchange, teller.begin(stream.reference))
            while pieces := await stream.some():
                await _write(exchange, b"".join(map(teller.piece, pieces)))
            last = teller.end()
        except MocError as error:
            last = _failed(exchange, teller, error)
        except Exception as error:
            log.error("stream failed", request_id=exchange.request_id, exc_info=error)
            last = _failed(exchange, teller, unexpected(exchange.request_id))
        await _write(exchange, last)
        await exchange.end()
    finally:
        await stream.aclose()


def _failed(exchange: Exchange, teller: Teller, error: MocError) -> bytes:
    return teller.fail(error, http_body(error, exchange.shape, exchange.request_id))


async def _write(exchange: Exchange, part: bytes) -> None:
    if part:
        await exchange.write(part)


class _Pieces:
    """Every piece an event of its own."""

    def __init__(self, chunk: Callable[[bytes], bytes], last: bytes) -> None:
        self._chunk = chunk
        self._last = last

    def begin(self, reference: str) -> bytes:
        return b""

    def piece(self, data: bytes) -> bytes:
        return event(self._chunk(data))

    def end(self) -> bytes:
        return self._last

    def fail(self, error: MocError, body: bytes) -> bytes:
        return event(body)
