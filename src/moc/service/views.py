"""What callers see of the nouns: plain data, times as RFC 3339 UTC, sizes in bytes, durations in seconds."""

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from moc.cluster.holder import Holder
from moc.gpu.lease import Standing
from moc.kernel.events import Event
from moc.models.catalogue import Entry
from moc.models.footprint import Footprint
from moc.models.lineage import Lineage
from moc.models.ports import Worker
from moc.resilience.bulkhead import Bulkhead

V = TypeVar("V")


def rfc3339(moment: float) -> str:
    """Seconds since the epoch as `2026-01-31T12:00:00.123456Z`."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Page(Generic[V]):
    """Some of a list; `next` is what to give as `after` for those that follow, None at the end."""

    items: list[V]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """A worker process and the devices its model is on.

    `memory_bytes` is main memory of its whole process tree, measured; `in_flight` its requests now.
    """

    id: str
    host: str
    pid: int
    model: str
    digest: str
    runtime: str
    state: str
    adopted: bool
    term: int
    started_at: str
    devices: list[str]
    memory_bytes: int
    in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactView:
    """The files of a version."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedMemoryView:
    """What a version will need on each of its devices; `how` is declared, learned, estimated or file size."""

    bytes: int
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """A model version: what it is, how it is doing, and the worker that holds it.

    `problem` says why it does not answer though it is loaded, empty when it does. `circuit` is open while requests are
    refused because those before failed, half_open while one is let through to try.
    `host_memory_bytes` is the most main memory it was measured to take beside its GPUs, None if it never was.
    `lineage` tells where it came from if it was trained here.
    """

    name: str
    version: int
    reference: str
    state: str
    reason: str
    message: str
    digest: str
    runtime: str
    source: str
    options: dict[str, Any]
    devices: str | list[str]
    memory_bytes: int | None
    expected_memory: ExpectedMemoryView | None
    host_memory_bytes: int | None
    shards: int
    group: str
    min_residency_s: float | None
    preload: bool
    pin: bool
    ttl_s: float
    priority: int
    max_concurrent: int
    max_queue: int
    created_at: str
    changed_at: str
    artifact: ArtifactView | None
    load_s: float
    info: dict[str, Any]
    adopted: bool
    worker: WorkerView | None
    problem: str
    batching: dict[str, Any] | None
    canary: dict[str, Any] | None
    cost: float
    circuit: str
    lineage: Lineage | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """Something that happened; see `kernel.events.Event`."""

    id: int
    at: str
    kind: str
    subject: str
    reason: str
    actor: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatView:
    """Who leads what."""

    name: str
    holder: str
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryView:
    """The host's memory, and the coordinator's own resident part of it."""

    total_bytes: int
    available_bytes: int
    coordinator_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemView:
    """This replica."""

    version: str
    replica: str
    host: str
    pid: int
    state: str
    started_at: str
    uptime_s: float
    data_dir: str
    store: str
    urls: dict[str, str]
    seats: list[SeatView]
    workers: list[WorkerView]
    memory: MemoryView


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeView:
    """Bytes of a device that belong to one holder; priority 1 is the highest."""

    holder: str
    bytes: int
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """Memory that models are put in, and who has it.

    `limit_bytes` is how much is given away at most; `charged_bytes` is given away, to the holders in `charges`.
    `measured_bytes` is in use, by anybody; `unmanaged_bytes` of that by processes nobody declared. What a
    lost device does not tell is null.
    """

    id: str
    kind: str
    name: str
    uuid: str
    state: str
    capacity_bytes: int
    limit_bytes: int
    charged_bytes: int
    charges: list[ChargeView]
    measured_bytes: int | None
    unmanaged_bytes: int | None
    temperature_c: float | None
    utilization_ratio: float | None
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """Memory of a device that a process outside has, or waits for.

    It is `holder`'s, a key id, until `expires_at` unless it is renewed. `devices` is what was asked for, `device`
    what was given; `token` grows with every grant, compared as two numbers. One that is `preempting` ends
    `evict_in_s` from now, at `evict_at`. `quarantined`: it ended, but its process still has the memory. Of a pending
    one `message` says what it waits for, `position` its place among those who wait for the same devices (1 is the
    next) and `estimated_wait_s` how long it will wait, null when that is not known.
    """

    id: str
    state: str
    reason: str
    message: str
    holder: str
    holder_name: str
    devices: str
    device: str
    bytes: int
    priority: int
    token: str | None
    ttl_s: float
    min_runtime_s: float
    grace_s: float
    pid: int | None
    quarantined: bool
    created_at: str
    granted_at: str | None
    expires_at: str | None
    evict_at: str | None
    evict_in_s: float | None
    position: int | None
    estimated_wait_s: float | None


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether requests should be sent here; how each part is, and why those that are not well are not."""

    ready: bool
    parts: dict[str, bool] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def worker_view(worker: Worker, *, memory_bytes: int, in_flight: int) -> WorkerView:
    """A worker with what was measured of it."""
    return WorkerView(
        id=worker.id,
        host=worker.host,
        pid=worker.pid,
        model=worker.model,
        digest=worker.digest,
        runtime=worker.runtime,
        state=worker.state,
        adopted=worker.adopted,
        term=worker.term,
        started_at=rfc3339(worker.started_at),
        devices=list(worker.devices),
        memory_bytes=memory_bytes,
        in_flight=in_flight,
    )


def model_view(
    entry: Entry,
    worker: WorkerView | None,
    expected: Footprint | None,
    *,
    host_memory_bytes: int | None,
    problem: str,
    circuit: str,
    bulkhead: Bulkhead,
) -> ModelView:
    """A version with the worker that holds it, and what it is expected to need."""
    version, status, spec = entry.version, entry.status, entry.version.spec
    bulkhead = bulkhead.but(spec.max_concurrent, spec.max_queue)
    artifact = version.artifact
    return ModelView(
        name=version.name,
        version=version.version,
        reference=version.reference,
        state=status.state,
        reason=status.reason,
        message=status.message,
        digest=version.digest,
        runtime=spec.runtime,
        source=spec.source,
        options=spec.options,
        devices=spec.devices,
        memory_bytes=spec.memory_bytes,
        expected_memory=None if expected is None else ExpectedMemoryView(bytes=expected.bytes, how=expected.how),
        host_memory_bytes=host_memory_bytes,
        shards=spec.shards,
        group=spec.group,
        min_residency_s=spec.min_residency_s,
        batching=None if spec.batching is None else asdict(spec.batching),
        canary=None if spec.canary is None else asdict(spec.canary),
        cost=spec.cost,
        preload=spec.preload,
        pin=spec.pin,
        ttl_s=spec.ttl_s,
        priority=spec.priority,
        max_concurrent=bulkhead.max_concurrent,
        max_queue=bulkhead.max_queue,
        created_at=rfc3339(version.created_at),
        changed_at=rfc3339(status.changed_at),
        artifact=None if artifact is None else ArtifactView(sha256=artifact.sha256, size_bytes=artifact.size_bytes),
        load_s=status.load_s,
        info=status.info,
        adopted=worker is not None and worker.adopted,
        problem=problem,
        circuit=circuit,
        lineage=version.lineage,
        worker=worker,
    )


def lease_view(standing: Standing) -> LeaseView:
    """A lease as callers see it."""
    lease, terms = standing.lease, standing.lease.terms
    process = Holder.parse(lease.process)
    return LeaseView(
        id=lease.id,
        state=lease.state,
        reason=lease.reason,
        message=standing.message,
        holder=lease.holder,
        holder_name=lease.holder_name,
        devices=terms.devices,
        device=lease.device,
        bytes=terms.bytes,
        priority=terms.priority,
        token=None if lease.token is None else str(lease.token),
        ttl_s=terms.ttl_s,
        min_runtime_s=terms.min_runtime_s,
        grace_s=terms.grace_s,
        pid=None if process is None else process.pid,
        quarantined=lease.quarantined,
        created_at=rfc3339(lease.created_at),
        granted_at=rfc3339(lease.granted_at) if lease.granted_at else None,
        expires_at=None if standing.expires_at is None else rfc3339(standing.expires_at),
        evict_at=None if standing.evict_at is None else rfc3339(standing.evict_at),
        evict_in_s=standing.evict_in_s,
        position=standing.position,
        estimated_wait_s=standing.estimated_wait_s,
    )


def event_view(event: Event) -> EventView:
    """An event as callers see it."""
    return EventView(
        id=event.id,
        at=rfc3339(event.at),
        kind=event.kind,
        subject=event.subject,
        reason=event.reason,
        actor=event.actor,
        data=event.data,
    )
