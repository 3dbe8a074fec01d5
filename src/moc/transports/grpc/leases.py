"""`moc.v1.Leases`."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import msgspec
from google.protobuf import json_format

from moc.kernel.errors import Unavailable
from moc.service.leases import LeasesService, LeaseWish
from moc.service.services import Services
from moc.service.views import LeaseView
from moc.transports.closing import until
from moc.transports.grpc.call import Call, Method, Stream, Unary
from moc.transports.grpc.messages import message_of, page_of, read
from moc.transports.grpc.stubs.moc.v1 import leases_pb2 as pb

SERVICE: Final = "moc.v1.Leases"


class Leases:
    """The service's methods; nobody waits for a lease or watches one any more when `closing` is set."""

    def __init__(self, services: Services, closing: asyncio.Event) -> None:
        self._leases: LeasesService = services.leases
        self._closing = closing

    def methods(self) -> dict[str, Method]:
        """By path."""
        found: dict[str, Method] = {
            "List": Unary(self._list),
            "Get": Unary(self._get),
            "Acquire": Stream(self._acquire),
            "Renew": Unary(self._renew),
            "Release": Unary(self._release),
        }
        return {f"/{SERVICE}/{name}": method for name, method in found.items()}

    async def _list(self, data: bytes, call: Call) -> bytes:
        message = read(pb.ListLeasesRequest, data)
        after, limit = page_of(message.after, message.limit)
        page = await self._leases.list(call.identity, ended=message.ended, after=after, limit=limit)
        leases = [message_of(pb.Lease, view) for view in page.items]
        return pb.ListLeasesResponse(leases=leases, next=page.next or "").SerializeToString()

    async def _get(self, data: bytes, call: Call) -> bytes:
        return _written(await self._leases.show(call.identity, read(pb.GetLeaseRequest, data).id))

    async def _acquire(self, requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes, None]:
        async for data in requests:
            wish = _wish(read(pb.AcquireLeaseRequest, data))
            followed = until(self._closing, self._leases.follow(call.identity, wish, call.deadline()))
            granted = False
            async with contextlib.aclosing(followed):
                async for view in followed:
                    granted = granted or view.state != "pending"
                    yield _written(view)
            if not granted:
                raise Unavailable("this coordinator is stopping; ask again shortly")
            return

    async def _renew(self, data: bytes, call: Call) -> bytes:
        message = read(pb.RenewLeaseRequest, data)
        pid = message.pid if message.HasField("pid") else None
        return _written(await self._leases.renew(call.identity, message.id, message.token, pid))

    async def _release(self, data: bytes, call: Call) -> bytes:
        message = read(pb.ReleaseLeaseRequest, data)
        return _written(await self._leases.release(call.identity, message.id, message.token))


def _wish(message: pb.AcquireLeaseRequest) -> LeaseWish:
    """The wish; what is absent has the defaults of a LeaseWish."""
    fields = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return msgspec.convert(fields, LeaseWish, strict=False)  # JSON has 64-bit numbers in texts


def _written(view: LeaseView) -> bytes:
    return message_of(pb.Lease, view).SerializeToString()
