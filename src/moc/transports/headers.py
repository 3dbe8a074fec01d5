"""What callers say beside a request and are told beside the answer, in HTTP headers or gRPC metadata."""

import itertools
import re
from typing import Final

from moc.kernel.errors import InvalidRequest
from moc.kernel.ids import new_id
from moc.resilience.deadline import NEVER, Deadline
from moc.service.inference import Answer, AnswerStream

DEADLINE: Final = "x-moc-deadline-ms"

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_PROCESS: Final = new_id("req")
_COUNT: Final = itertools.count(1)
_DAY_MS: Final = 86_400_000


def request_id_of(given: bytes | None) -> str:
    """The caller's own id for a request if it is a sane one, else one that is new."""
    if given is not None and _REQUEST_ID.fullmatch(given) is not None:
        return given.decode("ascii")
    return f"{_PROCESS}-{next(_COUNT):x}"


def deadline_of(given: bytes | None) -> Deadline:
    """From `x-moc-deadline-ms`; InvalidRequest when that is not a number of milliseconds up to a day."""
    if given is None:
        return NEVER
    if not (given.isdigit() and len(given) < 10 and 0 < int(given) <= _DAY_MS):
        raise InvalidRequest(f"{DEADLINE} must be a whole number from 1 to {_DAY_MS}, not {given[:40]!r}")
    return Deadline.after(int(given) / 1000)


def provenance(answer: Answer | AnswerStream) -> tuple[tuple[str, str], tuple[str, str], tuple[str, str]]:
    """What every inference answer says of where it came from."""
    return (
        ("x-moc-model", answer.reference),
        ("x-moc-digest", answer.digest),
        ("x-moc-queue-ms", f"{answer.queue_s * 1000:.3f}"),
    )
