"""What callers say beside a request and are told beside the answer, in HTTP headers or gRPC metadata."""

import itertools
import re
from typing import Final

from moc.kernel.errors import InvalidRequest
from moc.kernel.ids import new_id
from moc.resilience.deadline import NEVER, Deadline
from moc.service.inference import Answer, AnswerStream, Terms

DEADLINE: Final = "x-moc-deadline-ms"
PRIORITY: Final = "x-moc-priority"
SESSION: Final = "x-moc-session"
REPEATABLE: Final = "idempotency-key"

PRIORITY_MAX: Final = 10
"""The lowest priority a request can have; 1 is the highest."""

SESSION_MAX: Final = 256

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_PROCESS: Final = new_id("req")
_COUNT: Final = itertools.count(1)
_DAY_MS: Final = 86_400_000
_ORDINARY: Final = Terms()


def request_id_of(given: bytes | None) -> str:
    """The caller's own id for a request if it is a sane one, else one that is new."""
    if given is not None and _REQUEST_ID.fullmatch(given) is not None:
        return given.decode("ascii")
    return f"{_PROCESS}-{next(_COUNT):x}"


def deadline_of(given: bytes | None, began_at: float) -> Deadline:
    """From `x-moc-deadline-ms` of a request that came then; InvalidRequest unless it is milliseconds up to a day."""
    if given is None:
        return NEVER
    if not (given.isdigit() and len(given) < 10 and 0 < int(given) <= _DAY_MS):
        raise InvalidRequest(f"{DEADLINE} must be a whole number from 1 to {_DAY_MS}, not {given[:40]!r}")
    return Deadline(began_at + int(given) / 1000)


def terms_of(
    deadline: bytes | None,
    priority: bytes | None,
    session: bytes | None,
    repeatable: bytes | None,
    *,
    began_at: float,
) -> Terms:
    """From the four headers by which callers say how a request that came then is to be served, None = not sent.

    InvalidRequest for a deadline as in `deadline_of`, a priority that is not 1 to 10, a session of more than 256
    characters. A request may be run more than once when it has an idempotency key, whatever that is.
    """
    if deadline is None and priority is None and session is None and repeatable is None:
        return _ORDINARY
    return Terms(
        deadline_of(deadline, began_at),
        _ORDINARY.priority if priority is None else _priority_of(priority),
        "" if session is None else checked_session(session.decode("latin-1")),
        repeatable is not None,
    )


def checked_priority(given: int) -> int:
    """A priority; InvalidRequest unless it is from 1 to 10."""
    if not 1 <= given <= PRIORITY_MAX:
        raise InvalidRequest(f"the priority of a request is from 1, the highest, to {PRIORITY_MAX}, not {given}")
    return given


def checked_session(given: str) -> str:
    """The name of a session; InvalidRequest when it is too long."""
    if len(given) > SESSION_MAX:
        raise InvalidRequest(f"the name of a session has at most {SESSION_MAX} characters, not {len(given)}")
    return given


def _priority_of(given: bytes) -> int:
    if not (given.isdigit() and len(given) < 10):
        raise InvalidRequest(f"{PRIORITY} must be a whole number from 1 to {PRIORITY_MAX}, not {given[:40]!r}")
    return checked_priority(int(given))


def provenance(answer: Answer | AnswerStream) -> tuple[tuple[str, str], tuple[str, str], tuple[str, str]]:
    """What every inference answer says of where it came from."""
    return (
        ("x-moc-model", answer.reference),
        ("x-moc-digest", answer.digest),
        ("x-moc-queue-ms", f"{answer.queue_s * 1000:.3f}"),
    )
