"""`moc.v1.Devices`."""

from typing import Final, cast

from moc.kernel.errors import InvalidRequest
from moc.service.devices import Wish
from moc.service.services import Services
from moc.transports.grpc.call import Call, Method, Unary
from moc.transports.grpc.messages import message_of, page_of, read
from moc.transports.grpc.stubs.moc.v1 import devices_pb2 as pb

SERVICE: Final = "moc.v1.Devices"


class Devices:
    """The service's methods."""

    def __init__(self, services: Services) -> None:
        self._devices = services.devices

    def methods(self) -> dict[str, Method]:
        """By path."""
        found: dict[str, Method] = {
            "List": Unary(self._list),
            "Get": Unary(self._get),
            "SetState": Unary(self._set_state),
        }
        return {f"/{SERVICE}/{name}": method for name, method in found.items()}

    async def _list(self, data: bytes, call: Call) -> bytes:
        message = read(pb.ListDevicesRequest, data)
        after, limit = page_of(message.after, message.limit)
        page = await self._devices.list(call.identity, after=after, limit=limit)
        devices = [message_of(pb.Device, view) for view in page.items]
        return pb.ListDevicesResponse(devices=devices, next=page.next or "").SerializeToString()

    async def _get(self, data: bytes, call: Call) -> bytes:
        view = await self._devices.show(call.identity, read(pb.GetDeviceRequest, data).id)
        return message_of(pb.Device, view).SerializeToString()

    async def _set_state(self, data: bytes, call: Call) -> bytes:
        message = read(pb.SetDeviceStateRequest, data)
        if message.state not in ("cordoned", "online"):
            raise InvalidRequest(f"`state` is cordoned or online, not {message.state[:40]!r}")
        view = await self._devices.set_state(call.identity, message.id, cast(Wish, message.state))
        return message_of(pb.Device, view).SerializeToString()
