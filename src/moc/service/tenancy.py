"""Models as tenants of device memory: joins the broker, which knows bytes, and the manager, which knows models."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from moc.gpu.broker import Broker
from moc.gpu.device import CUDA, DECLARED, HOST, Device, DeviceReading
from moc.gpu.eviction import Tenant
from moc.gpu.ledger import Charge, Demand
from moc.gpu.monitor import DeviceMonitor
from moc.gpu.plan import Plan, Refusal
from moc.kernel.errors import NoCapacity
from moc.models.manager import ModelManager
from moc.models.model import ModelSpec, ModelVersion
from moc.models.ports import Grant, Holding, Worker
from moc.resilience.deadline import Deadline

KINDS = (CUDA, DECLARED, HOST)
"""The likeliest first."""

ACCELERATED = frozenset({"transformers"})
"""The runtimes whose models go on a GPU if there is one and `devices` is `auto`; the others compute in main memory."""

_HOLDER = "model:"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementView:
    """A device a model would go on: what is free there now, and what would be once it is loaded."""

    device: str
    free_before_bytes: int
    free_after_bytes: int


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
class PausedView:
    """A learning job that would be paused, to go on when there is room again. It has `grace_s` to save what it did."""

    job: str
    device: str
    bytes: int
    priority: int
    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Where a model would be loaded now, who would leave and which jobs would be paused for it, or why it fits nowhere.

    It has one of `placements` for each of its shards, and needs `needed_bytes` there. `retry_after_s` is when it will
    fit if nothing else happens, None when that takes more than time.
    """

    reference: str
    needed_bytes: int
    fits: bool
    placements: list[PlacementView] = field(default_factory=list)
    victims: list[VictimView] = field(default_factory=list)
    pauses: list[PausedView] = field(default_factory=list)
    reason: str = ""
    message: str = ""
    retry_after_s: float | None = None


