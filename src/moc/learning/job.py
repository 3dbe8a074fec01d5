"""The nouns: a learning job, its states, and the attempts it takes to end it."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from moc.kernel.errors import InvalidRequest


class JobType(StrEnum):
    """`supervised` and `dpo` fine-tune, `evaluate` measures, `tune` searches, `script` runs any program."""

    SUPERVISED = "supervised"
    DPO = "dpo"
    EVALUATE = "evaluate"
    TUNE = "tune"
    SCRIPT = "script"


TRAINING = frozenset({JobType.SUPERVISED, JobType.DPO})
"""Those that end in a version of a model."""

COORDINATING = frozenset({JobType.TUNE})
"""Those whose work other jobs do: they take none of the places that `learning.max_parallel_jobs` counts."""


RESULTS = ("adapter", "merged")
"""What a training may end in."""


class JobState(StrEnum):
    """`validating` reads what it was given; `queued` waits for a place and for memory; `paused` was running.

    A job that was paused for another's need goes on by itself; one that was asked to pause waits to be asked again.
    """

    VALIDATING = "validating"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.VALIDATING: frozenset({JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}),
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.PAUSED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}
"""Every move a job's state may make."""


class Reason(StrEnum):
    """Why a job is in its state."""

    SUBMITTED = "Submitted"
    VALIDATED = "Validated"
    STARTED = "Started"
    RESUMED = "Resumed"
    REQUESTED = "Requested"
    """A user asked for it."""
    PREEMPTED = "Preempted"
    """Somebody more urgent needed its memory; it goes on when there is enough again."""
    RUNNER_GONE = "RunnerGone"
    """Its process ended, or its host did, before it was done; it is tried again from its last checkpoint."""
    PARENT = "Parent"
    """The job it belongs to was paused, resumed or cancelled."""
    PRUNED = "Pruned"
    """The search it belongs to saw that it would not become the best."""
    INVALID = "Invalid"
    """What it was given cannot be worked on."""
    OUT_OF_MEMORY = "OutOfMemory"
    DISK_FULL = "DiskFull"
    NO_CAPACITY = "NoCapacity"
    """It can never have the memory it needs."""
    PROGRAM_FAILED = "ProgramFailed"
    ATTEMPTS_USED_UP = "AttemptsUsedUp"
    """Its runner was gone too often without a step forward in between."""
    DONE = "Done"


class Wish(StrEnum):
    """What a user asked of a job and the runner has not done yet."""

    NONE = ""
    PAUSE = "pause"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What is to be done. `name` is that of the model a training ends in, `model` what it starts from or measures.

    Files are named by their id. `hyperparameters` belong to trainings and `options` to all types: what is not given
    has the default of the type. `seed` makes runs repeatable. `priority` is 1 (highest) to 10. `memory_bytes` is the
    declared need on one of `devices`; without it, it is estimated. `result` is `adapter` or `merged`. `parent` is the
    job this one belongs to.
    """

    type: JobType
    name: str = ""
    model: str = ""
    training_file: str = ""
    validation_file: str = ""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    priority: int = 5
    devices: str = "auto"
    memory_bytes: int | None = None
    result: str = "adapter"
    parent: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """InvalidRequest when one of what all types have cannot be right."""
        if not 1 <= self.priority <= 10:
            raise InvalidRequest(f"priority is 1 (highest) to 10, not {self.priority}")
        if not 0 <= self.seed < 2**32:
            raise InvalidRequest(f"seed is 0 to {2**32 - 1}, not {self.seed}")
        if self.memory_bytes is not None and not 0 < self.memory_bytes <= 2**53:
            raise InvalidRequest(f"memory is some bytes, not {self.memory_bytes}")
        if self.result not in RESULTS:
            raise InvalidRequest(f"result is {' or '.join(RESULTS)}, not {self.result[:40]!r}")
        long = any(len(key) > 64 or len(value) > 512 for key, value in self.metadata.items())
        if long or len(self.metadata) > 16:
            raise InvalidRequest("metadata is up to 16 names of up to 64 characters with up to 512 characters each")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One process that worked on a job. Times are wall; `outcome` is empty while it does.

    `pid` and `process_started_at`, in seconds since the system began, name its process on `host`. It has the lease
    `lease_id` with `lease_token` of `bytes` on `device`. `heartbeat_at` is when its runner last saw it alive.
    `read_bytes` is how much of what it told was taken up, `told` the result or the error it told last,
    `left_out` how many events it told too fast to be kept. It began after `first_step` steps and came to `last_step`.
    """

    number: int
    host: str
    started_at: float
    pid: int = 0
    process_started_at: float = 0.0
    lease_id: str = ""
    lease_token: str = ""
    device: str = ""
    bytes: int = 0
    heartbeat_at: float = 0.0
    read_bytes: int = 0
    told: dict[str, Any] = field(default_factory=dict)
    left_out: int = 0
    first_step: int = 0
    last_step: int = 0
    ended_at: float = 0.0
    outcome: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is, as its program last told: steps, epochs, the last metrics, seconds still to go."""

    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    eta_s: float | None = None
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A state a job can go on from: complete, hashed, in the folder `name` of its checkpoints."""

    id: str
    name: str
    step: int
    created_at: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a job came to: the version it ended in, its last metrics, the tokens it learned from, what else it told."""

    model: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    trained_tokens: int = 0
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job, as it is recorded. `attempts` are the last ones, the current one last; `attempt_count` counts all.

    `waits_for` says why it does not run, `fruitless` how many attempts in a row came no step further. `wish_reason` is
    why something was asked of it. `event_count` is the number of the last event it was given.
    """

    id: str
    spec: JobSpec
    state: JobState
    reason: Reason
    created_at: float
    created_by: str
    created_by_name: str
    changed_at: float
    message: str = ""
    wish: Wish = Wish.NONE
    wish_reason: Reason = Reason.REQUESTED
    idempotency_key: str = ""
    queued_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0
    waits_for: str = ""
    attempts: tuple[Attempt, ...] = ()
    attempt_count: int = 0
    fruitless: int = 0
    progress: Progress = Progress()
    checkpoints: tuple[Checkpoint, ...] = ()
    outcome: Outcome | None = None
    event_count: int = 0

    @property
    def attempt(self) -> Attempt | None:
        """The one that runs, None when none does."""
        return self.attempts[-1] if self.attempts and not self.attempts[-1].outcome else None

    @property
    def ended(self) -> bool:
        """Whether nothing more will become of it."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """Something to tell of a job: a `message` of a `level` (info, warn, error), or `metrics` in `data`."""

    number: int
    created_at: float
    type: str
    message: str
    level: str = "info"
    data: dict[str, Any] = field(default_factory=dict)
