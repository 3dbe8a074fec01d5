"""One HTTP request and its answer, with no more between them than is needed."""

import base64
import binascii
import contextlib
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import msgspec
from starlette.types import Message, Receive, Scope, Send

from moc.kernel.errors import InvalidRequest, TooLarge
from moc.kernel.ids import new_id
from moc.resilience.deadline import NEVER, Deadline
from moc.security.identity import Identity
from moc.service.inference import Answer, AnswerStream
from moc.transports.rest.disconnect import Watch, Watchman
from moc.transports.rest.limits import Limits
from moc.transports.status import Shape

Header = tuple[bytes, bytes]
Buffer = bytes | bytearray | memoryview
WRITER: Final = "moc.writer"
"""Where an ASGI scope carries the connection's Writer, if it has one."""

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_PROCESS: Final = new_id("req")
_COUNT: Final = itertools.count(1)
_DAY_MS: Final = 86_400_000
JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream; charset=utf-8"


class Writer(Protocol):
    """A short cut past ASGI for answers that are whole."""

    def write(self, status: int, headers: Sequence[Header], body: Buffer) -> bool:
        """Send the answer; False, with nothing sent, when it must go through ASGI instead."""
        ...


class Disconnected(Exception):
    """The client went away before its request was whole; there is nobody to answer."""


class Exchange:
    """A request as its endpoint sees it, and the only way to answer it.

    `gone` is true once the client is known to have left; `started` once the head of the answer is sent.
    """

    __slots__ = (
        "_headers",
        "_receive",
        "_send",
        "_watchman",
        "gone",
        "identity",
        "limits",
        "request_id",
        "scope",
        "shape",
        "started",
    )

    identity: Identity

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits, watchman: Watchman) -> None:
        self.scope = scope
        self.limits = limits
        self.gone = False
        self.started = False
        self.shape = shape_of(scope["path"])
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self._watchman = watchman
        given = self._headers.get(b"x-moc-request-id")
        sane = given is not None and _REQUEST_ID.fullmatch(given) is not None
        self.request_id = given.decode("ascii") if given is not None and sane else f"{_PROCESS}-{next(_COUNT):x}"

    def header(self, name: bytes) -> bytes | None:
        """A request header by its lower-case name."""
        return self._headers.get(name)

    def path(self, name: str) -> str:
        """A part of the path by the name its route gives it."""
        part: str = self.scope["path_params"][name]
        return part

    def token(self, *, basic: bool) -> str | None:
        """The key that was sent; with `basic`, also as the password of HTTP Basic (what a browser can send)."""
        scheme, _, rest = self._headers.get(b"authorization", b"").partition(b" ")
        scheme = scheme.lower()
        if scheme == b"bearer":
            return rest.strip().decode("latin-1")
        if scheme == b"basic" and basic:
            return _password(rest)
        key = self._headers.get(b"x-api-key")
        return None if key is None else key.strip().decode("latin-1")

    def deadline(self) -> Deadline:
        """From `x-moc-deadline-ms`; InvalidRequest when that is not a number of milliseconds up to a day."""
        given = self._headers.get(b"x-moc-deadline-ms")
        if given is None:
            return NEVER
        if not (given.isdigit() and len(given) < 10 and 0 < int(given) <= _DAY_MS):
            raise InvalidRequest(f"x-moc-deadline-ms must be a whole number from 1 to {_DAY_MS}, not {given[:40]!r}")
        return Deadline.after(int(given) / 1000)

    def check_length(self) -> None:
        """TooLarge when the announced body is over the limit, before any of it is read."""
        length = self._headers.get(b"content-length")
        if length is not None and (len(length) > 18 or int(length) > self.limits.body_bytes):
            raise self._too_large()

    async def body(self) -> bytes:
        """The whole body. TooLarge as soon as it passes the limit, Disconnected when it ends early."""
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self.receive()
            part, more = message.get("body", b""), message.get("more_body", False)
            parts.append(part)
            size += len(part)
            if size > self.limits.body_bytes:
                raise self._too_large()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def receive(self) -> Message:
        """The next part of the body; Disconnected when the client has left."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
            raise Disconnected
        return message

    def watch(self) -> Watch:
        """A context in which the client's leaving cancels the task that serves it."""
        return Watch(self._watchman, self._left)

    async def _left(self) -> None:
        """Return when the client has left."""
        with contextlib.suppress(Disconnected):
            while True:
                await self.receive()

    async def answer(self, status: int, body: Buffer, *, media: bytes = JSON, headers: Iterable[Header] = ()) -> None:
        """Send a whole answer."""
        fields = [(b"content-type", media), (b"content-length", b"%d" % len(body)), *headers, *self._own_headers()]
        self.started = True
        writer: Writer | None = self.scope.get(WRITER)
        if writer is None or not writer.write(status, fields, body):
            await self._send({"type": "http.response.start", "status": status, "headers": fields})
            await self._send({"type": "http.response.body", "body": body})

    async def answer_message(self, message: msgspec.Struct | Sequence[msgspec.Struct], status: int = 200) -> None:
        """Send a whole answer as JSON."""
        await self.answer(status, msgspec.json.encode(message))

    async def start(self, status: int, *, media: bytes, headers: Iterable[Header] = ()) -> None:
        """Send the head of an answer whose body follows with `write` and `end`."""
        self.started = True
        fields = [(b"content-type", media), *headers, *self._own_headers()]
        await self._send({"type": "http.response.start", "status": status, "headers": fields})

    async def write(self, part: bytes) -> None:
        """Send more of the body; waits for a client that does not keep up."""
        await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def end(self) -> None:
        """Finish the answer."""
        await self._send({"type": "http.response.body", "body": b""})

    async def send(self, message: Message) -> None:
        """Pass an ASGI message on, with the headers every answer has; for answers not made by an Exchange."""
        if message["type"] == "http.response.start":
            self.started = True
            message["headers"] = [*message.get("headers", ()), *self._own_headers()]
        await self._send(message)

    def _own_headers(self) -> tuple[Header, ...]:
        return (
            (b"x-moc-request-id", self.request_id.encode("ascii")),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-store"),
        )

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than the {self.limits.body_bytes} bytes this server takes; send less")


def shape_of(path: str) -> Shape:
    """Whose protocol a path belongs to."""
    if path.startswith("/v2/") or path == "/v2":
        return Shape.OIP
    return Shape.OPENAI if path.startswith("/v1/") else Shape.NATIVE


def inference_headers(answer: Answer | AnswerStream) -> tuple[Header, Header, Header]:
    """What every inference answer says of where it came from."""
    return (
        (b"x-moc-model", answer.reference.encode("ascii")),
        (b"x-moc-digest", answer.digest.encode("ascii")),
        (b"x-moc-queue-ms", b"%.3f" % (answer.queue_s * 1000)),
    )


def _password(credentials: bytes) -> str | None:
    try:
        decoded = base64.b64decode(credentials.strip(), validate=True)
    except binascii.Error:
        return None
    return decoded.partition(b":")[2].decode("latin-1")
