"""What the management API answers about evaluations, as the plain dictionaries its JSON decodes to."""

from typing import Any, TypedDict


class TaskScoreView(TypedDict):
    """What a task came to, of `n` items that were answered; what they do not tell of its error is null."""

    metric: str
    score: float
    stderr: float | None
    ci95: list[float] | None
    n: int
    errors: int
    more: dict[str, float]


class EvaluationView(TypedDict):
    """An evaluation, by the id of its job; two of one `suite_digest` measured the same.

    `digests` are of the versions that answered: more than one were measured together, as `warnings` say.
    """

    id: str
    model: str
    suite: str
    suite_digest: str
    status: str
    message: str
    waits_for: str
    done: int
    total: int
    score: float | None
    tasks: dict[str, TaskScoreView]
    digests: list[str]
    warnings: list[str]
    created_at: str
    created_by_name: str
    finished_at: str | None
    metadata: dict[str, str]


class EvaluationItemView(TypedDict):
    """What came of an item; `score` is null when it failed with an `error`."""

    task: str
    id: str
    prompt_sha256: str
    expected: Any
    got: Any
    score: float | None
    tokens: int
    logprobs: list[float]
    first_token_ms: float | None
    latency_ms: float
    model: str
    digest: str
    error: str


class TaskComparisonView(TypedDict):
    """How the second run differs from the first in a task, on the `n` items that both have a score of."""

    metric: str
    a: float
    b: float
    difference: float
    ci95: list[float] | None
    p_value: float
    test: str
    n: int
    only_a: int | None
    only_b: int | None


class ComparisonView(TypedDict):
    """How the evaluation `b` differs from `a`, by task.

    `warnings` say why that may be no difference of two models, and what is not compared.
    """

    a: str
    b: str
    tasks: dict[str, TaskComparisonView]
    warnings: list[str]
