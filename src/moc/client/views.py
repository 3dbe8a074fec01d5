"""What the coordinator's management API answers, as the plain dictionaries its JSON decodes to.

Times are RFC 3339 UTC, sizes bytes, durations seconds. A newer coordinator may send more keys.
"""

from typing import Any, Generic, TypedDict, TypeVar


class ArtifactView(TypedDict):
    sha256: str
    size_bytes: int


class WorkerView(TypedDict):
    """A worker process; `adopted` when it outlived the coordinator that started it."""

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
    memory_bytes: int | None
    in_flight: int


class ExpectedMemoryView(TypedDict):
    """What a version will need on each of its devices; `how` is declared, learned, estimated or file size."""

    bytes: int
    how: str


class ModelView(TypedDict):
    """One version of a model: what it was told to be and how it is doing."""

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


class SeatView(TypedDict):
    name: str
    holder: str
    term: int


class MemoryView(TypedDict):
    total_bytes: int
    available_bytes: int
    coordinator_bytes: int


class SystemView(TypedDict):
    """A replica and what it looks after."""

    version: str
    replica: str
    host: str
    pid: int
    started_at: str
    uptime_s: float
    state: str
    seats: list[SeatView]
    workers: list[WorkerView]
    memory: MemoryView
    store: str
    data_dir: str
    urls: dict[str, str]


class ChargeView(TypedDict):
    holder: str
    bytes: int
    priority: int


class DeviceView(TypedDict):
    """Memory that models are put in; what a lost device does not tell is None."""

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


class LeaseView(TypedDict):
    """Memory of a device that a process has, or waits for; see `moc lease`.

    It is kept until `expires_at`, or `evict_in_s` from now when it is preempted. One that is pending is at `position`
    in its line, 1 is the next; `estimated_wait_s` is None when that is not known.
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


class KeyView(TypedDict):
    """An API key, without what opens; see `moc keys`."""

    id: str
    name: str
    role: str
    state: str
    models: list[str]
    rate: str | None
    max_concurrency: int | None
    curve_public: str
    created_at: str
    created_by: str
    expires_at: str | None
    rotated_at: str | None
    overlap_until: str | None
    revoked_at: str | None
    last_used_at: str | None


class NewKeyView(KeyView):
    """A key with the token that opens, which is told once."""

    token: str


class AuditView(TypedDict):
    """Who did what to what; `outcome` is `ok` or an error's code."""

    seq: int
    at: str
    actor: str
    actor_name: str
    operation: str
    subject: str
    outcome: str
    request_id: str
    address: str
    previous: str
    hash: str


class AuditPage(TypedDict):
    """Part of the audit; give `next` as `after` for the part behind it, None = there is none yet."""

    items: list[AuditView]
    next: int | None


class VerdictView(TypedDict):
    """Whether the audit is whole, up to the entry `checked`; `problem` says what is wrong behind it."""

    whole: bool
    checked: int
    head_seq: int
    head_hash: str
    problem: str


class EventView(TypedDict):
    id: int
    at: str
    kind: str
    subject: str
    reason: str
    actor: str
    data: dict[str, Any]


class EventPage(TypedDict):
    """Part of the events; give `next` as `after` for the part behind it, None = there is none yet."""

    items: list[EventView]
    next: int | None


class PlacementView(TypedDict):
    """A device that a model would be loaded on."""

    device: str
    free_before_bytes: int
    free_after_bytes: int


class VictimView(TypedDict):
    """A model that would be unloaded so that another fits."""

    reference: str
    bytes: int
    reason: str
    because: str
    score: float
    after_drain: bool


class ExplanationView(TypedDict):
    """What loading a model would do now: where it goes and who leaves for it, or why it fits nowhere.

    It needs `needed_bytes` on each device.
    """

    reference: str
    needed_bytes: int
    fits: bool
    placements: list[PlacementView]
    victims: list[VictimView]
    reason: str
    message: str
    retry_after_s: float | None


class TensorView(TypedDict):
    """A tensor a model takes or gives; -1 in `shape` is a dimension of any size."""

    name: str
    datatype: str
    shape: list[int]


class MetadataView(TypedDict):
    """What the Open Inference Protocol says of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorView]
    outputs: list[TensorView]


Document = dict[str, Any]
"""An answer in the shape of the OpenAI API, unchanged."""

V = TypeVar("V")


class Page(TypedDict, Generic[V]):
    """Part of a list; give `next` as `after` for the part behind it, None = this was the last."""

    items: list[V]
    next: str | None
