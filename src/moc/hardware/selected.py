"""Some devices of a source, and no more of them than the configuration allows."""

from collections.abc import Mapping
from dataclasses import replace

from moc.gpu.device import DeviceReading
from moc.gpu.ports import DeviceSource


class SelectedDevices:
    """The devices of `source` whose ids are in `limits`, each of at most that many bytes (None = all it has).

    What a limit leaves out is for others: they fill it before they count against the rest. What the
    reading's processes hold counts against the rest in any case.
    """

    def __init__(self, source: DeviceSource, limits: Mapping[str, int | None]) -> None:
        self.kind = source.kind
        self._source = source
        self._limits = dict(limits)

    def read(self) -> list[DeviceReading]:
        """See `DeviceSource.read`."""
        return [
            _limited(reading, self._limits[reading.device.id])
            for reading in self._source.read()
            if reading.device.id in self._limits
        ]

    def close(self) -> None:
        """Close the source."""
        self._source.close()


def _limited(reading: DeviceReading, limit_bytes: int | None) -> DeviceReading:
    left_out = 0 if limit_bytes is None else reading.device.capacity_bytes - limit_bytes
    if left_out <= 0:
        return reading
    told = min(reading.used_bytes, sum(reading.processes.values()))
    device = replace(reading.device, capacity_bytes=reading.device.capacity_bytes - left_out)
    return replace(reading, device=device, used_bytes=max(reading.used_bytes - left_out, told))
