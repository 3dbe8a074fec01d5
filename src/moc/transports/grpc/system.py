"""`moc.v1.System`."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from moc.service.services import Services
from moc.transports.closing import until
from moc.transports.grpc.call import Call, Method, Stream, Unary
from moc.transports.grpc.messages import message_of, read
from moc.transports.grpc.stubs.moc.v1 import system_pb2 as pb

SERVICE: Final = "moc.v1.System"


class System:
    """The service's methods; event streams end when `closing` is set."""

    def __init__(self, services: Services, closing: asyncio.Event) -> None:
        self._system = services.system
        self._closing = closing

    def methods(self) -> dict[str, Method]:
        """By path."""
        return {f"/{SERVICE}/Status": Unary(self._status), f"/{SERVICE}/Events": Stream(self._events)}

    async def _status(self, data: bytes, call: Call) -> bytes:
        read(pb.StatusRequest, data)
        return message_of(pb.StatusResponse, await self._system.status(call.identity)).SerializeToString()

    async def _events(self, requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes, None]:
        async for data in requests:
            message = read(pb.EventsRequest, data)
            newest = await self._system.last_event_id(call.identity)
            after = message.after if message.HasField("after") else newest
            followed = until(self._closing, self._system.follow(call.identity, after=after))
            async with contextlib.aclosing(followed):
                async for view in followed:
                    yield message_of(pb.Event, view).SerializeToString()
            return
