"""The health protocol of gRPC, which load balancers and probes speak. It needs no key and tells no more than theirs."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from typing import Final

from grpc_health.v1 import health_pb2 as pb

from moc.kernel.errors import NotFound
from moc.service.system import SystemService
from moc.transports.grpc.call import Call, Method, Stream, Unary
from moc.transports.grpc.messages import read

SERVICE: Final = "grpc.health.v1.Health"
_LOOK_S: Final = 0.5


class Health:
    """The service's methods; `services` are served as long as the replica is ready, and so is '', the server."""

    def __init__(self, system: SystemService, services: Collection[str], closing: asyncio.Event) -> None:
        self._system = system
        self._services = frozenset(services)
        self._closing = closing

    def methods(self) -> dict[str, Method]:
        """By path."""
        return {
            f"/{SERVICE}/Check": Unary(self._check, public=True),
            f"/{SERVICE}/Watch": Stream(self._watch, public=True),
        }

    async def _check(self, data: bytes, call: Call) -> bytes:
        service = read(pb.HealthCheckRequest, data).service
        status = self._status(service)
        if status == pb.HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotFound(f"there is no service {service[:200]!r} here; reflection lists what there is")
        return pb.HealthCheckResponse(status=status).SerializeToString()

    async def _watch(self, requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes, None]:
        """The status now, and each time it changes, until the server closes."""
        async for data in requests:
            service, told = read(pb.HealthCheckRequest, data).service, None
            while not self._closing.is_set():
                status = self._status(service)
                if status != told:
                    yield pb.HealthCheckResponse(status=status).SerializeToString()
                    told = status
                await self._pause()
            if told == pb.HealthCheckResponse.SERVING:
                yield pb.HealthCheckResponse(status=pb.HealthCheckResponse.NOT_SERVING).SerializeToString()
            return

    async def _pause(self) -> None:
        """Readiness has no event of its own: look again in a moment, at once when the server closes."""
        try:
            async with asyncio.timeout(_LOOK_S):
                await self._closing.wait()
        except TimeoutError:
            return

    def _status(self, service: str) -> int:
        if service and service not in self._services:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        if self._closing.is_set() or not self._system.readiness().ready:
            return pb.HealthCheckResponse.NOT_SERVING
        return pb.HealthCheckResponse.SERVING
