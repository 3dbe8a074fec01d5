"""What it means for a caller when an upstream does not answer, or not as it should."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from moc.kernel.errors import Internal, InvalidRequest, MocError, QueueFull, TooLarge, Unavailable, Unimplemented
from moc.security.redact import redacted

MESSAGE_MAX = 500
RETRY_AFTER_MAX_S = 3600.0
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]+")


class _Said(msgspec.Struct):
    error: Any = None
    message: Any = None
    detail: Any = None


_said_decoder = msgspec.json.Decoder(_Said)


def refusal(who: str, status: int, body: bytes, *, retry_after: str | None, key_name: str | None) -> MocError:
    """The error for an answer that is not one: its `status`, the `body` it came with and its Retry-After.

    `who` names the upstream and `key_name` what it was shown, which is never what the upstream says of it.
    """
    error = _refusal(who, status, body, key_name)
    error.retry_after_s = _seconds(retry_after)
    return error


def fault(who: str, error: object) -> MocError:
    """The error for what an upstream says in the midst of an answer: the value of its `error`."""
    message, code = _message_of(error), error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 600:
        return _refusal(who, code, msgspec.json.encode({"error": message}), None)
    if isinstance(error, dict) and error.get("type") == "invalid_request_error":
        return InvalidRequest(f"{who} refused the request: {message}")
    return Internal(f"{who} failed: {message}")


def _refusal(who: str, status: int, body: bytes, key_name: str | None) -> MocError:
    said = _said_in(body)
    match status:
        case 401 | 403:
            shown = "it was shown no key" if key_name is None else f"check the key in {key_name}"
            return Unavailable(f"{who} refused access ({status}); {shown}")
        case 404 if "model" in said.lower():
            return Unavailable(f"{who} does not have the model: {said}")
        case 404 | 405 | 501:
            return Unimplemented(f"{who} cannot do this ({status}): {said}")
        case 413:
            return TooLarge(f"{who} takes less at once: {said}")
        case 429:
            return QueueFull(f"{who} has too much to do: {said}")
        case 402 | 408 | 502 | 503 | 504 | 507 | 529:
            return Unavailable(f"{who} is not available ({status}): {said}")
        case _ if 300 <= status < 400:
            return Unavailable(f"{who} sends requests elsewhere ({status}); name the place itself")
        case _ if 400 <= status < 500:
            return InvalidRequest(f"{who} refused the request: {said}")
    return Internal(f"{who} failed ({status}): {said}")


def _said_in(body: bytes) -> str:
    """The message in the body of an error."""
    try:
        found = _said_decoder.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return _shown(body.decode("utf-8", "replace"))
    return _message_of(found.error or found.message or found.detail)


def _message_of(error: object) -> str:
    if isinstance(error, dict):
        error = error.get("message") or error
    return _shown(error if isinstance(error, str) else msgspec.json.encode(error).decode() if error else "")


def _shown(text: str) -> str:
    return redacted(_UNPRINTABLE.sub(" ", text).strip()[:MESSAGE_MAX]) or "it does not say why"


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After, which is seconds or a date; None when it is neither."""
    if not retry_after:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            moment = parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(0.0, seconds), RETRY_AFTER_MAX_S)  # of what is no number, 0
