"""What a caller may ask about device memory."""

from collections.abc import Sequence
from typing import Literal

from moc.gpu.broker import Broker
from moc.gpu.device import DeviceStatus, in_order
from moc.gpu.monitor import DeviceMonitor
from moc.security.identity import Identity
from moc.security.policy import Operation
from moc.service.guard import Journal, audited, require
from moc.service.views import ChargeView, DeviceView, Page

Wish = Literal["cordoned", "online"]


class DevicesService:
    """The devices of this host, with who holds what of them."""

    def __init__(self, *, monitor: DeviceMonitor, broker: Broker, journal: Journal) -> None:
        self.journal = journal
        self._monitor = monitor
        self._broker = broker

    async def list(self, identity: Identity, *, after: str | None, limit: int) -> Page[DeviceView]:
        """The devices, by id; `after` is the last id of the page before."""
        require(identity, Operation.READ_DEVICES)
        views = [view for view in self.views() if after is None or in_order(view.id) > in_order(after)]
        return Page(views[:limit], views[limit - 1].id if len(views) > limit else None)

    async def show(self, identity: Identity, device_id: str) -> DeviceView:
        """One device; NotFound when there is none."""
        require(identity, Operation.READ_DEVICES)
        return self._view(self._monitor.status(device_id))

    @audited("devices.change")
    async def set_state(self, identity: Identity, device_id: str, wish: Wish) -> DeviceView:
        """Cordon a device, or let it take holders again; idempotent. One that is lost stays lost until it answers."""
        require(identity, Operation.CHANGE_DEVICES)
        change = self._monitor.cordon if wish == "cordoned" else self._monitor.uncordon
        return self._view(await change(device_id, actor=identity.key_id))

    def views(self) -> Sequence[DeviceView]:
        """Every device, by id."""
        return [self._view(status) for status in self._monitor.statuses()]

    def _view(self, status: DeviceStatus) -> DeviceView:
        device, reading = status.device, status.reading
        charges = [charge for charge in self._broker.charges() if charge.device == device.id]
        return DeviceView(
            id=device.id,
            kind=device.kind,
            name=device.name,
            uuid=device.uuid,
            state=status.state,
            capacity_bytes=device.capacity_bytes,
            limit_bytes=self._broker.limit_bytes(status),
            charged_bytes=sum(charge.bytes for charge in charges),
            charges=[ChargeView(holder=each.holder, bytes=each.bytes, priority=each.priority) for each in charges],
            measured_bytes=None if reading is None else reading.used_bytes,
            unmanaged_bytes=None if reading is None else self._broker.unmanaged_bytes(status),
            temperature_c=None if reading is None else reading.temperature_c,
            utilization_ratio=None if reading is None else reading.utilization_ratio,
            problem=status.problem,
        )
