"""The nouns: a device, and what it said when it was last asked."""

from dataclasses import dataclass, field
from enum import StrEnum


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

    `kind` is `cuda`, `host` or `declared`; `uuid` is the driver's own name for it, empty where it has none.
    """

    id: str
    kind: str
    name: str
    capacity_bytes: int
    uuid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReading:
    """What a device said at one moment.

    `used_bytes` is all that is in use, by anybody; `processes` is bytes by process id of this host, for the
    processes the driver tells of; `problem` is what the driver reports as wrong with it, empty when nothing.
    """

    device: Device
    used_bytes: int
    processes: dict[int, int] = field(default_factory=dict)
    temperature_c: float | None = None
    utilization_ratio: float | None = None
    problem: str = ""
