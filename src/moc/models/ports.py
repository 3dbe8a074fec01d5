"""What models need from others: processes that hold them, and files to load."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from moc.kernel.records import Fence
from moc.models.model import Artifact, ModelSpec, ModelVersion
from moc.resilience.breaker import Circuit
from moc.resilience.deadline import Deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a worker is started with. `model` is `name@version`, `path` the artifact on this host.

    It was charged `bytes` on each of `devices`. `gpus` is what CUDA calls those of them that are GPUs: the only
    ones the worker sees.
    """

    model: str
    digest: str
    runtime: str
    path: str
    devices: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    bytes: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A process that holds one model; the record that lets the next coordinator adopt it.

    `process_started_at` (with `pid`) names the process beyond doubt, in seconds since the system began;
    `folder` is its private folder (0700) with `socket` in it; `term` is that of the host seat it was last
    claimed with; `adopted` is true when a later coordinator than the one that started it holds it;
    `info` is what its engine said when it was ready; it was charged `bytes` on each of `devices`.
    """

    id: str
    host: str
    pid: int
    process_started_at: float
    folder: str
    socket: str
    model: str
    digest: str
    runtime: str
    state: str
    term: int
    started_at: float
    devices: tuple[str, ...] = ()
    bytes: int = 0
    adopted: bool = False
    info: dict[str, Any] = field(default_factory=dict)


class Workers(Protocol):
    """Worker processes on this host. The implementation alone writes `workers/` records and events."""

    async def start_worker(self, launch: Launch, deadline: Deadline) -> Worker:
        """Spawn a worker and wait until its model is loaded.

        LoadFailed (details.reason, and details.log: its last lines) when it cannot; DeadlineExceeded when
        not in time. However this ends without a Worker, the process is dead and its record gone.
        """
        ...

    async def stop_worker(self, worker_id: str, *, reason: str, may_sleep: bool = False) -> None:
        """End a worker and all its children; returns when they are dead. No error when it is gone already.

        Asked politely first, SIGTERM after `stop_grace_s`, then SIGKILL. With `may_sleep`, one that can is put to
        sleep instead: it gives the memory of its devices back, and `start_worker` for its model on the same devices
        wakes it.
        """
        ...

    def sleeping(self) -> list[str]:
        """The models (`name@version`) whose workers sleep."""
        ...

    async def end_sleeping(self, model: str) -> None:
        """End the worker that sleeps with a model; no error when there is none."""
        ...

    async def adopt(self) -> list[Worker]:
        """Claim the workers an earlier coordinator left on this host; clean up after the dead ones.

        Returns those that are alive, hold a loaded model and accepted this term.
        """
        ...

    def workers(self) -> list[Worker]:
        """A snapshot of the workers held now."""
        ...

    def on_lost(self, callback: Callable[[Worker, str], None]) -> None:
        """Have `callback(worker, why)` called, on the event loop, when a worker dies unasked."""
        ...

    def memory_bytes(self, worker_id: str) -> int:
        """Resident memory of the worker's process tree, as last measured; 0 when unknown."""
        ...

    def pids(self, worker_id: str) -> frozenset[int]:
        """The worker's process tree, as last measured; empty when unknown."""
        ...


class Warm(Protocol):
    """Tries a worker that was just started."""

    async def __call__(self, version: ModelVersion, worker_id: str) -> None:
        """LoadFailed when it does not do what it should."""
        ...


class HostSeat(Protocol):
    """The right to change what runs on this host."""

    @property
    def term(self) -> int: ...

    def fence(self) -> Fence:
        """The operation that makes a commit fail once this term is over; NotLeader if it is known to be."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Device memory that was charged to a model: `bytes` on each of `devices`.

    `gpus` is what CUDA calls those of them that are GPUs; `evicted` the models (`name@version`) that were unloaded.
    """

    devices: tuple[str, ...]
    bytes: int
    gpus: tuple[str, ...] = ()
    evicted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a loaded version was measured to hold: `bytes` on each of its devices, which are of kind `kind`.

    Of several devices the fullest counts. `beside_bytes` is what one on a GPU takes of main memory beside that.
    """

    kind: str
    bytes: int
    beside_bytes: int = 0


class Memory(Protocol):
    """Who keeps the books of device memory."""

    def kinds(self, version: ModelVersion) -> Sequence[str]:
        """The kinds of devices a version may be put on, the likeliest first; never empty."""
        ...

    async def reserve(self, version: ModelVersion, needs: Mapping[str, int], deadline: Deadline) -> Grant:
        """Charge what a version needs before it is loaded, unloading others if that takes it.

        `needs` is bytes on each of its devices by their kind, for all of `kinds`. NoCapacity when it does not fit
        by the deadline; those unloaded in vain are in its details, as `evicted`.
        """
        ...

    def adopt(self, version: ModelVersion, worker: Worker) -> None:
        """Charge what the worker of a version holds already."""
        ...

    def measure(self, reference: str, resident_bytes: int, pids: Collection[int]) -> Holding | None:
        """What a loaded version holds now, its process tree being `pids` with so much of main memory; None if unknown.

        What is more than it was charged is charged from now on.
        """
        ...

    def release(self, reference: str) -> None:
        """Its process is dead, or sleeps; idempotent."""
        ...

    def has_room(self, version: ModelVersion, needs: Mapping[str, int]) -> bool:
        """Whether `reserve` would charge a version now without unloading others."""
        ...

    def is_short(self) -> bool:
        """Whether more is in use of a device than is to be."""
        ...


Progress = Callable[[int, int | None], None]
"""Called with bytes so far and in all (None = unknown)."""


class Sources(Protocol):
    """Where artifacts come from."""

    def check(self, spec: ModelSpec, *, trusted: bool) -> None:
        """InvalidRequest when what `spec` names cannot be fetched, or may not be by a caller who is not trusted.

        The operator's own configuration is trusted; what came over an API is not.
        """
        ...

    async def fetch(self, spec: ModelSpec, progress: Progress) -> Artifact:
        """Bring the artifact here (resuming, hashing), or find it here already.

        LoadFailed(reason="load_failed") saying what could not be fetched and why, InvalidRequest for a
        source or hash that cannot be right. Cancelling keeps what was downloaded, for the next try.
        """
        ...

    async def verify(self, artifact: Artifact) -> None:
        """LoadFailed when the files are gone or are no longer what was hashed."""
        ...

    async def verify_adapters(self, spec: ModelSpec) -> None:
        """LoadFailed when an adapter whose hash `spec` tells is gone or is another."""
        ...

    async def discard(self, path: str) -> None:
        """Delete a file or folder of versions if it is the coordinator's own; leave a user's `file:` alone."""
        ...


class Sample(Protocol):
    """What requests of one version came to: how many, how many failed by the engine's fault, how long they took."""

    @property
    def count(self) -> int:
        """Requests that were answered, or failed by the engine's fault."""
        ...

    @property
    def failures(self) -> int: ...

    def quantile_s(self, q: float) -> float:
        """Seconds in the engine that a share `q` of them did not exceed."""
        ...

    def __sub__(self, earlier: Self) -> Self:
        """What came since then."""
        ...


class Circuits(Protocol):
    """What stands between requests and workers."""

    def circuit(self, worker_id: str) -> Circuit:
        """It is open while requests are refused because too many before them failed."""
        ...


class Observations(Protocol):
    """What is seen of the requests of each version."""

    def snapshot(self, reference: str) -> Sample:
        """All since the coordinator started."""
        ...
