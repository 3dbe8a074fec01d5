"""Answers that come in pieces, as server-sent events."""

from collections.abc import Callable

import structlog

from moc.kernel.errors import MocError
from moc.service.inference import AnswerStream
from moc.transports.rest.exchange import EVENTS, Exchange, inference_headers
from moc.transports.status import http_body, unexpected

log = structlog.get_logger(__name__)


def event(data: bytes) -> bytes:
    """One server-sent event. `data` is JSON, in which a line break can only be white space."""
    if b"\n" in data or b"\r" in data:
        data = data.replace(b"\r", b" ").replace(b"\n", b" ")
    return b"data: " + data + b"\n\n"


async def send_stream(
    exchange: Exchange, stream: AnswerStream, *, chunk: Callable[[bytes], bytes] = bytes, last: bytes = b""
) -> None:
    """Send each piece as `chunk` makes it, then `last`; an error on the way becomes the last event.

    The engine's work ends with this call, however it ends.
    """
    try:
        await exchange.start(200, media=EVENTS, headers=inference_headers(stream))
        try:
            async for piece in stream:
                await exchange.write(event(chunk(piece)))
        except MocError as error:
            last = event(http_body(error, exchange.shape, exchange.request_id))
        except Exception as error:
            log.error("stream failed", request_id=exchange.request_id, exc_info=error)
            last = event(http_body(unexpected(exchange.request_id), exchange.shape, exchange.request_id))
        if last:
            await exchange.write(last)
        await exchange.end()
    finally:
        await stream.aclose()
