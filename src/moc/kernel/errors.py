"""The one tree of errors. An error knows its code and its story, never a transport.

Each message says what happened, to what, and what to do about it. `transports/status.py` maps the
code to REST, gRPC and ZeroMQ.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class MocError(Exception):
    """Base of everything the coordinator refuses or fails with.

    `details` is a JSON-encodable mapping for programs; `retry_after_s`, when set, is how many seconds
    a caller should wait before asking again.
    """

    code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})
        self.retry_after_s = retry_after_s


class InvalidRequest(MocError):
    code = "invalid_request"


class Unauthenticated(MocError):
    code = "unauthenticated"


class Forbidden(MocError):
    code = "forbidden"


class NotFound(MocError):
    code = "not_found"


class Conflict(MocError):
    """The thing exists already, is in the wrong state, or was changed by someone else meanwhile."""

    code = "conflict"


class TooLarge(MocError):
    code = "too_large"


class NotLeader(MocError):
    """The caller's term is over: a newer holder of the seat exists."""

    code = "not_leader"


class RateLimited(MocError):
    code = "rate_limited"


class QueueFull(MocError):
    code = "queue_full"


class Cancelled(MocError):
    code = "cancelled"


class Internal(MocError):
    code = "internal"


class Unimplemented(MocError):
    """This engine, model or version cannot do what was asked."""

    code = "unimplemented"


class LoadFailed(MocError):
    """A model could not be loaded; `reason` is one of the failure reasons of a model version."""

    code = "load_failed"

    def __init__(self, message: str, *, reason: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, details={**(details or {}), "reason": reason})
        self.reason = reason


class WorkerLost(MocError):
    """The worker went away. `sent` tells whether it had been given the request (so may have run it)."""

    code = "worker_lost"

    def __init__(self, message: str, *, sent: bool, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, details={**(details or {}), "sent": sent})
        self.sent = sent


class Unavailable(MocError):
    code = "unavailable"


class StoreUnavailable(MocError):
    code = "store_unavailable"


class CircuitOpen(MocError):
    code = "circuit_open"


class DeadlineExceeded(MocError):
    code = "deadline_exceeded"


class DeadlineUnreachable(MocError):
    code = "deadline_unreachable"


class NoCapacity(MocError):
    code = "no_capacity"


def _tree(root: type[MocError]) -> dict[str, type[MocError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


ERRORS: dict[str, type[MocError]] = {**_tree(MocError), "internal": Internal}
"""Every code with its class."""


def error_for(code: str, message: str, details: Mapping[str, Any] | None = None) -> MocError:
    """Rebuild an error that crossed a process boundary as (code, message, details)."""
    details = dict(details or {})
    if code == "load_failed":
        return LoadFailed(message, reason=str(details.get("reason", "load_failed")), details=details)
    if code == "worker_lost":
        return WorkerLost(message, sent=bool(details.get("sent", True)), details=details)
    return ERRORS.get(code, Internal)(message, details=details)


def code_of(error: BaseException) -> str:
    """The code of what ended some work: `internal` when nobody foresaw it, `cancelled` when it is no error at all."""
    if isinstance(error, MocError):
        return error.code
    return Internal.code if isinstance(error, Exception) else Cancelled.code


def retold(error: MocError, *, message: str | None = None, **details: Any) -> MocError:
    """A copy of an error with more to tell; the original may have been given to others too."""
    told = error_for(error.code, error.message if message is None else message, {**error.details, **details})
    told.retry_after_s = error.retry_after_s
    return told
