"""The ZeroMQ listener: requests on a ROUTER socket, events on a PUB socket, started and stopped as a component."""

import asyncio
import contextlib
import ipaddress
import socket as sockets
from dataclasses import replace
from pathlib import Path

import structlog
import zmq

from moc.service.services import Services
from moc.transports.listener import bind
from moc.transports.zmq.actions import actions_of
from moc.transports.zmq.curve import EVENTS, REQUESTS, ClientCheck, ServerKey
from moc.transports.zmq.dispatch import Dispatch
from moc.transports.zmq.limits import Limits
from moc.transports.zmq.publisher import Publisher
from moc.transports.zmq.router import Router

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]

log = structlog.get_logger(__name__)

_DEFAULTS = Limits()


class ZmqServer:
    """Serves ZeroMQ at `host` and `port` (0 = any free one) from `start` on, and events at `events_port` unless None.

    With `curve_folder`, where the server's key pair is kept, connections are encrypted and made only by clients whose
    own key is bound to an API key. `drain` lets running requests end and refuses new ones; `stop` gives the last
    answers `stop_grace_s` and cuts off what is left.
    """

    def __init__(
        self,
        services: Services,
        *,
        host: str,
        port: int,
        events_port: int | None = None,
        curve_folder: Path | None = None,
        body_limit_bytes: int | None = None,
        limits: Limits = _DEFAULTS,
    ) -> None:
        self.host = host
        self.port = port
        self.events_port = events_port
        self.public_key = ""
        self._services = services
        self._limits = replace(limits, message_bytes=body_limit_bytes or limits.message_bytes)
        self._curve_folder = curve_folder
        self._key: ServerKey | None = None
        self._dispatch: Dispatch | None = None
        self._started = contextlib.AsyncExitStack()

    @property
    def url(self) -> str:
        """Where a client on this machine connects."""
        return self._url(self.port)

    @property
    def events_url(self) -> str | None:
        """Where a subscriber on this machine connects, None when events are not published."""
        return None if self.events_port is None else self._url(self.events_port)

    @property
    def listening(self) -> bool:
        """Whether requests are taken."""
        return self._dispatch is not None

    async def start(self) -> None:
        """Listen. Conflict when a port is taken or may not be used, InvalidRequest for a wrong host or key file."""
        if self._dispatch is not None:
            return
        async with contextlib.AsyncExitStack() as started:
            context: Context = zmq.Context()
            started.push_async_callback(asyncio.to_thread, context.term)
            await self._listen(context, started)
            self._started = started.pop_all()

    async def drain(self) -> None:
        """Wait for the requests that run now; those that come are told to ask elsewhere."""
        if self._dispatch is not None:
            await self._dispatch.drain()

    async def stop(self) -> None:
        """Close every socket."""
        await self._started.aclose()
        self._dispatch = None

    async def _listen(self, context: Context, started: contextlib.AsyncExitStack) -> None:
        limits, authenticator = self._limits, self._services.authenticator
        with await bind(self.host, self.port, option="zmq_port") as listener:
            address, self.port = listener.getsockname()[:2]
            if self._curve_folder is not None:
                self._key = await asyncio.to_thread(ServerKey.of, self._curve_folder)
                self.public_key = self._key.public.decode("ascii")
                check = ClientCheck(context, authenticator)
                check.start()
                started.callback(check.stop)
            elif not ipaddress.ip_address(address).is_loopback:
                log.warning("ZeroMQ without CURVE: keys and data can be read on the network", host=self.host)
            if self.events_port is not None:
                await self._publish(context, self.events_port, started)
            socket = self._socket(context, zmq.ROUTER, REQUESTS)
            router = Router(socket, write_timeout_s=limits.write_timeout_s)
            started.callback(router.close, linger_s=limits.linger_s)
            _take(socket, listener)
        self._dispatch = Dispatch(
            router, authenticator, actions_of(self._services, limits), limits=limits, curve=self._key is not None
        )
        started.push_async_callback(self._dispatch.stop)
        router.open(self._dispatch.arrived)

    async def _publish(self, context: Context, port: int, started: contextlib.AsyncExitStack) -> None:
        listener = started.enter_context(await bind(self.host, port, option="events_port"))
        self.events_port = listener.getsockname()[1]

        def listen() -> Socket:
            socket = self._socket(context, zmq.PUB, EVENTS)
            _take(socket, listener)
            return socket

        publisher = Publisher(self._services.system, listen, guarded=self._key is not None)
        await publisher.start()
        started.push_async_callback(publisher.stop, linger_s=self._limits.linger_s)

    def _socket(self, context: Context, kind: int, domain: str) -> Socket:
        limits = self._limits
        socket = context.socket(kind)
        socket.setsockopt(zmq.MAXMSGSIZE, limits.message_bytes)
        socket.setsockopt(zmq.RCVHWM, limits.requests_per_peer)
        socket.setsockopt(zmq.SNDHWM, limits.unread_max)
        socket.setsockopt(zmq.HEARTBEAT_IVL, round(limits.heartbeat_s * 1000))
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(limits.heartbeat_timeout_s * 1000))
        if kind == zmq.ROUTER:
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if self._key is not None:
            self._key.guard(socket, domain)
        return socket

    def _url(self, port: int) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _take(socket: Socket, listener: sockets.socket) -> None:
    """Take connections from a listener, which stays the caller's: the socket has its own handle on it."""
    socket.setsockopt(zmq.USE_FD, listener.dup().detach())
    socket.setsockopt(zmq.IPV6, listener.family == sockets.AF_INET6)
    host, port = listener.getsockname()[:2]
    socket.bind(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
