"""What every store accepts and how it writes it down: keys, key ranges, values, events."""

import dataclasses
from collections.abc import Sequence

import msgspec

from moc.kernel.errors import InvalidRequest, TooLarge
from moc.kernel.events import Event
from moc.kernel.records import Fence, Op, Put

VALUE_MAX_BYTES = 16 * 1024**2
"""The largest value a record may have: large things are files, records only name them."""

_LAST_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)


def check_key(key: str) -> str:
    """`key` itself; InvalidRequest when it has no UTF-8 form (a lone surrogate)."""
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{key!r} is not valid Unicode; remove the lone surrogate from the name") from None
    return key


def check_ops(ops: Sequence[Op]) -> tuple[Op, ...]:
    """The operations as they are now; InvalidRequest for a bad key, TooLarge for a value over VALUE_MAX_BYTES."""
    for op in ops:
        if isinstance(op, Fence):
            continue
        check_key(op.key)
        if isinstance(op, Put) and len(op.value) > VALUE_MAX_BYTES:
            raise TooLarge(f"{op.key} would be {len(op.value)} bytes; a record holds at most {VALUE_MAX_BYTES}")
    return tuple(ops)


def prefix_end(prefix: str) -> str | None:
    """The first string after all that start with `prefix`; None when there is none (an empty prefix, say)."""
    kept = prefix.rstrip(chr(_LAST_CODE_POINT))
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    if following in _SURROGATES:
        following = _SURROGATES.stop
    return kept[:-1] + chr(following)


def encode_event(event: Event, at: float) -> bytes:
    """`event` as JSON, happened at `at`; InvalidRequest when its data has no JSON form."""
    try:
        return _encoder.encode(dataclasses.replace(event, id=0, at=at))
    except (TypeError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidRequest(f"event {event.kind} of {event.subject!r} cannot be written as JSON: {error}") from None


def decode_event(event_id: int, body: bytes) -> Event:
    """The event stored as `body` under `event_id`."""
    return dataclasses.replace(_decoder.decode(body), id=event_id)
