"""Models as tenants of device memory: joins the broker, which knows bytes, and the manager, which knows models."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from moc.gpu.broker import Broker
from moc.gpu.eviction import Refusal, Tenant
from moc.gpu.ledger import Charge, Demand
from moc.kernel.errors import NoCapacity
from moc.models.manager import ModelManager
from moc.models.model import ModelVersion
from moc.models.ports import Grant, Worker
from moc.resilience.deadline import Deadline

HOST = "host"
ANYWHERE = ("declared", HOST)
"""Where a model may go whose `devices` is `auto`: the runtimes of this version compute in main memory."""

_HOLDER = "model:"


@dataclass(frozen=True, slots=True, kw_only=True)
class VictimView:
    """A model that would be unloaded. Of equally urgent ones the lowest `score` goes first; `because` says why it."""

    reference: str
    bytes: int
    reason: str
    because: str
    score: float
    after_drain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Where a model would be loaded now and who would leave for it, or why it fits nowhere.

    `retry_after_s` is when it will fit if nothing else happens, None when that takes more than time.
    """

    reference: str
    needed_bytes: int
    fits: bool
    device: str | None = None
    free_before_bytes: int | None = None
    free_after_bytes: int | None = None
    victims: list[VictimView] = field(default_factory=list)
    reason: str = ""
    message: str = ""
    retry_after_s: float | None = None


class Tenancy:
    """Implements `models.ports.Memory` over the broker and `gpu.ports.Tenants` over the manager.

    Each needs the other, so they are joined after both are made.
    """

    def __init__(self) -> None:
        self._broker: Broker | None = None
        self._manager: ModelManager | None = None

    def join(self, *, broker: Broker, manager: ModelManager) -> None:
        """Before either is started."""
        self._broker, self._manager = broker, manager

    @property
    def broker(self) -> Broker:
        """The keeper of the books."""
        assert self._broker is not None  # noqa: S101 - joined before anything is started
        return self._broker

    @property
    def manager(self) -> ModelManager:
        """The keeper of the models."""
        assert self._manager is not None  # noqa: S101 - joined before anything is started
        return self._manager

    # for models

    async def reserve(self, version: ModelVersion, needed_bytes: int, deadline: Deadline) -> Grant:
        """See `models.ports.Memory`."""
        try:
            grant = await self.broker.reserve(demand_of(version, needed_bytes), deadline)
        except NoCapacity as error:
            error.details["evicted"] = _references(error.details["evicted"])
            raise
        return Grant(device=grant.device, bytes=grant.bytes, evicted=_references(grant.evicted))

    def adopt(self, worker: Worker) -> None:
        """See `models.ports.Memory`."""
        device = worker.device or HOST
        self.broker.adopt(Charge(holder=_HOLDER + worker.model, device=device, bytes=worker.bytes))

    def observe(self, reference: str, measured_bytes: int) -> None:
        """See `models.ports.Memory`."""
        self.broker.observe(_HOLDER + reference, measured_bytes)

    def release(self, reference: str) -> None:
        """See `models.ports.Memory`."""
        self.broker.release(_HOLDER + reference)

    # for the broker

    def tenants(self) -> Sequence[Tenant]:
        """See `gpu.ports.Tenants`."""
        charges = {charge.holder: charge for charge in self.broker.charges()}
        return [
            Tenant(
                holder=charge.holder,
                device=charge.device,
                bytes=charge.bytes,
                priority=entry.version.spec.priority,
                pinned=entry.version.spec.pin,
                in_flight=resident.users,
                loaded_at=resident.loaded_at,
                last_used_at=resident.last_used_at,
                uses=resident.uses,
                reload_s=max(entry.status.load_s, 0.001),
            )
            for entry, resident in self.manager.loaded()
            if (charge := charges.get(_HOLDER + resident.reference)) is not None
        ]

    async def evict(self, holder: str, *, reason: str, because: str) -> None:
        """See `gpu.ports.Tenants`."""
        await self.manager.evict(holder.removeprefix(_HOLDER), reason=reason, message=because)

    # for whoever wants to know beforehand

    def explain(self, version: ModelVersion, needed_bytes: int) -> "Explanation":
        """What loading a version would do now; changes nothing."""
        outcome = self.broker.explain(demand_of(version, needed_bytes))
        if isinstance(outcome, Refusal):
            return Explanation(
                reference=version.reference,
                needed_bytes=needed_bytes,
                fits=False,
                reason=outcome.reason,
                message=outcome.message,
                retry_after_s=outcome.retry_after_s,
            )
        place = outcome.placements[0]
        return Explanation(
            reference=version.reference,
            needed_bytes=needed_bytes,
            fits=True,
            device=place.device,
            free_before_bytes=place.free_before_bytes,
            free_after_bytes=place.free_after_bytes,
            victims=[
                VictimView(
                    reference=victim.holder.removeprefix(_HOLDER),
                    bytes=victim.bytes,
                    reason=victim.reason,
                    because=victim.because,
                    score=victim.score,
                    after_drain=victim.after_drain,
                )
                for victim in outcome.victims
            ],
        )


def _references(holders: Sequence[str]) -> tuple[str, ...]:
    return tuple(holder.removeprefix(_HOLDER) for holder in holders)


def demand_of(version: ModelVersion, needed_bytes: int) -> Demand:
    """What a version asks of the books."""
    devices = version.spec.devices
    wanted: str | tuple[str, ...] = (
        ANYWHERE if devices == "auto" else devices if isinstance(devices, str) else tuple(devices)
    )
    return Demand(
        holder=_HOLDER + version.reference, bytes=needed_bytes, devices=wanted, priority=version.spec.priority
    )
