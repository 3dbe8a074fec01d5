"""The nouns: a device, and what it said when it was last asked."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

CUDA, DECLARED, HOST = "cuda", "declared", "host"
"""The kinds of devices. Main memory is the one device of kind `host`, and that is its id, too."""


class DeviceState(StrEnum):
    """`online` takes new holders; `cordoned` keeps those it has and takes none; `lost` does not answer."""

    ONLINE = "online"
    CORDONED = "cordoned"
    LOST = "lost"


MOVES: dict[DeviceState, frozenset[DeviceState]] = {
    DeviceState.ONLINE: frozenset({DeviceState.CORDONED, DeviceState.LOST}),
    DeviceState.CORDONED: frozenset({DeviceState.ONLINE, DeviceState.LOST}),
    DeviceState.LOST: frozenset({DeviceState.CORDONED, DeviceState.ONLINE}),
}
"""Every move a device's state may make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Memory that models and jobs can be put in: `cuda:0`, `host` (main memory), `declared:0`.

    `kind` is `cuda`, `host` or `declared`; `uuid` is the driver's own name for it, empty where it has none. `bfloat16`:
    whether it computes with such numbers itself, as far as is known.
    """

    id: str
    kind: str
    name: str
    capacity_bytes: int
    uuid: str = ""
    bfloat16: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An error that a driver reported once; `number` grows with each that a source gives.

    `reason` is one word for programs, as `Xid79`. One that is `critical` makes a device unfit to take anything
    new until somebody has followed the `advice`.
    """

    number: int
    reason: str
    problem: str
    advice: str = ""
    critical: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReading:
    """What a device said at one moment.

    `used_bytes` is all that is in use, by anybody; `processes` is bytes by process id of this host, for the
    processes the driver tells of; `problem` is what the driver reports as wrong with it, empty when nothing.
    `faults` are those reported so far, oldest first, the latest of each kind; they stay, so that none is missed
    with a reading.
    With `lost` the driver says that the device does not work, and nothing else here counts but these.
    """

    device: Device
    used_bytes: int
    processes: dict[int, int] = field(default_factory=dict)
    temperature_c: float | None = None
    utilization_ratio: float | None = None
    problem: str = ""
    faults: tuple[Fault, ...] = ()
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """A device now. `reading` is None while it is lost; `problem` says what is wrong, empty when nothing is."""

    device: Device
    state: DeviceState
    reading: DeviceReading | None
    problem: str = ""


def unmanaged_bytes(reading: DeviceReading, managed: Collection[int]) -> int:
    """What is in use by others than the processes `managed`: never negative, whatever the driver claims."""
    ours = sum(size for pid, size in reading.processes.items() if pid in managed)
    return max(0, reading.used_bytes - ours)


def in_order(device_id: str) -> list[str | int]:
    """A sort key that puts `cuda:2` before `cuda:10`."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", device_id))]
