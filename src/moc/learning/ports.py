"""What learning needs from others: processes, memory, the models it starts from and ends in, files, and a seat."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from moc.kernel.records import Fence
from moc.learning.job import Job, JobSpec, Outcome


class ClusterSeat(Protocol):
    """The right to run jobs."""

    @property
    def held(self) -> bool: ...

    @property
    def term(self) -> int: ...

    def fence(self) -> Fence:
        """The operation that makes a commit fail once this term is over; NotLeader if it is known to be."""
        ...


# programs


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A program to be started in `folder`, the job's own; see docs/reference/job-programs.md for what it is told.

    `task` is what a program of ours is to do, as JSON; `command` the user's own, for scripts, which runs in `workdir`
    or else in `folder`. It has `bytes` on `device`; `gpus` is what CUDA calls the GPUs it may see.
    """

    job_id: str
    attempt: int
    folder: Path
    type: str
    task: Mapping[str, Any]
    seed: int = 0
    device: str = ""
    bytes: int = 0
    command: tuple[str, ...] = ()
    workdir: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The process that looks after a program; both its numbers name it, whatever the wall clock is set to."""

    pid: int
    process_started_at: float


@dataclass(frozen=True, slots=True)
class Ending:
    """How a program ended: its exit status, negative for a signal, None when nobody was there to see it.

    `log` is the last it wrote, for whoever has to be told why. `starved`: the system killed processes for want of
    memory while it ran. `disk_full`: there was no room left where it writes, so that it may not have told.
    """

    status: int | None
    log: str = ""
    starved: bool = False
    disk_full: bool = False


@dataclass(frozen=True, slots=True)
class News:
    """What a program told since the last reading: one mapping for each line, and how far it was read now."""

    lines: Sequence[Mapping[str, Any]]
    read_bytes: int


STOPPED_STATUS = 75
"""The exit status of a program that was asked to stop, saved a checkpoint, and is to be started again (EX_TEMPFAIL)."""


class Programs(Protocol):
    """Programs of jobs as processes of this host, which outlive the coordinator.

    `folder` is that of an attempt: `attempts/<number>` in the folder of its job.
    """

    async def start(self, order: Order) -> Started:
        """Start it; Unavailable when the system has no room for another process, OSError when the disk has none."""
        ...

    async def find(self, folder: Path) -> Started | None:
        """The one that runs for an attempt, among all processes: who started it may have died before it said so."""
        ...

    async def look(self, folder: Path, process: Started) -> Ending | None:
        """How it ended, None while it runs. What it left behind is killed before it counts as ended.

        One that is gone, or never was, has ended. Unavailable when what it left does not die.
        """
        ...

    async def claim(self, folder: Path) -> None:
        """Say that somebody still wants it: a program nobody claims for `orphan_grace_s` saves and ends."""
        ...

    async def news(self, folder: Path, after_bytes: int) -> News:
        """What it told since then; a line that is not complete yet is left for the next time."""
        ...

    async def interrupt(self, folder: Path, process: Started) -> None:
        """Ask it to save a checkpoint and end, halted or not."""
        ...

    def halt(self, process: Started) -> None:
        """Have it stand still, with all it started; no error when it is gone."""
        ...

    def proceed(self, process: Started) -> None:
        """Have it go on; no error when it does, or is gone."""
        ...

    async def kill(self, folder: Path, process: Started) -> None:
        """SIGKILL it and all it started; returns when they are dead. No error when they are already.

        Unavailable when they do not die, as those that wait for a broken disk.
        """
        ...

    def memory_bytes(self, process: Started) -> int:
        """What its process tree holds of main memory, 0 when that cannot be told."""
        ...

    def log(self, folder: Path, *, tail_bytes: int) -> str:
        """The last that an attempt wrote."""
        ...


# memory

EXPIRED = "Expired"
"""Why a holding is over: nobody kept it for too long."""
PROCESS_GONE = "ProcessGone"
"""Why a holding is over: the process that used it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """Memory that a job has: `bytes` on `device`, under the lease `lease_id` with `token`.

    `gpus` is what CUDA calls the device if it is a GPU. `evict_in_s` is how long it has left, None unless it is
    being taken back.
    """

    lease_id: str
    token: str
    device: str
    bytes: int
    gpus: tuple[str, ...] = ()
    evict_in_s: float | None = None


