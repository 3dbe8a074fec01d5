"""What an answer is worth, and what the answers to a task come to."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Final

import msgspec

from moc.kernel.errors import InvalidRequest
from moc.learning.statistics import (
    Interval,
    Paired,
    bootstrap,
    mcnemar,
    mean,
    permutation,
    quantile,
    standard_error,
    wilson,
)
from moc.learning.suite import (
    Answering,
    Choice,
    Contains,
    ExactMatch,
    JsonSchema,
    MultipleChoice,
    Question,
    Regex,
    normalised,
)

ACCURACY: Final = "accuracy"
PERPLEXITY: Final = "perplexity"
LATENCY: Final = "p95_ms"
PATTERN_TIMEOUT_S: Final = 1.0
"""How long a pattern is looked for in an answer: some try every way there is."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an item: a line of a run's items.

    `score` is 0 or 1; of a perplexity the negative log-likelihood of the text, which has `tokens`; of a latency its
    milliseconds; null when the item failed with an `error`, or the harness scores all items at once. `model` and
    `digest` are of the version that answered.
    """

    task: str
    id: str
    prompt_sha256: str = ""
    expected: Any = None
    got: Any = None
    score: float | None = None
    tokens: int = 0
    logprobs: tuple[float, ...] = ()
    first_token_ms: float | None = None
    latency_ms: float = 0.0
    model: str = ""
    digest: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """What a task came to: its `metric`, with the standard error and the 95 % interval, of `n` items.

    What the items do not tell is None. `errors` are items without a score, which are not among them. `more` are other
    numbers by their names.
    """

    metric: str
    score: float
    stderr: float | None
    ci95: Interval | None
    n: int
    errors: int = 0
    more: Mapping[str, float] = field(default_factory=dict)


def right(task: Answering, item: Any, got: str) -> bool:
    """Whether an answer is right."""
    match task, item:
        case ExactMatch(), Question():
            return normalised(got, task.ignore) in {normalised(one, task.ignore) for one in item.right}
        case Contains(), Question():
            whole = normalised(got, task.ignore)
            found = [normalised(one, task.ignore) in whole for one in item.right]
            return all(found) if task.all else any(found)
        case Regex(), Question():
            return any(_matches(pattern, got, whole=task.whole) for pattern in item.right)
        case JsonSchema(), _:
            return _is_valid(task.schema, got)
    raise AssertionError(f"{type(task).__name__} has no such items")


def likeliest(task: MultipleChoice, item: Choice, logprobs: Sequence[float], tokens: Sequence[int]) -> int:
    """The place of the choice that the model would rather say."""
    lengths: Sequence[int] = {
        "none": [1] * len(logprobs),
        "tokens": tokens,
        "characters": [len(choice) for choice in item.choices],
    }[task.normalise]
    scores = [logprob / max(1, length) for logprob, length in zip(logprobs, lengths, strict=True)]
    return scores.index(max(scores))


def summed_up(metric: str, records: Sequence[Record], *, seed: int) -> TaskResult:
    """What the records of a task come to."""
    scored = [record for record in records if record.score is not None]
    errors = len(records) - len(scored)
    if not scored:
        return TaskResult(metric=metric, score=0.0, stderr=None, ci95=None, n=0, errors=errors)
    more = {"latency_mean_ms": fmean(record.latency_ms for record in scored)}
    if metric == ACCURACY:
        values = [_score(record) for record in scored]
        share = wilson(sum(value > 0 for value in values), len(values))
        return TaskResult(
            metric=metric, score=fmean(values), stderr=standard_error(values), ci95=share, n=len(scored),
            errors=errors, more=more,
        )  # fmt: skip
    statistic = STATISTICS[metric]
    stderr, interval = bootstrap(scored, statistic, seed=seed)
    return TaskResult(
        metric=metric, score=statistic(scored), stderr=stderr, ci95=interval, n=len(scored), errors=errors,
        more=more | _details(metric, scored),
    )  # fmt: skip


def compared(
    metric: str, first: Sequence[Record], second: Sequence[Record], *, seed: int, harness: bool = False
) -> Paired:
    """Whether two runs differ on the same items, at least one, all of them scored; `harness` is of whose task."""
    statistic = _of_harness(metric) if harness else STATISTICS[metric]
    if statistic is _mean_score and all(record.score in (0, 1) for record in (*first, *second)):
        return mcnemar([record.score == 1 for record in first], [record.score == 1 for record in second])
    return permutation(first, second, statistic, seed=seed)


def adds_up(metric: str, score: float, records: Sequence[Record]) -> bool:
    """Whether a task of the harness came to what can be computed of its items' scores alone."""
    scored = [record for record in records if record.score is not None]
    return bool(scored) and math.isclose(_of_harness(metric)(scored), score, rel_tol=1e-6, abs_tol=1e-9)


