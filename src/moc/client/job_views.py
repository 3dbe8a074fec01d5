"""What the coordinator answers about jobs, as the plain dictionaries its JSON decodes to; see `moc.client.views`."""

from typing import Any, TypedDict


class AttemptView(TypedDict):
    """One process that worked on a job; `outcome` is empty while it does."""

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


class ProgressView(TypedDict):
    """How far a job is, as its program last told."""

    step: int
    total_steps: int
    epoch: float
    metrics: dict[str, float]
    eta_s: float | None
    memory_bytes: int


class OutcomeView(TypedDict):
    """What a job came to; `model` is empty when it made none."""

    model: str
    metrics: dict[str, float]
    trained_tokens: int
    data: dict[str, Any]


class JobView(TypedDict):
    """A job; `waits_for` is why it does not run, `outcome` is None until it succeeded."""

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


class JobEventView(TypedDict):
    """Something told of a job: a `message` of a `level`, or `metrics` in `data`."""

    number: int
    created_at: str
    type: str
    level: str
    message: str
    data: dict[str, Any]


class JobEventPage(TypedDict):
    """Some events of a job; `next` is the number to go on behind, None when there is none yet."""

    items: list[JobEventView]
    next: int | None


class CheckpointView(TypedDict):
    """A state that a job can go on from."""

    id: str
    name: str
    step: int
    created_at: str
    metrics: dict[str, float]


ENDED = ("succeeded", "failed", "cancelled")
"""Every `status` that a job stays in."""

UNDONE = ("failed", "cancelled")
"""Those of them in which it did not do what it was to do."""
