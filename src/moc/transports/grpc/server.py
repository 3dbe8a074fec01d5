"""The gRPC listener: every service, started and stopped as a component."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from moc.kernel.errors import Conflict
from moc.security.tls import TlsFiles
from moc.service.services import Services
from moc.transports.grpc.call import Method
from moc.transports.grpc.devices import Devices
from moc.transports.grpc.engine import GrpcioEngine
from moc.transports.grpc.gate import Gate
from moc.transports.grpc.health import Health
from moc.transports.grpc.inference import Inference
from moc.transports.grpc.jobs import Jobs
from moc.transports.grpc.leases import Leases
from moc.transports.grpc.limits import Limits
from moc.transports.grpc.model_ops import ModelOps
from moc.transports.grpc.models import Models
from moc.transports.grpc.oip import InferenceProtocol
from moc.transports.grpc.reflection import Reflection
from moc.transports.grpc.system import System
from moc.transports.listener import bind

_DEFAULTS = Limits()


class GrpcServer:
    """Serves gRPC at `host` and `port` (0 = any free one) from `start` on, over TLS if `tls` is given.

    `drain` sends clients elsewhere, to which health says so, and lets running calls end; `stop` gives the last
    answers `stop_grace_s` and cuts off what is left.
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
        self._tls = tls
        self._closing = asyncio.Event()
        limits = replace(limits, message_bytes=body_limit_bytes or limits.message_bytes)
        self._engine = GrpcioEngine(methods_of(services, self._closing), limits=limits)
        self._started = False

    @property
    def target(self) -> str:
        """What a client on this machine dials."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def listening(self) -> bool:
        """Whether calls are taken."""
        return self._started and not self._closing.is_set()

    async def start(self) -> None:
        """Listen. Conflict when the port is taken or may not be used, InvalidRequest for a wrong host or file."""
        if self._started:
            return
        with await bind(self.host, self.port, option="grpc_port") as probe:  # says why not; the engine does not
            address = probe.getsockname()[0]
        try:
            self.port = await self._engine.start(address, self.port, self._tls)
        except OSError as error:
            raise Conflict(f"gRPC cannot listen on port {self.port} of {self.host}: {error}") from None
        self._started = True

    async def drain(self) -> None:
        """Wait for the calls that run now; streams get no more requests."""
        self._closing.set()
        await self._engine.drain()

    async def stop(self) -> None:
        """Close the listener and every connection."""
        self._closing.set()
        await self._engine.stop()


def methods_of(services: Services, closing: asyncio.Event) -> Mapping[str, Method]:
    """Every method by its path, with the gate before it; endless streams end when `closing` is set."""
    parts = (
        InferenceProtocol(services),
        Inference(services),
        Models(services),
        Devices(services),
        Leases(services, closing),
        Jobs(services, closing),
        System(services, closing),
        ModelOps(services),
    )
    methods = {path: method for part in parts for path, method in part.methods().items()}
    served = {path.split("/")[1] for path in methods}
    methods |= Health(services.system, served, closing).methods()
    methods |= Reflection(path.split("/")[1] for path in methods).methods()
    gate = Gate(services.authenticator)
    return {path: gate.before(method) for path, method in methods.items()}