class Memory(Protocol):
    """Device memory for jobs: leases that serving takes back when it needs them."""

    async def acquire(self, job: Job, size: int, *, on_wait: Callable[[str], None]) -> Holding:
        """Memory for a job, waited for as long as it takes; `on_wait` is told what it waits for, whenever that changes.

        NoCapacity when it can never have so much. Cancelled it leaves nothing behind.
        """
        ...

    async def renew(self, holding: Holding, pid: int | None) -> Holding:
        """Keep it, and say which process uses it.

        Conflict when it is over, with the `reason` in its details, and `quarantined` while nobody else may have it
        before that process is dead.
        """
        ...

    async def release(self, holding: Holding) -> None:
        """The job's processes are dead; idempotent."""
        ...

    async def need(self, job: Job, prepared: "Prepared") -> int:
        """Bytes that a job will need: declared, or estimated and corrected by what such jobs were seen to take."""
        ...

    async def doubt(self, job: Job, prepared: "Prepared") -> str:
        """What is to be said of the bytes declared for a job if it can hardly begin with so few; else nothing."""
        ...

    async def learn(self, job: Job, prepared: "Prepared | None", *, device: str, peak_bytes: int) -> None:
        """A job was seen to take so much at most."""
        ...


# models


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What a training starts from: a version with its files here.

    `path` is the file or folder of `runtime`; `adapters` are those it is served with, as in the option `lora`;
    `spec` is what the version was registered with, as JSON; `parameters` is how many weights it has, 0 when its
    headers do not say.
    """

    reference: str
    digest: str
    runtime: str
    path: Path
    sha256: str
    size_bytes: int
    adapters: tuple[Mapping[str, Any], ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training made: `path` is the job's output folder; `kind` is `adapter` or `merged`."""

    job: Job
    base: Base
    kind: str
    path: Path
    data_digest: str
    metrics: Mapping[str, float]
    trained_tokens: int
    hyperparameters: Mapping[str, Any]


class Registry(Protocol):
    """The models: what trainings start from and end in."""

    def pin(self, reference: str) -> str:
        """The version, `name@version`, that a name or an alias means now; NotFound, InvalidRequest as of `base`."""
        ...

    def check_name(self, name: str) -> None:
        """InvalidRequest, Conflict when no model may be called that."""
        ...

    async def base(self, reference: str) -> Base:
        """The version a reference names, its files brought here; NotFound, InvalidRequest when it cannot be trained."""
        ...

    async def register(self, trained: Trained) -> str:
        """Make what was trained a version, with its lineage; its reference. Idempotent for a job and a name."""
        ...


class Visitors(Protocol):
    """Keys for programs that use the public API in the name of who submitted their job."""

    async def admit(self, job: Job, folder: Path) -> Mapping[str, str]:
        """The environment that lets a program in (`MOC_URL`, `MOC_API_KEY_FILE`); its key can no more than theirs."""
        ...

    async def dismiss(self, job: Job) -> None:
        """Its key opens nothing any more; idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job that can be started: the `task` of its program, what it starts from, whether it uses the public API.

    `data_digest` is the hash of all it learns from, `longest` how many tokens a row of that has at most.
    """

    task: Mapping[str, Any]
    base: Base | None = None
    data_digest: str = ""
    longest: int = 0
    command: tuple[str, ...] = ()
    workdir: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    visits: bool = False


class Kind(Protocol):
    """A type of job: whether a spec makes sense, what its program is told, what becomes of what that made."""

    async def check(self, spec: JobSpec) -> JobSpec:
        """The spec with every default filled in; InvalidRequest saying what is wrong where, NotFound. Quick."""
        ...

    async def prepare(self, job: Job, folder: Path) -> Prepared:
        """All its program needs, its data read and found good; InvalidRequest, NotFound, LoadFailed when not.

        Called before every attempt; `folder` is the job's own.
        """
        ...

    async def finish(self, job: Job, prepared: Prepared, told: Mapping[str, Any], folder: Path) -> Outcome:
        """What the job came to, made durable, from what its program told last. Idempotent: it may be done again."""
        ...
