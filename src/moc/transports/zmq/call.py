"""One request as its action sees it, and what the action makes of it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw

from moc.kernel.errors import InvalidRequest, Unauthenticated
from moc.resilience.deadline import Deadline
from moc.security.identity import Identity
from moc.service.inference import Answer, AnswerStream, Terms
from moc.transports.zmq.message import JSON, Form
from moc.transports.zmq.router import Buffer

T = TypeVar("T")
Emit = Callable[[Any], Awaitable[None]]


class Outcome(msgspec.Struct, gc=False):
    """What an action answers: a value, the frames behind it, and the inference that it comes from if it does.

    `undo` takes back what was done when there is nobody left to be told of it.
    """

    result: Any = UNSET
    frames: Sequence[Buffer] = ()
    source: Answer | AnswerStream | None = None
    undo: Callable[[], Awaitable[object]] | None = None


@dataclass(slots=True)
class Call:
    """A request; `caller` is None if no key was shown.

    `emit` sends a piece of an answer, None if only a whole one is taken; `cancel` ends another request of the same
    peer by its id, and tells whether there was one. By its `idempotency_key` a request that is asked again is known.
    """

    request_id: str
    caller: Identity | None
    terms: Terms
    form: Form
    payload: Raw
    tensors: Sequence[memoryview]
    emit: Emit | None
    cancel: Callable[[str], bool]
    idempotency_key: str

    @property
    def identity(self) -> Identity:
        """Who asks; Unauthenticated when no key was shown."""
        if self.caller is None:
            raise no_key()
        return self.caller

    @property
    def deadline(self) -> Deadline:
        """The moment by which the caller wants its answer."""
        return self.terms.deadline

    def read(self, kind: type[T]) -> T:
        """The payload; InvalidRequest with the place of whatever is wrong with it."""
        return self.form.read(self.payload, kind)

    def document(self, **changes: Any) -> Buffer:
        """The payload as JSON text, as it came unless something is to be changed."""
        if self.form is JSON and not changes:
            return memoryview(self.payload)
        fields: dict[str, Any] = {**self.read(dict[str, Any]), **changes}
        try:
            return msgspec.json.encode(fields)
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"the payload has something that JSON has not: {error}") from None


def no_key() -> Unauthenticated:
    """What a caller is told that shows none."""
    return Unauthenticated("this needs a key: send it in the message, as `key` (`moc keys show` prints yours)")


Handler = Callable[[Call], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something that can be asked: with `keyless` also without a key; if `patient` it may wait for long, and a server
    that stops does not wait for it.
    """

    handle: Handler
    keyless: bool = False
    patient: bool = False
