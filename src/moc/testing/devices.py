"""Devices whose readings the test sets."""

import threading
from collections.abc import Sequence

from moc.gpu.device import Device, DeviceReading, Fault


class FakeDevices:
    """A source of `readings`; `error` is raised instead.

    A read sets `asked`, and hangs while `gate` is not set.
    """

    def __init__(self, *readings: DeviceReading, kind: str = "declared") -> None:
        self.kind = kind
        self.readings = list(readings)
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self.reads = 0
        self.closed = False

    def read(self) -> list[DeviceReading]:
        """See `gpu.ports.DeviceSource`."""
        self.reads += 1
        self.asked.set()
        self.gate.wait()
        if self.error is not None:
            raise self.error
        return list(self.readings)

    def close(self) -> None:
        """Remembered."""
        self.closed = True


def fake_reading(
    device_id: str = "declared:0",
    *,
    capacity_bytes: int = 2**30,
    used_bytes: int = 0,
    processes: dict[int, int] | None = None,
    problem: str = "",
    faults: Sequence[Fault] = (),
    lost: bool = False,
) -> DeviceReading:
    """A reading of a device whose kind is what stands before the colon of its id."""
    device = Device(id=device_id, kind=device_id.partition(":")[0], name="fake", capacity_bytes=capacity_bytes)
    return DeviceReading(
        device=device,
        used_bytes=used_bytes,
        processes=dict(processes or {}),
        problem=problem,
        faults=tuple(faults),
        lost=lost,
    )
