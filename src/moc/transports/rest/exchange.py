"""One HTTP request and its answer, with no more between them than is needed."""

import base64
import binascii
import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

import msgspec
from starlette.datastructures import QueryParams
from starlette.types import Message, Receive, Scope, Send

from moc.kernel.errors import TooLarge
from moc.resilience.deadline import Deadline
from moc.security.identity import Identity
from moc.service.inference import Answer, AnswerStream, Terms
from moc.transports.headers import deadline_of, provenance, request_id_of, terms_of
from moc.transports.rest.disconnect import Watch, Watchman
from moc.transports.rest.limits import Limits
from moc.transports.status import Shape

Header = tuple[bytes, bytes]
Buffer = bytes | bytearray | memoryview
WRITER: Final = "moc.writer"
"""Where an ASGI scope carries the connection's Writer, if it has one."""

CERTIFICATE: Final = "moc.certificate"
"""Where an ASGI scope carries the common name of the client's certificate, if it showed one."""

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
        "_began_at",
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
        self._began_at = time.monotonic()
        self.scope = scope
        self.limits = limits
        self.gone = False
        self.started = False
        self.shape = shape_of(scope["path"])
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self._watchman = watchman
        self.request_id = request_id_of(self._headers.get(b"x-moc-request-id"))

    @property
    def address(self) -> str:
        """The IP address that the connection comes from, '' when it has none."""
        client = self.scope.get("client")
        return client[0] if client else ""

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """The request's headers by their lower-case names."""
        return self._headers

    def header(self, name: bytes) -> bytes | None:
        """A request header by its lower-case name."""
        return self._headers.get(name)

    def path(self, name: str) -> str:
        """A part of the path by the name its route gives it."""
        part: str = self.scope["path_params"][name]
        return part

    @property
    def query(self) -> QueryParams:
        """What stands behind the question mark."""
        return QueryParams(self.scope["query_string"])

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

    @property
    def certificate(self) -> str | None:
        """The common name of the client's certificate, which TLS has proved."""
        name: str | None = self.scope.get(CERTIFICATE)
        return name

    def deadline(self) -> Deadline:
        """From `x-moc-deadline-ms`, counted from when the request's head came.

        InvalidRequest when that is not a number of milliseconds up to a day.
        """
        return deadline_of(self._headers.get(b"x-moc-deadline-ms"), self._began_at)

    def terms(self) -> Terms:
        """How the caller wants it served; InvalidRequest for headers that do not say it right."""
        given = self._headers.get
        return terms_of(
            given(b"x-moc-deadline-ms"),
            given(b"x-moc-priority"),
            given(b"x-moc-session"),
            given(b"idempotency-key"),
            began_at=self._began_at,
        )

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
    if path == "/tokenize":  # vLLM's, whose API is OpenAI's otherwise
        return Shape.OPENAI
    if not path.startswith("/v1/"):
        return Shape.NATIVE
    return Shape.ANTHROPIC if path == "/v1/messages" or path.startswith("/v1/messages/") else Shape.OPENAI


def inference_headers(answer: Answer | AnswerStream) -> tuple[Header, Header, Header]:
    """What every inference answer says of where it came from."""
    first, second, third = provenance(answer)
    return _encoded(first), _encoded(second), _encoded(third)


def _encoded(header: tuple[str, str]) -> Header:
    name, value = header
    return name.encode("ascii"), value.encode("ascii")


def _password(credentials: bytes) -> str | None:
    try:
        decoded = base64.b64decode(credentials.strip(), validate=True)
    except binascii.Error:
        return None
    return decoded.partition(b":")[2].decode("latin-1")
