"""The REST listener: uvicorn's HTTP on the running event loop, started and stopped as a component."""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from email.utils import formatdate

from uvicorn.server import ServerState

from moc.security.tls import TlsFiles, TlsListener
from moc.service.services import Services
from moc.transports.listener import BACKLOG, bind
from moc.transports.rest.app import build
from moc.transports.rest.limits import Limits
from moc.transports.rest.protocol import BoundedProtocol, http_config

_DEFAULTS = Limits()
_TICK_S = 1.0
_ABORT_GRACE_S = 1.0


class RestServer:
    """Serves REST at `host` and `port` (0 = any free one) from `start` on, over TLS if `tls` is given.

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
        tls: TlsFiles | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self._services = services
        self._limits = replace(limits, body_bytes=body_limit_bytes or limits.body_bytes)
        self._tls_files = tls
        self._tls: TlsListener | None = None
        self._closing = asyncio.Event()
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where a client on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        scheme = "http" if self._tls_files is None else "https"
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"

    @property
    def listening(self) -> bool:
        """Whether connections are taken."""
        return self._server is not None and self._server.is_serving()

    async def start(self) -> None:
        """Listen. Conflict when the port is taken or may not be used, InvalidRequest for a wrong host or file."""
        if self._server is not None:
            return
        if self._tls_files is not None:
            self._tls = await asyncio.to_thread(TlsListener, self._tls_files)
        listener = await bind(self.host, self.port, option="rest_port")
        try:
            address, self.port = listener.getsockname()[:2]
            hosts = _loopback_names(self.host) if ipaddress.ip_address(address).is_loopback else None
            app = build(self._services, limits=self._limits, hosts=hosts, closing=self._closing)
            config = http_config(app, self._limits)

            def connection() -> BoundedProtocol:
                return BoundedProtocol(config, self._state, limits=self._limits, closing=self._closing)

            self._server = await self._listen(connection, listener)
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

    async def _listen(self, connection: Callable[[], BoundedProtocol], listener: socket.socket) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        if self._tls is None:
            return await loop.create_server(connection, sock=listener, backlog=BACKLOG)
        return await loop.create_server(
            connection,
            sock=listener,
            backlog=BACKLOG,
            ssl=self._tls.context,
            ssl_handshake_timeout=self._limits.header_timeout_s,
            ssl_shutdown_timeout=_ABORT_GRACE_S,
        )

    def _connections(self) -> list[BoundedProtocol]:
        return [connection for connection in self._state.connections if isinstance(connection, BoundedProtocol)]

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode("ascii"))]
            now = loop.time()
            for connection in self._connections():
                connection.sweep(now)
            if self._tls is not None:
                self._tls.refresh()
            await asyncio.sleep(_TICK_S)


async def _settle(futures: "list[asyncio.Future[None]] | set[asyncio.Task[None]] | list[asyncio.Task[None]]") -> None:
    if futures:
        await asyncio.wait(futures, timeout=_ABORT_GRACE_S)


def _loopback_names(host: str) -> frozenset[str]:
    return frozenset({"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host.lower()})
