"""HTTP/1.1 as uvicorn speaks it, for clients that may be slow, endless or hostile."""

import asyncio
from collections.abc import Sequence
from enum import Enum
from http import HTTPStatus
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from moc.kernel.errors import InvalidRequest, MocError, TooLarge, Unavailable
from moc.kernel.ids import new_id
from moc.security.tls import common_name
from moc.transports.rest.exchange import CERTIFICATE, WRITER, Buffer, Header
from moc.transports.rest.limits import Limits
from moc.transports.status import native_body


class _Reading(Enum):
    """What is being read from the client."""

    HEAD = "head"
    BODY = "body"
    NOTHING = "nothing"


class _BadHead(Exception):
    """Makes the parser give up; the answer is in `_refusal`."""


_MALFORMED = (HTTPStatus.BAD_REQUEST, InvalidRequest("this is not a well-formed HTTP/1.1 request"))


class BoundedProtocol(HttpToolsProtocol):
    """A connection that keeps to `limits`. `lost` is done when it is closed; `sweep` looks at the clock.

    Once `closing` is set every answer also says that the connection will be closed.
    """

    def __init__(self, config: Config, state: ServerState, *, limits: Limits, closing: asyncio.Event) -> None:
        super().__init__(config, state, {}, asyncio.get_running_loop())
        self.lost: asyncio.Future[None] = self.loop.create_future()
        self._limits = limits
        self._closing = closing
        self._reading = _Reading.HEAD
        self._since = self.loop.time()
        self._answered_at: float | None = None
        self._blocked_since: float | None = None
        self._head_bytes = 0
        self._refusal: tuple[HTTPStatus, MocError] = _MALFORMED
        self._certificate: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._certificate = common_name(transport.get_extra_info("peercert"))
        if len(self.connections) > self._limits.connections_max:
            message = f"{self._limits.connections_max} connections are open; try again shortly"
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, Unavailable(message))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._reading is _Reading.HEAD:
            if self._head_bytes > self._limits.head_bytes:
                self._refuse(*self._head_too_large())
            return
        self._head_bytes = 0
        if self._reading is _Reading.BODY:
            self._since = self.loop.time()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading = _Reading.HEAD
        self._since = self.loop.time()

    def on_headers_complete(self) -> None:
        large = self._head_bytes > self._limits.head_bytes and self._head_size() > self._limits.head_bytes
        if large or len(self.headers) > self._limits.headers_max:
            self._refusal = self._head_too_large()
            raise _BadHead
        self._reading = _Reading.BODY
        super().on_headers_complete()
        self.scope[WRITER] = _Writer(self, self.cycle)  # type: ignore[typeddict-unknown-key]
        if self._certificate is not None:
            self.scope[CERTIFICATE] = self._certificate  # type: ignore[typeddict-unknown-key]
        if self._closing.is_set():
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._reading = _Reading.NOTHING
        self._answered_at = None

    def on_response_complete(self) -> None:
        if self._reading is _Reading.BODY:
            self._answered_at = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._blocked_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._blocked_since = None

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser gave up."""
        self._refuse(*self._refusal)

    def finish_soon(self) -> None:
        """Close the connection after the answer that is being given."""
        if self.busy:
            self.cycle.keep_alive = False

    @property
    def busy(self) -> bool:
        """Whether a request is being answered; before the first one uvicorn has None where it declares a cycle."""
        return self.cycle is not None and not self.cycle.response_complete

    def sweep(self, now: float) -> None:
        """Close the connection if its client has been too slow by `now` (the event loop's time)."""
        limits, waited = self._limits, now - self._since
        if self.transport.is_closing():
            return
        if self._blocked_since is not None and now - self._blocked_since > limits.write_timeout_s:
            self.transport.abort()
        elif self._answered_at is not None and now - self._answered_at > limits.linger_s:
            self.transport.close()
        elif self._reading is _Reading.HEAD and waited > limits.header_timeout_s:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, InvalidRequest("the request head took too long to arrive"))
        elif self._reading is _Reading.BODY and waited > limits.body_timeout_s and not self.flow.read_paused:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, InvalidRequest("the request body stopped arriving"))

    def _refuse(self, status: HTTPStatus, error: MocError) -> None:
        if not self.busy or not self.cycle.response_started:
            body = native_body(error, new_id("req"))
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _head_too_large(self) -> tuple[HTTPStatus, MocError]:
        limits = self._limits
        message = f"the request head is over {limits.head_bytes} bytes or {limits.headers_max} headers; send less"
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TooLarge(message)

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade nobody here speaks is ignored, as HTTP says; no need to log each."""


class _Writer:
    """Sends a whole answer in one piece: one system call and one packet instead of two."""

    __slots__ = ("_cycle", "_protocol")

    def __init__(self, protocol: BoundedProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle

    def write(self, status: int, headers: Sequence[Header], body: Buffer) -> bool:
        """Send it and be done; False, with nothing sent, when it must go through ASGI instead.

        The headers must be right, `content-length` among them: nobody checks them again.
        """
        protocol, cycle = self._protocol, self._cycle
        if cycle.disconnected or cycle.response_started or protocol.flow.write_paused:
            return False
        lines: list[Buffer] = [STATUS_LINE[status]]
        for name, value in cycle.default_headers:
            lines += (name, b": ", value, b"\r\n")
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
        if cycle.scope["method"] != "HEAD":
            lines.append(body)
        protocol.transport.write(b"".join(lines))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            protocol.transport.close()
        cycle.on_response()
        return True


def http_config(app: Any, limits: Limits) -> Config:
    """uvicorn's configuration for these connections: no logging, signals, proxies or WebSockets of its own."""
    config = Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=round(limits.keep_alive_s),
    )
    config.load()
    return config
