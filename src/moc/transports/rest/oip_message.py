"""Inference messages of the Open Inference Protocol over HTTP: JSON, and JSON with binary tensors behind it."""

from typing import Final

import msgspec

from moc.kernel.errors import InvalidRequest
from moc.service.inference import Answer
from moc.transports.oip.message import InferRequest, Wanted, response_to, wanted_by
from moc.transports.rest.body import decoded
from moc.transports.rest.exchange import JSON, Header

_HEADER_LENGTH: Final = b"inference-header-content-length"
_BINARY: Final = b"application/octet-stream"
_decoder: Final = msgspec.json.Decoder(InferRequest)
_encoder: Final = msgspec.json.Encoder()


def header_length(value: bytes | None, size: int) -> int | None:
    """`Inference-Header-Content-Length`: how much of a body of `size` bytes is JSON, None when all of it is."""
    if value is None:
        return None
    if not (value.isdigit() and len(value) < 19 and int(value) <= size):
        raise InvalidRequest(
            f"{_HEADER_LENGTH.decode()} must be a number of bytes within the body of {size}, not {value[:40]!r}"
        )
    return int(value)


def parse(body: bytes, json_bytes: int | None) -> Wanted:
    """Read a request whose first `json_bytes` are JSON (None = all). InvalidRequest says what is wrong with it."""
    if json_bytes is None:
        return wanted_by(decoded(_decoder, body), b"")
    view = memoryview(body)
    return wanted_by(decoded(_decoder, view[:json_bytes]), view[json_bytes:])


def render(answer: Answer, wanted: Wanted, request_id: str) -> tuple[bytes, bytes, tuple[Header, ...]]:
    """An answer as (body, media type, extra headers); the id is the caller's own or else `request_id`."""
    response, binary = response_to(wanted, answer, request_id)
    encoded = _encoder.encode(response)
    if not binary:
        return encoded, JSON, ()
    return b"".join([encoded, *binary]), _BINARY, ((_HEADER_LENGTH, b"%d" % len(encoded)),)
