"""What callers see of jobs."""

from dataclasses import dataclass
from typing import Any

from moc.learning.job import Attempt, Checkpoint, Job, JobEvent, Outcome, Progress
from moc.service.views import rfc3339


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptView:
    """One process that worked on a job: `bytes` of `device` were its own. `outcome` is empty while it does."""

    number: int
    host: str
    started_at: str
    ended_at: str | None
    outcome: str
    message: str
    device: str
    bytes: int
    first_step: int
    last_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressView:
    """How far a job is, as its program last told; `eta_s` is how long it will still take, null when it cannot tell."""

    step: int
    total_steps: int
    epoch: float
    metrics: dict[str, float]
    eta_s: float | None
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointView:
    """A state that a job can go on from."""

    id: str
    name: str
    step: int
    created_at: str
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeView:
    """What a job came to: `model` is the version it ended in, empty when it made none."""

    model: str
    metrics: dict[str, float]
    trained_tokens: int
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job; see `learning.job.JobSpec` for what it was told, and `learning.job.JobState` for `status`.

    `waits_for` is why it does not run, empty while it does. `wish` is what was asked of it and is not done yet:
    `pause`, `cancel` or nothing. `hyperparameters` are those it is done with: `auto` becomes a value once its files are
    read. `attempts` are the last ones, the current one last; `attempt_count` counts all. `outcome` is null until it
    succeeded.
    """

    id: str
    type: str
    name: str
    model: str
    status: str
    reason: str
    message: str
    waits_for: str
    wish: str
    priority: int
    devices: str
    memory_bytes: int | None
    parent: str
    seed: int
    result: str
    training_file: str
    validation_file: str
    hyperparameters: dict[str, Any]
    options: dict[str, Any]
    metadata: dict[str, str]
    created_at: str
    created_by: str
    created_by_name: str
    queued_at: str | None
    started_at: str | None
    finished_at: str | None
    progress: ProgressView
    attempts: list[AttemptView]
    attempt_count: int
    outcome: OutcomeView | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEventView:
    """Something told of a job: a `message` of a `level` (info, warn, error), or `metrics` in `data`."""

    number: int
    created_at: str
    type: str
    level: str
    message: str
    data: dict[str, Any]


def job_view(job: Job) -> JobView:
    """A job as callers see it."""
    spec = job.spec
    return JobView(
        id=job.id,
        type=spec.type,
        name=spec.name,
        model=spec.model,
        status=job.state,
        reason=job.reason,
        message=job.message,
        waits_for=job.waits_for,
        wish=job.wish,
        priority=spec.priority,
        devices=spec.devices,
        memory_bytes=spec.memory_bytes,
        parent=spec.parent,
        seed=spec.seed,
        result=spec.result,
        training_file=spec.training_file,
        validation_file=spec.validation_file,
        hyperparameters=spec.hyperparameters,
        options=spec.options,
        metadata=spec.metadata,
        created_at=rfc3339(job.created_at),
        created_by=job.created_by,
        created_by_name=job.created_by_name,
        queued_at=_moment(job.queued_at),
        started_at=_moment(job.started_at),
        finished_at=_moment(job.finished_at),
        progress=_progress(job.progress),
        attempts=[_attempt(attempt) for attempt in job.attempts],
        attempt_count=job.attempt_count,
        outcome=None if job.outcome is None else _outcome(job.outcome),
    )


def job_event_view(event: JobEvent) -> JobEventView:
    """An event of a job as callers see it."""
    return JobEventView(
        number=event.number,
        created_at=rfc3339(event.created_at),
        type=event.type,
        level=event.level,
        message=event.message,
        data=event.data,
    )


def checkpoint_view(checkpoint: Checkpoint) -> CheckpointView:
    """A checkpoint as callers see it."""
    return CheckpointView(
        id=checkpoint.id,
        name=checkpoint.name,
        step=checkpoint.step,
        created_at=rfc3339(checkpoint.created_at),
        metrics=checkpoint.metrics,
    )


def _attempt(attempt: Attempt) -> AttemptView:
    return AttemptView(
        number=attempt.number,
        host=attempt.host,
        started_at=rfc3339(attempt.started_at),
        ended_at=_moment(attempt.ended_at),
        outcome=attempt.outcome,
        message=attempt.message,
        device=attempt.device,
        bytes=attempt.bytes,
        first_step=attempt.first_step,
        last_step=attempt.last_step,
    )


def _progress(progress: Progress) -> ProgressView:
    return ProgressView(
        step=progress.step,
        total_steps=progress.total_steps,
        epoch=progress.epoch,
        metrics=progress.metrics,
        eta_s=progress.eta_s,
        memory_bytes=progress.memory_bytes,
    )


def _outcome(outcome: Outcome) -> OutcomeView:
    return OutcomeView(
        model=outcome.model, metrics=outcome.metrics, trained_tokens=outcome.trained_tokens, data=outcome.data
    )


def _moment(at: float) -> str | None:
    return rfc3339(at) if at else None
