"""Prometheus metrics: base units, prefix `modelops_`, labels of bounded number (never a key or a request)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from moc.telemetry.learning import LearningGauges
from moc.telemetry.traffic import TrafficCounters

CONTENT_TYPE = CONTENT_TYPE_LATEST

_LOADS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
_WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class _Children:
    """The label children of one (model, kind, code), bound once: looking labels up costs more than counting."""

    __slots__ = ("engine", "queue", "requests")

    def __init__(self, requests: Counter, queue: Histogram, engine: Histogram) -> None:
        self.requests = requests
        self.queue = queue
        self.engine = engine


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGauges:
    """A device as it is now; None = it does not tell. `reserved_bytes` is what is charged, by kind of holder."""

    device: str
    state: str
    capacity_bytes: int
    used_bytes: int | None
    unmanaged_bytes: int | None
    reserved_bytes: Mapping[str, int] = field(default_factory=dict)


class Metrics:
    """The registry and every series in it."""

    def __init__(self, *, version: str) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "modelops_requests_total", "Requests that ended.", ["model", "kind", "code"], registry=self.registry
        )
        self._queue = self._seconds(
            "modelops_request_queue_seconds", "Time a request waited for a place at its model.", ["model"], _SECONDS
        )
        self._engine = self._seconds(
            "modelops_request_engine_seconds",
            "Time from handing a request to its worker to the end of the answer.",
            ["model", "kind"],
            _SECONDS,
        )
        self._workers = Gauge("modelops_workers", "Worker processes held.", registry=self.registry)
        self._memory = Gauge(
            "modelops_worker_memory_bytes", "Memory of a model's worker processes.", ["model"], registry=self.registry
        )
        self._capacity = self._device_gauge("memory_capacity_bytes", "Memory a device has.")
        self._used = self._device_gauge("memory_used_bytes", "Memory of a device in use, by anybody.")
        self._unmanaged = self._device_gauge(
            "memory_unmanaged_bytes", "Memory of a device in use by processes nobody declared."
        )
        self._reserved = Gauge(
            "modelops_gpu_memory_reserved_bytes",
            "Memory of a device charged to holders, used or not.",
            ["device", "holder_kind"],
            registry=self.registry,
        )
        self._state = self._device_gauge("state", "1 for the state a device is in.", "state")
        self._held = Gauge(
            "modelops_seat_held", "1 while this replica holds the seat.", ["seat"], registry=self.registry
        )
        self._term = Gauge("modelops_seat_term", "The seat's term as last held here.", ["seat"], registry=self.registry)
        Gauge("modelops_build_info", "Always 1.", ["version"], registry=self.registry).labels(version).set(1)
        self._evictions = Counter(
            "modelops_evictions_total", "Models unloaded so that others fit.", ["reason"], registry=self.registry
        )
        self._waits = self._seconds(
            "modelops_gpu_lease_wait_seconds",
            "Time from asking for a lease to its grant or refusal.",
            ["outcome"],
            _WAITS,
        )
        self._leases = Gauge("modelops_leases", "Leases that wait or have memory.", ["state"], registry=self.registry)
        self._loads = self._seconds(
            "modelops_model_load_duration_seconds",
            "Time from starting a model's worker to its being ready.",
            ["model"],
            _LOADS,
        )
        self._fenced = Counter(
            "modelops_fencing_rejections_total",
            "Writes refused because the seat they were made under is somebody else's by now.",
            registry=self.registry,
        )
        self.learning = LearningGauges(self.registry)
        self.traffic = TrafficCounters(self.registry)
        self._children: dict[tuple[str, str, str], _Children] = {}

    def finished(self, reference: str, kind: str, code: str, *, queue_s: float, engine_s: float) -> None:
        """Count one request; see `inference.ports.Meter`."""
        children = self._children.get((reference, kind, code))
        if children is None:
            children = self._bind(reference, kind, code)
        children.requests.inc()
        children.queue.observe(queue_s)
        children.engine.observe(engine_s)

    def observe_workers(self, memory_by_model: dict[str, int]) -> None:
        """Take stock: resident bytes of each loaded model."""
        self._workers.set(len(memory_by_model))
        self._memory.clear()
        for reference, size in memory_by_model.items():
            self._memory.labels(reference).set(size)

    def observe_devices(self, devices: Iterable[DeviceGauges]) -> None:
        """Take stock of the devices; what one does not tell has no sample."""
        for gauge in (self._capacity, self._used, self._unmanaged, self._reserved, self._state):
            gauge.clear()
        for each in devices:
            self._capacity.labels(each.device).set(each.capacity_bytes)
            self._state.labels(each.device, each.state).set(1)
            if each.used_bytes is not None:
                self._used.labels(each.device).set(each.used_bytes)
            if each.unmanaged_bytes is not None:
                self._unmanaged.labels(each.device).set(each.unmanaged_bytes)
            for kind, size in each.reserved_bytes.items():
                self._reserved.labels(each.device, kind).set(size)

    def observe_leases(self, count_by_state: Mapping[str, int]) -> None:
        """Take stock of the leases."""
        for state, count in count_by_state.items():
            self._leases.labels(state).set(count)

    def observe_seat(self, seat: str, *, held: bool, term: int) -> None:
        """Take stock of a seat."""
        self._held.labels(seat).set(int(held))
        self._term.labels(seat).set(term)

    def evicted(self, reason: str) -> None:
        """Count a model that was unloaded so that another fits."""
        self._evictions.labels(reason).inc()

    def model_loaded(self, reference: str, seconds: float) -> None:
        """Count a model that was loaded, and how long that took."""
        self._loads.labels(reference).observe(seconds)

    def fenced(self) -> None:
        """Count a write that was refused because its term is over."""
        self._fenced.inc()

    def lease_waited(self, outcome: str, seconds: float) -> None:
        """Count a lease that was `granted` or `refused`, and how long that took."""
        self._waits.labels(outcome).observe(seconds)

    def text(self, refresh: Callable[[], None]) -> bytes:
        """The exposition in Prometheus' text format, after `refresh` took stock."""
        refresh()
        return generate_latest(self.registry)

    def _device_gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"modelops_device_{name}", meaning, ["device", *labels], registry=self.registry)

    def _seconds(self, name: str, meaning: str, labels: list[str], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, meaning, labels, buckets=buckets, registry=self.registry)

    def _bind(self, reference: str, kind: str, code: str) -> _Children:
        children = self._children[(reference, kind, code)] = _Children(
            self._requests.labels(reference, kind, code),
            self._queue.labels(reference),
            self._engine.labels(reference, kind),
        )
        return children
