"""What a call that failed is answered with."""

import math
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message

from moc.kernel.errors import MocError
from moc.transports.grpc.stubs.moc.wire.status_pb2 import ErrorInfo, RetryInfo, Status
from moc.transports.status import status_of

DETAILS: Final = "grpc-status-details-bin"
CODES: Final = {
    "CANCELLED": 1,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}
"""The gRPC codes that errors have, with their numbers."""

_MESSAGE_MAX: Final = 2000
_METADATA_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Failure:
    """A status that is not OK: its number, its message, and `details` for the trailers."""

    code: int
    message: str
    details: bytes


def failure_of(error: MocError) -> Failure:
    """The error as gRPC says it, with `google.rpc.ErrorInfo`, and `RetryInfo` if asking again may help."""
    code = CODES[status_of(error).grpc]
    message = error.message if len(error.message) <= _MESSAGE_MAX else f"{error.message[: _MESSAGE_MAX - 3]}..."
    status = Status(code=code, message=message)
    info = ErrorInfo(reason=error.code.upper(), domain="moc", metadata=_metadata(error.details))
    status.details.append(_packed("ErrorInfo", info))
    wait_s = error.retry_after_s if error.retry_after_s is not None else (1.0 if status_of(error).retry else None)
    if wait_s is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(math.ceil(wait_s * 1000))
        status.details.append(_packed("RetryInfo", retry))
    return Failure(code, message, status.SerializeToString())


def _packed(name: str, message: Message) -> Packed:
    """The message under the name that clients know it by."""
    return Packed(type_url=f"type.googleapis.com/google.rpc.{name}", value=message.SerializeToString())


def _metadata(details: dict[str, Any]) -> dict[str, str]:
    """The details as texts; trailers are small, so those that do not fit are left out."""
    found, room = {}, _METADATA_MAX
    for key, value in details.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        room -= len(key) + len(text)
        if room >= 0:
            found[key] = text
    return found
