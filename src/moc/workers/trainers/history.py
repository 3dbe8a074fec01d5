"""What the log of a training tells: which validation was the best, and when to give up hope of a better one."""

from collections.abc import Mapping, Sequence
from typing import Any

Log = Sequence[Mapping[str, Any]]


def validations(log: Log) -> list[tuple[int, float]]:
    """Every validation: the step and the loss."""
    return [(int(entry["step"]), float(entry["eval_loss"])) for entry in log if "eval_loss" in entry]


def best_step(log: Log) -> int | None:
    """The step of the least validation loss, the first of them; None before the first validation."""
    return min(validations(log), key=lambda validation: validation[1], default=(None, 0.0))[0]


def is_hopeless(log: Log, patience: int) -> bool:
    """Whether the last `patience` validations were not better than the best before them; 0 hopes for ever."""
    done = validations(log)
    since = [step for step, _ in done if step > (best_step(log) or 0)]
    return 0 < patience <= len(since)


def until(log: Log, step: int) -> Log:
    """What was logged up to a step."""
    return [entry for entry in log if entry["step"] <= step]


def last(log: Log, key: str) -> float | None:
    """What was logged last under a name."""
    return next((float(entry[key]) for entry in reversed(log) if key in entry), None)
