"""Devices that exist in the configuration only: for planning, and for trying things out."""

from collections.abc import Sequence

from moc.gpu.device import Device, DeviceReading


class DeclaredDevices:
    """Always there and never in use, whatever is charged on them."""

    kind = "declared"

    def __init__(self, devices: Sequence[Device]) -> None:
        self._readings = [DeviceReading(device=device, used_bytes=0) for device in devices]

    def read(self) -> list[DeviceReading]:
        """The devices as they were declared."""
        return list(self._readings)

    def close(self) -> None:
        """Nothing is held."""
