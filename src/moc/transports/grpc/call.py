"""One call and what it is answered by: all that a handler knows of gRPC, whichever engine serves it."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from msgspec import structs

from moc.resilience.deadline import Deadline
from moc.security.identity import Identity
from moc.service.inference import Answer, AnswerStream, Terms
from moc.transports.headers import (
    DEADLINE,
    PRIORITY,
    REPEATABLE,
    SESSION,
    deadline_of,
    provenance,
    request_id_of,
    terms_of,
)

Metadata = Sequence[tuple[str, str | bytes]]


class Call:
    """A call as its handler sees it.

    `address` is the IP address it comes from, '' when unknown; `trailers` go out with its status. `identity` is
    set before the handler of a method that is not public runs.
    """

    __slots__ = ("_began_at", "_deadline", "_metadata", "address", "identity", "method", "request_id", "trailers")

    identity: Identity

    def __init__(self, method: str, metadata: Metadata, *, remaining_s: float | None, address: str) -> None:
        self.method = method
        self.address = address
        self._metadata = dict(metadata)
        self._began_at = time.monotonic()
        self._deadline = Deadline.after(remaining_s)
        self.request_id = request_id_of(self._given("x-moc-request-id"))
        self.trailers: list[tuple[str, str | bytes]] = [("x-moc-request-id", self.request_id)]

    def token(self) -> str | None:
        """The key that was sent, as `authorization: Bearer KEY` or `x-api-key: KEY`."""
        scheme, _, key = (self._given("authorization") or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            other = self._given("x-api-key")
            if other is None:
                return None
            key = other
        return key.strip().decode("latin-1")

    def deadline(self) -> Deadline:
        """The sooner of gRPC's own deadline and `x-moc-deadline-ms`, both from the beginning of the call.

        InvalidRequest when the latter is no number.
        """
        deadline, left_s = deadline_of(self._given(DEADLINE), self._began_at), self._deadline.remaining_s()
        return deadline if left_s is None else deadline.sooner(left_s)

    def terms(self) -> Terms:
        """How the caller wants it served, by the headers of the same names; InvalidRequest as for `deadline`."""
        given = self._given
        terms = terms_of(None, given(PRIORITY), given(SESSION), given(REPEATABLE), began_at=self._began_at)
        return structs.replace(terms, deadline=self.deadline())

    def idempotency_key(self) -> str:
        """By which a request that is asked again is known, '' when there is none."""
        return (self._given(REPEATABLE) or b"").decode("latin-1")

    def tell_provenance(self, answer: Answer | AnswerStream) -> None:
        """Say in the trailers which version answered, and after how long a wait."""
        self.trailers += provenance(answer)

    def _given(self, name: str) -> bytes | None:
        value = self._metadata.get(name)
        return value.encode("latin-1", "replace") if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Unary:
    """A method that takes a request and gives an answer, as they go over the wire; `public` ones need no key."""

    handle: Callable[[bytes, Call], Awaitable[bytes]]
    public: bool = False


@dataclass(frozen=True, slots=True)
class Stream:
    """A method that takes any number of requests and gives any number of answers.

    The requests end early once the server drains.
    """

    handle: Callable[[AsyncIterator[bytes], Call], AsyncGenerator[bytes, None]]
    public: bool = False


Method = Unary | Stream
"""Errors are raised."""