def _score(record: Record) -> float:
    assert record.score is not None, "only what was scored is counted"  # noqa: S101
    return record.score


def _mean_score(records: Sequence[Record]) -> float:
    return mean([_score(record) for record in records])


def _perplexity(records: Sequence[Record]) -> float:
    per_token = sum(map(_score, records)) / max(1, sum(record.tokens for record in records))
    return math.exp(min(per_token, 700.0))  # what is more has no number


def _p95(records: Sequence[Record]) -> float:
    return quantile([_score(record) for record in records], 0.95)


STATISTICS: Final[Mapping[str, Callable[[Sequence[Record]], float]]] = {
    ACCURACY: _mean_score,
    PERPLEXITY: _perplexity,
    LATENCY: _p95,
}
"""What a metric is of the records of a task."""


def _of_harness(metric: str) -> Callable[[Sequence[Record]], float]:
    """The same of a task of the harness; its `perplexity` is of answers, of which it tells the log-likelihoods."""
    return _perplexity_of_answers if metric == PERPLEXITY else _mean_score


def _perplexity_of_answers(records: Sequence[Record]) -> float:
    return math.exp(min(-_mean_score(records), 700.0))


def _details(metric: str, records: Sequence[Record]) -> dict[str, float]:
    tokens = float(sum(record.tokens for record in records))
    if metric != LATENCY:
        return {"tokens": tokens}
    first = [record.first_token_ms for record in records if record.first_token_ms is not None]
    took = [_score(record) for record in records]
    return {
        "p50_ms": quantile(took, 0.5),
        "first_token_p50_ms": quantile(first, 0.5) if first else 0.0,
        "first_token_p95_ms": quantile(first, 0.95) if first else 0.0,
        "tokens_per_s": tokens / max(1e-9, sum(took) / 1000),
    }


def _matches(pattern: str, got: str, *, whole: bool) -> bool:
    import regex  # an extra, and only this task needs it: it can be told to give up

    find = regex.fullmatch if whole else regex.search
    try:
        return find(pattern, got, timeout=PATTERN_TIMEOUT_S, concurrent=True) is not None
    except TimeoutError:
        raise InvalidRequest(f"the pattern {pattern[:100]!r} took over {PATTERN_TIMEOUT_S:g} s") from None
    except regex.error as error:
        raise InvalidRequest(f"{pattern[:100]!r} is no pattern: {error}") from None


def _is_valid(schema: Mapping[str, Any], got: str) -> bool:
    import jsonschema  # an extra, and only this task needs it
    import referencing

    kind = jsonschema.validators.validator_for(schema)
    try:
        kind.check_schema(schema)
        # of a registry of its own nothing is fetched, wherever a `$ref` leads
        return bool(kind(schema, registry=referencing.Registry()).is_valid(msgspec.json.decode(got)))
    except (jsonschema.SchemaError, jsonschema.exceptions.UnknownType, referencing.exceptions.Unresolvable) as error:
        raise InvalidRequest(f"not a JSON schema: {' '.join(str(error).split())[:200]}") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError, ArithmeticError):  # some numbers are too large
        return False