class Tenancy:
    """Implements `models.ports.Memory` over the broker and `gpu.ports.Tenants` over the manager.

    Each needs the other, so they are joined after both are made.
    """

    def __init__(self, devices: DeviceMonitor) -> None:
        self._devices = devices
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

    def kinds(self, version: ModelVersion) -> Sequence[str]:
        """See `models.ports.Memory`."""
        wanted = self._wanted(version.spec)
        known = [status.device for status in self._devices.statuses()]
        accepted = {device.kind for device in known if device.id in wanted or device.kind in wanted}
        return [kind for kind in KINDS if kind in accepted] or [HOST]

    async def reserve(self, version: ModelVersion, needs: Mapping[str, int], deadline: Deadline) -> Grant:
        """See `models.ports.Memory`."""
        try:
            grant = await self.broker.reserve(self._demand(version, needs), deadline)
        except NoCapacity as error:
            error.details["evicted"] = _references(error.details["evicted"])
            raise
        devices = [self._devices.status(each).device for each in grant.devices]
        gpus = tuple(cuda_name(device) for device in devices if device.kind == CUDA)
        return Grant(devices=grant.devices, bytes=grant.bytes, gpus=gpus, evicted=_references(grant.evicted))

    def adopt(self, version: ModelVersion, worker: Worker) -> None:
        """See `models.ports.Memory`."""
        holder, spec = _HOLDER + version.reference, version.spec
        for device in worker.devices:
            self.broker.adopt(
                Charge(holder=holder, device=device, bytes=worker.bytes, priority=spec.priority, group=spec.group)
            )

    def measure(self, reference: str, resident_bytes: int, pids: Collection[int]) -> Holding | None:
        """See `models.ports.Memory`. The main memory that a model elsewhere takes is charged, too."""
        holder, statuses = _HOLDER + reference, {each.device.id: each for each in self._devices.statuses()}
        held = [statuses[charge.device] for charge in self.broker.held(holder) if charge.device in statuses]
        if not held:
            return None
        apart = [status for status in held if status.device.kind != HOST]
        share = -(-resident_bytes // max(1, len(apart)))
        sizes = {each.device.id: _bytes_of(each.reading, pids) if each.device.kind == CUDA else share for each in apart}
        fullest = max(sizes.values(), default=resident_bytes)
        if HOST in statuses:
            sizes[HOST] = resident_bytes
        for device, size in sizes.items():
            self.broker.observe(holder, size, device=device)
        kind = apart[0].device.kind if apart else HOST
        return Holding(kind=kind, bytes=fullest, beside_bytes=resident_bytes if kind == CUDA else 0)

    def release(self, reference: str) -> None:
        """See `models.ports.Memory`."""
        self.broker.release(_HOLDER + reference)

    def has_room(self, version: ModelVersion, needs: Mapping[str, int]) -> bool:
        """See `models.ports.Memory`."""
        outcome = self.broker.explain(self._demand(version, needs))
        return isinstance(outcome, Plan) and not outcome.victims

    def is_short(self) -> bool:
        """See `models.ports.Memory`."""
        return any(free < 0 for free in self.broker.ledger().free().values())

    # for the broker

    def tenants(self) -> Sequence[Tenant]:
        """See `gpu.ports.Tenants`."""
        return [
            Tenant(
                holder=charge.holder,
                device=charge.device,
                bytes=charge.bytes,
                priority=entry.version.spec.priority,
                pinned=entry.version.spec.pin or self.manager.is_held(resident.reference),
                in_flight=resident.users,
                loaded_at=resident.loaded_at,
                last_used_at=resident.last_used_at,
                uses=resident.uses,
                reload_s=max(entry.status.load_s, 0.001),
                min_residency_s=entry.version.spec.min_residency_s,
                group=entry.version.spec.group,
            )
            for entry, resident in self.manager.loaded()
            for charge in self.broker.held(_HOLDER + resident.reference)
        ]

    async def evict(self, holder: str, *, reason: str, because: str) -> None:
        """See `gpu.ports.Tenants`."""
        await self.manager.evict(holder.removeprefix(_HOLDER), reason=reason, message=because)

    def lose(self, holder: str, *, because: str) -> None:
        """See `gpu.ports.Tenants`."""
        self.manager.lose(holder.removeprefix(_HOLDER), why=because)

    # for whoever wants to know beforehand

    def explain(self, version: ModelVersion, needs: Mapping[str, int]) -> Explanation:
        """What loading a version would do now; changes nothing. `needs` is bytes by the kind of device."""
        demand = self._demand(version, needs)
        outcome, leases = self.broker.foresee(demand)
        if isinstance(outcome, Refusal):
            return Explanation(
                reference=version.reference,
                needed_bytes=demand.bytes,
                fits=False,
                reason=outcome.reason,
                message=outcome.message,
                retry_after_s=outcome.retry_after_s,
            )
        return Explanation(
            reference=version.reference,
            needed_bytes=demand.bytes_on(self._devices.status(outcome.device).device.kind),
            fits=True,
            placements=[
                PlacementView(
                    device=place.device,
                    free_before_bytes=place.free_before_bytes,
                    free_after_bytes=place.free_after_bytes,
                )
                for place in outcome.placements
            ],
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
            pauses=[
                PausedView(
                    job=lease.job,
                    device=lease.device,
                    bytes=lease.bytes,
                    priority=lease.priority,
                    grace_s=lease.grace_s,
                )
                for lease in leases
            ],
        )

    def _wanted(self, spec: ModelSpec) -> tuple[str, ...]:
        """The kinds and ids of the devices a model may be put on."""
        if isinstance(spec.devices, list):
            return tuple(spec.devices)
        if spec.devices != "auto":
            return (spec.devices,)
        may = spec.runtime in ACCELERATED and spec.options.get("device") != "cpu"
        has = any(status.device.kind == CUDA for status in self._devices.statuses())
        return (CUDA,) if may and has else (DECLARED, HOST)

    def _demand(self, version: ModelVersion, needs: Mapping[str, int]) -> Demand:
        """What a version asks of the books."""
        spec = version.spec
        return Demand(
            holder=_HOLDER + version.reference,
            bytes=next(iter(needs.values())),
            by_kind=needs,
            devices=self._wanted(spec),
            priority=spec.priority,
            shards=spec.shards,
            group=spec.group,
        )


def _references(holders: Sequence[str]) -> tuple[str, ...]:
    return tuple(holder.removeprefix(_HOLDER) for holder in holders)


def cuda_name(device: Device) -> str:
    """What `CUDA_VISIBLE_DEVICES` takes for a device: the driver's name, or its number on the PCI bus."""
    return device.uuid or device.id.partition(":")[2]


def _bytes_of(reading: DeviceReading | None, pids: Collection[int]) -> int:
    return 0 if reading is None else sum(size for pid, size in reading.processes.items() if pid in pids)
