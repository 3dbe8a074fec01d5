"""What models need from others: processes that hold them, and files to load."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from moc.kernel.records import Fence
from moc.models.model import Artifact, ModelSpec, ModelVersion
from moc.resilience.deadline import Deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a worker is started with. `model` is `name@version`, `path` the artifact on this host.

    `device` and `bytes` are the memory it was charged.
    """

    model: str
    digest: str
    runtime: str
    path: str
    device: str = ""
    bytes: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A process that holds one model; the record that lets the next coordinator adopt it.

    `process_started_at` (with `pid`) names the process beyond doubt, as psutil's create_time gives it;
    `folder` is its private folder (0700) with `socket` in it; `term` is that of the host seat it was last
    claimed with; `adopted` is true when a later coordinator than the one that started it holds it;
    `info` is what its engine said when it was ready; `device` and `bytes` are the memory it was charged.
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
    device: str = ""
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

    async def stop_worker(self, worker_id: str, *, reason: str) -> None:
        """End a worker and all its children; returns when they are dead. No error when it is gone already.

        Asked politely first, SIGTERM after `stop_grace_s`, then SIGKILL.
        """
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


class HostSeat(Protocol):
    """The right to change what runs on this host."""

    @property
    def term(self) -> int: ...

    def fence(self) -> Fence:
        """The operation that makes a commit fail once this term is over; NotLeader if it is known to be."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Device memory that was charged to a model, and the models (`name@version`) that were unloaded for it."""

    device: str
    bytes: int
    evicted: tuple[str, ...] = ()


class Memory(Protocol):
    """Who keeps the books of device memory."""

    async def reserve(self, version: ModelVersion, needed_bytes: int, deadline: Deadline) -> Grant:
        """Charge what a version needs before it is loaded, unloading others if that takes it.

        NoCapacity when it does not fit by the deadline; those unloaded in vain are in its details, as `evicted`.
        """
        ...

    def adopt(self, worker: Worker) -> None:
        """Charge what a worker holds already."""
        ...

    def observe(self, reference: str, measured_bytes: int) -> None:
        """A loaded version was measured to hold so much."""
        ...

    def release(self, reference: str) -> None:
        """Its process is dead; idempotent."""
        ...


Progress = Callable[[int, int | None], None]
"""Called with bytes so far and in all (None = unknown)."""


class Sources(Protocol):
    """Where artifacts come from."""

    def check(self, source: str, *, trusted: bool) -> None:
        """InvalidRequest when `source` cannot be fetched, or may not be by a caller who is not trusted.

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

    async def discard(self, artifact: Artifact) -> None:
        """Delete the files if they are the coordinator's own copy; leave a user's `file:` alone."""
        ...
