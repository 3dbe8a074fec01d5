"""Turns an answer that is a refusal back into the error the coordinator raised, whatever protocol's shape it has."""

from typing import Any

import msgspec

from moc.kernel.errors import ERRORS, MocError, error_for

_CODES = {
    400: "invalid_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "invalid_request",
    409: "conflict",
    413: "too_large",
    421: "not_leader",
    429: "rate_limited",
    499: "cancelled",
    501: "unimplemented",
    502: "unavailable",
    503: "unavailable",
    504: "deadline_exceeded",
    507: "no_capacity",
}
"""What a status means when the body does not say, as answers in the Open Inference Protocol and proxies do not."""


def error_of(status: int, body: bytes, *, retry_after: str | None = None, request_id: str | None = None) -> MocError:
    """The error an HTTP answer with this status stands for; its id, if known, is `details["request_id"]`."""
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError:
        document = None
    told = document.get("error") if isinstance(document, dict) else None
    error = error_from(told, default=_CODES.get(status, "internal"))
    if error is None:
        text = body[:200].decode("utf-8", "replace").strip()
        error = error_for(_CODES.get(status, "internal"), f"HTTP {status}, not from a coordinator: {text or 'empty'}")
    if retry_after and retry_after.isdecimal():
        error.retry_after_s = float(retry_after)
    if request_id:
        error.details.setdefault("request_id", request_id)
    return error


def error_from(told: Any, *, default: str = "internal") -> MocError | None:
    """The error in the `error` member of an answer, in the native, OpenAI or OIP shape; None when it is in none."""
    if isinstance(told, str):
        return error_for(default, told)
    if not isinstance(told, dict) or not isinstance(told.get("message"), str):
        return None
    code = told.get("code")
    details = told.get("details")
    known = code if isinstance(code, str) and code in ERRORS else default
    error = error_for(known, told["message"], details if isinstance(details, dict) else None)
    if isinstance(told.get("request_id"), str):
        error.details["request_id"] = told["request_id"]
    return error
