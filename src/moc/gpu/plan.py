"""What eviction answers: where a demand goes and who leaves for it, or why it fits nowhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from moc.gpu.ledger import Placement
from moc.kernel.units import Bytes


class Guard(StrEnum):
    """What keeps a tenant where it is."""

    PINNED = "pinned"
    PRIORITY = "priority"
    IN_FLIGHT = "in_flight"
    RESIDENCY = "residency"
    SWAP_BACK = "swap_back"
    RECENT = "recently_used"


class Reason(StrEnum):
    """Why a demand does not fit, the most promising first.

    `residency`: it will when models have stayed their time; `in_flight`: when requests have ended; `held`: by
    what is pinned, more urgent, leased, loading or unmanaged; `too_large`: not even on an empty device;
    `no_device`: too few that it accepts are online.
    """

    RESIDENCY = "residency"
    IN_FLIGHT = "in_flight"
    HELD = "held"
    TOO_LARGE = "too_large"
    NO_DEVICE = "no_device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """Who has to leave. `bytes` is what that gives back; of equally urgent ones the lowest `score` goes first.

    One that leaves more than one device is told once, `device` being the first.

    `reason` is `capacity`, `priority` (less urgent than the demand) or `group` (may not be loaded beside it);
    `because` says it in numbers. `after_drain`: requests are in flight, and must end first.
    """

    holder: str
    device: str
    bytes: int
    reason: str
    because: str
    score: float
    after_drain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where the demand of `holder` goes, one placement for each of its shards, and who leaves for it."""

    holder: str
    placements: tuple[Placement, ...]
    victims: tuple[Victim, ...]

    @property
    def device(self) -> str:
        """The device; of several the first."""
        return self.placements[0].device


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why a demand does not fit on one device: what is free, what eviction could give, and what guards the rest.

    What is neither is leased, loading or unmanaged.
    """

    device: str
    reason: Reason
    limit_bytes: int
    unmanaged_bytes: int
    free_bytes: int
    evictable_bytes: int
    guarded_bytes: Mapping[Guard, int] = field(default_factory=dict)
    retry_after_s: float | None = None

    def __str__(self) -> str:
        guards = [f"{Bytes(held)} {guard.replace('_', ' ')}" for guard, held in self.guarded_bytes.items()]
        shares = [
            f"{Bytes(max(self.free_bytes, 0))} free",
            f"{Bytes(self.evictable_bytes)} evictable",
            *guards,
            f"{Bytes(self.unmanaged_bytes)} unmanaged",
        ]
        return f"{self.device} of {Bytes(self.limit_bytes)}: {', '.join(shares)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the demand of `holder` fits nowhere: in words and numbers, and device by device.

    `retry_after_s` is when it will fit if nothing else happens; None when that takes more than time. So many of
    its obstacles as are `missing` have to go.
    """

    holder: str
    reason: Reason
    message: str
    obstacles: tuple[Obstacle, ...] = ()
    missing: int = 0
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLease:
    """A lease that would end for a model: that of the learning job `job`, which has `grace_s` to save and end.

    `holder` has the charge of its `bytes` on `device`.
    """

    job: str
    holder: str
    device: str
    bytes: int
    priority: int
    grace_s: float
