"""Protobuf messages from bytes, and from what the services answer with."""

from typing import Any, Final, TypeVar

import msgspec
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import Struct

from moc.kernel.errors import InvalidRequest

M = TypeVar("M", bound=Message)

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1000
_EXACT: Final = 2.0**53


def read(kind: type[M], data: bytes) -> M:
    """The message in `data`; InvalidRequest when it is none of that kind."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InvalidRequest(f"the request is not a {kind.DESCRIPTOR.full_name}") from None


def message_of(kind: type[M], view: Any) -> M:
    """A view as the message whose fields have the same names; null is absent, RFC 3339 becomes a timestamp."""
    return json_format.Parse(msgspec.json.encode(view), kind())


def fields_of(struct: Struct) -> dict[str, Any]:
    """What a Struct holds; numbers that are whole become so again, for a Struct has no other kind than floats."""
    return {key: _plain(value) for key, value in json_format.MessageToDict(struct).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value


def page_of(after: str, limit: int) -> tuple[str | None, int]:
    """The `after` and `limit` of a list; InvalidRequest for a limit that is none."""
    if not 0 <= limit <= LIMIT_MAX:
        raise InvalidRequest(f"`limit` is 1 to {LIMIT_MAX}, not {limit}")
    return after or None, limit or LIMIT_DEFAULT
