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


class LineageView(TypedDict):
    """Where a version came from that was trained here."""

    base: str
    base_digest: str
    data_digest: str
    job: str
    type: str
    method: str
    hyperparameters: dict[str, Any]
    seed: int
    code_version: str
    metrics: dict[str, float]
    trained_tokens: int
    licence: str


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
    batching: dict[str, Any] | None
    canary: dict[str, Any] | None
    cost: float
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
    problem: str
    circuit: str
    lineage: LineageView | None
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
    weight: float
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


class TargetView(TypedDict):
    """A model that an alias names, and what its requests came to since the coordinator started, by whatever name.

    `part` is `version`, `fallback` or `shadow`; `share` is which part of the alias's requests it is to get.
    """

    reference: str
    part: str
    share: float
    model: str
    state: str
    requests: int
    error_rate: float | None
    p95_ms: float | None


class AliasView(TypedDict):
    """A name that stands for models, see `moc aliases`; `number` is that of its newest change."""

    name: str
    number: int
    versions: dict[str, float]
    fallback: list[str]
    policy: str
    sticky: str
    shadow: dict[str, float]
    hedge: bool
    changed_at: str
    changed_by: str
    reason: str
    targets: list[TargetView]


class AliasChangeView(TypedDict):
    """A change of an alias; `alias` is what it became, without its name, or None if it was removed."""

    number: int
    at: str
    actor: str
    reason: str
    alias: dict[str, Any] | None


class AliasHistory(TypedDict):
    """Part of an alias's history; give `next` as `after` for the part behind it, None = there is none yet."""

    items: list[AliasChangeView]
    next: int | None


class SeenView(TypedDict):
    """What a version did since a rollout's step began; `failures` are those by its own fault."""

    requests: int
    failures: int
    p95_ms: float | None


class MarkView(TypedDict):
    """A line of a rollout's history; what was seen is of the new version, in the step that ended then."""

    at: str
    state: str
    share_pct: float
    actor: str
    reason: str
    message: str
    requests: int
    failures: int
    p95_ms: float | None


class RolloutView(TypedDict):
    """An alias that is moved to the version `to`, which gets `share_pct` percent of its requests; see `moc rollout`."""

    id: str
    alias: str
    to: str
    old: str
    before: dict[str, float]
    state: str
    reason: str
    message: str
    share_pct: float
    steps: list[float]
    hold_s: float
    max_error_rate: float | None
    max_p95_ms: float | None
    max_p95_ratio: float | None
    min_requests: int
    created_at: str
    created_by: str
    changed_at: str
    waits_for: str
    new_seen: SeenView | None
    old_seen: SeenView | None
    history: list[MarkView]


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


class PausedView(TypedDict):
    """A learning job that would be paused so that a model fits."""

    job: str
    device: str
    bytes: int
    priority: int
    grace_s: float


class ExplanationView(TypedDict):
    """What loading a model would do now: where it goes and who makes room for it, or why it fits nowhere.

    It needs `needed_bytes` on each device.
    """

    reference: str
    needed_bytes: int
    fits: bool
    placements: list[PlacementView]
    victims: list[VictimView]
    pauses: list[PausedView]
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


class ConfigurationView(TypedDict):
    """The configuration in force, without secrets: `settings` by section."""

    revision: int
    at: str
    actor: str
    reason: str
    file: str
    settings: dict[str, Any]


class ChangeView(TypedDict):
    """A key whose value differs; None stands for a value that is not there. Without `live` it needs a restart."""

    key: str
    before: Any
    after: Any
    live: bool


class DifferenceView(TypedDict):
    """What applying a configuration would change; it is refused while `restart` names any key."""

    changes: list[ChangeView]
    restart: list[str]


class RevisionView(TypedDict):
    """A configuration that was put in force, or failed to be: by whom, why, what it changed."""

    number: int
    name: str
    sha256: str
    at: str
    actor: str
    reason: str
    changes: list[ChangeView]
    outcome: str
    problem: str


class RevisionPage(TypedDict):
    """Part of the revisions; give `next` as `after` for the part behind it, None = there is none yet."""

    items: list[RevisionView]
    next: int | None


class TokensView(TypedDict):
    """The tokens of a text; `max_model_len` is how many one request may have."""

    count: int
    max_model_len: int
    tokens: list[int]


Document = dict[str, Any]
"""An answer in the shape of the OpenAI API, unchanged."""

V = TypeVar("V")


class Page(TypedDict, Generic[V]):
    """Part of a list; give `next` as `after` for the part behind it, None = this was the last."""

    items: list[V]
    next: str | None
