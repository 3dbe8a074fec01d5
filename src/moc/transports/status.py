"""The one table from an error's code to what each protocol calls it, and the bodies errors travel in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

import msgspec

from moc.kernel.errors import Internal, MocError


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What an error's code is called elsewhere.

    `http` is the REST status, `oip` the one on Open Inference Protocol routes (whose clients retry on 503
    only), `grpc` the name of the gRPC code, `openai` the `type` and `openai_code` the `code` of an OpenAI
    error, `anthropic` the `type` of an Anthropic one; `retry` tells whether asking again, unchanged, may succeed.
    """

    http: int
    grpc: str
    openai: str
    anthropic: str
    openai_code: str = ""
    oip: int = 0
    retry: bool = False


_INVALID = "invalid_request_error"
_LIMIT = "rate_limit_error"
_SERVER = "server_error"
_TIMEOUT = "timeout_error"
_API = "api_error"
_OVERLOADED = "overloaded_error"

STATUSES: Mapping[str, Status] = MappingProxyType(
    {
        "invalid_request": Status(http=400, grpc="INVALID_ARGUMENT", openai=_INVALID, anthropic=_INVALID),
        "unauthenticated": Status(
            http=401,
            grpc="UNAUTHENTICATED",
            openai="authentication_error",
            anthropic="authentication_error",
            openai_code="invalid_api_key",
        ),
        "forbidden": Status(
            http=403, grpc="PERMISSION_DENIED", openai="permission_error", anthropic="permission_error"
        ),
        "not_found": Status(http=404, grpc="NOT_FOUND", openai=_INVALID, anthropic="not_found_error"),
        "conflict": Status(http=409, grpc="ABORTED", openai=_INVALID, anthropic=_INVALID),
        "too_large": Status(http=413, grpc="RESOURCE_EXHAUSTED", openai=_INVALID, anthropic="request_too_large"),
        "not_leader": Status(http=421, grpc="FAILED_PRECONDITION", openai=_SERVER, anthropic=_OVERLOADED, retry=True),
        "rate_limited": Status(http=429, grpc="RESOURCE_EXHAUSTED", openai=_LIMIT, anthropic=_LIMIT, retry=True),
        "queue_full": Status(
            http=429, oip=503, grpc="RESOURCE_EXHAUSTED", openai=_LIMIT, anthropic=_OVERLOADED, retry=True
        ),
        "cancelled": Status(http=499, grpc="CANCELLED", openai=_SERVER, anthropic=_API),
        "internal": Status(http=500, grpc="INTERNAL", openai=_SERVER, anthropic=_API),
        "unimplemented": Status(http=501, grpc="UNIMPLEMENTED", openai=_INVALID, anthropic=_INVALID),
        "load_failed": Status(http=503, grpc="UNAVAILABLE", openai=_SERVER, anthropic=_API),
        "worker_lost": Status(http=503, grpc="UNAVAILABLE", openai=_SERVER, anthropic=_OVERLOADED, retry=True),
        "unavailable": Status(http=503, grpc="UNAVAILABLE", openai=_SERVER, anthropic=_OVERLOADED, retry=True),
        "store_unavailable": Status(http=503, grpc="UNAVAILABLE", openai=_SERVER, anthropic=_OVERLOADED, retry=True),
        "circuit_open": Status(http=503, grpc="UNAVAILABLE", openai=_SERVER, anthropic=_OVERLOADED, retry=True),
        "deadline_exceeded": Status(
            http=504, oip=503, grpc="DEADLINE_EXCEEDED", openai=_TIMEOUT, anthropic=_TIMEOUT, retry=True
        ),
        "deadline_unreachable": Status(
            http=504, oip=503, grpc="DEADLINE_EXCEEDED", openai=_TIMEOUT, anthropic=_TIMEOUT, retry=True
        ),
        "no_capacity": Status(http=507, grpc="RESOURCE_EXHAUSTED", openai=_SERVER, anthropic=_OVERLOADED, retry=True),
    }
)
"""Every code of `kernel.errors.ERRORS`."""


class Shape(Enum):
    """Whose error body an answer has."""

    NATIVE = "native"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OIP = "oip"


def status_of(error: MocError) -> Status:
    """The error's row; that of `internal` for a code the table does not have."""
    return STATUSES.get(error.code, STATUSES["internal"])


def http_status(error: MocError, shape: Shape) -> int:
    """The HTTP status of an error on a route of that protocol."""
    status = status_of(error)
    return status.oip or status.http if shape is Shape.OIP else status.http


def retry_after_s(error: MocError) -> int | None:
    """Whole seconds for a `Retry-After` header, at least 1; None when asking again cannot help."""
    if error.retry_after_s is not None:
        return max(1, math.ceil(error.retry_after_s))
    return 1 if status_of(error).retry else None


def http_body(error: MocError, shape: Shape, request_id: str) -> bytes:
    """The JSON body of an error on a route of that protocol."""
    if shape is Shape.OPENAI:
        return openai_body(error)
    if shape is Shape.ANTHROPIC:
        return anthropic_body(error, request_id)
    if shape is Shape.OIP:
        return oip_body(error)
    return native_body(error, request_id)


def native_body(error: MocError, request_id: str) -> bytes:
    """`{"error": {"code", "message", "request_id", "details"?}}`."""
    story: dict[str, Any] = {"code": error.code, "message": error.message, "request_id": request_id}
    if error.details:
        story["details"] = error.details
    return msgspec.json.encode({"error": story})


def openai_body(error: MocError) -> bytes:
    """`{"error": {"message", "type", "code", "param"}}`; `details.param` and `details.code` fill the last two."""
    status = status_of(error)
    code = error.details.get("code") or status.openai_code or error.code
    story = {"message": error.message, "type": status.openai, "code": code, "param": error.details.get("param")}
    return msgspec.json.encode({"error": story})


def anthropic_body(error: MocError, request_id: str) -> bytes:
    """`{"type": "error", "error": {"type", "message"}, "request_id"}`."""
    story = {"type": status_of(error).anthropic, "message": error.message}
    return msgspec.json.encode({"type": "error", "error": story, "request_id": request_id})


def oip_body(error: MocError) -> bytes:
    """`{"error": "message"}`."""
    return msgspec.json.encode({"error": error.message})


def zmq_error(error: MocError) -> dict[str, Any]:
    """`{"code", "message", "details"?, "retry_after_s"?}`."""
    story: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.details:
        story["details"] = error.details
    wait = retry_after_s(error)
    if wait is not None:
        story["retry_after_s"] = wait
    return story


def unexpected(request_id: str) -> Internal:
    """What a caller is told of a fault in the coordinator itself: nothing of its inside."""
    return Internal(
        f"the coordinator failed while answering; its log has the cause under request {request_id}, please report it"
    )
