"""The REST listener: uvicorn's HTTP on the running event loop, started and stopped as a component."""

import asyncio
import errno
import ipaddress
import socket
import time
from dataclasses import replace
from email.utils import formatdate

from uvicorn.server import ServerState

from moc.kernel.errors import Conflict, InvalidRequest
from moc.service.services import Services
from moc.transports.rest.app import build
from moc.transports.rest.limits import Limits
from moc.transports.rest.protocol import BoundedProtocol, http_config

_DEFAULTS = Limits()
_BACKLOG = 2048
_TICK_S = 1.0
_ABORT_GRACE_S = 1.0


class RestServer:
    """Serves REST at `host` and `port` (0 = any free one) from `start` on.

    `drain` lets running requests end while new ones are still answered, each on a connection that closes
    after it; `stop` closes the listener, gives the last answers `stop_grace_s` and cuts off what is left.
    """

    def __init__(
        self,
        services: Services,
        *,
        host: str,
        port: int,
        body_limit_bytes: int | None = None,
        limits: Limits = _DEFAULTS,
    ) -> None:
        self.host = host
        self.port = port
        self._services = services
        self._limits = replace(limits, body_bytes=body_limit_bytes or limits.body_bytes)
        self._closing = asyncio.Event()
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where a client on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Listen. Conflict when the port is taken or may not be used, InvalidRequest for a host it is not."""
        if self._server is not None:
            return
        listener = await _bind(self.host, self.port)
        try:
            address, self.port = listener.getsockname()[:2]
            hosts = _loopback_names(self.host) if ipaddress.ip_address(address).is_loopback else None
            app = build(self._services, limits=self._limits, hosts=hosts, closing=self._closing)
            config = http_config(app, self._limits)

            def connection() -> BoundedProtocol:
                return BoundedProtocol(config, self._state, limits=self._limits, closing=self._closing)

            self._server = await asyncio.get_running_loop().create_server(connection, sock=listener, backlog=_BACKLOG)
        except BaseException:
            listener.close()
            raise
        self._ticker = asyncio.create_task(self._tick(), name="rest-tick")

    async def drain(self) -> None:
        """Wait for the requests that run now; event streams end."""
        self._closing.set()
        for connection in self._connections():
            connection.finish_soon()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks))

    async def stop(self) -> None:
        """Close the listener and every connection."""
        server, self._server = self._server, None
        if server is None:
            return
        self._closing.set()
        server.close()
        for connection in self._connections():
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=self._limits.stop_grace_s)
        for connection in self._connections():
            connection.transport.abort()
        await _settle([connection.lost for connection in self._connections()])
        tasks = set(self._state.tasks)
        for task in tasks:
            task.cancel()
        await _settle(tasks)
        if self._ticker is not None:
            self._ticker.cancel()
            await _settle([self._ticker])
        await server.wait_closed()

    def _connections(self) -> list[BoundedProtocol]:
        return [connection for connection in self._state.connections if isinstance(connection, BoundedProtocol)]

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode("ascii"))]
            now = loop.time()
            for connection in self._connections():
                connection.sweep(now)
            await asyncio.sleep(_TICK_S)


async def _settle(futures: "list[asyncio.Future[None]] | set[asyncio.Task[None]] | list[asyncio.Task[None]]") -> None:
    if futures:
        await asyncio.wait(futures, timeout=_ABORT_GRACE_S)


async def _bind(host: str, port: int) -> socket.socket:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise InvalidRequest(f"{host!r} is not an address of this machine; set server.host to one that is") from None
    family, kind, protocol, _, address = min(found, key=lambda info: info[0])
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _bind_error(error, host, port) from None
    return listener


def _bind_error(error: OSError, host: str, port: int) -> Conflict | InvalidRequest:
    if error.errno == errno.EADDRINUSE:
        return Conflict(
            f"port {port} on {host} is taken by another program; stop that one or choose another with --rest-port "
            "(server.rest_port)"
        )
    if error.errno == errno.EACCES:
        return Conflict(f"port {port} may not be opened by this user; choose one above 1023 with --rest-port")
    return InvalidRequest(f"cannot listen on {host!r}: {error.strerror}; set server.host to an address of this machine")


def _loopback_names(host: str) -> frozenset[str]:
    return frozenset({"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host.lower()})
