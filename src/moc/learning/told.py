"""What the lines that a program tells make of its job. Pure; nothing in the lines is trusted."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from moc.kernel.ids import new_id
from moc.learning.job import Attempt, Checkpoint, Job, Progress
from moc.learning.job_book import METRICS, Tale, Told

CHECKPOINTS_MAX = 100
LINE_MAX_BYTES = 1024**2
MESSAGE_MAX = 2_000
METRICS_MAX = 100
EVENTS_PER_S = 30.0
EVENTS_BURST = 300
"""How many events a program's lines make: so many at once, and over time no more than so many a second."""

LEVELS = ("info", "warn", "error")

_STEP_MAX = 2**53


def take_up(
    job: Job,
    lines: Iterable[Mapping[str, Any]],
    *,
    now: float,
    exists: Callable[[str], bool],
    events_max: int = EVENTS_BURST,
) -> Told:
    """The job once all `lines` are taken up, its attempt's too; `exists` tells whether there is such a checkpoint.

    Of what they tell, at most `events_max` become events, and a warning once for an attempt if there were more.
    """
    tales: list[Tale] = []
    for line in lines:
        read = _READERS.get(str(line.get("type")))
        if read is None or not _is_plain(line):
            tales.append(Tale(message=f"told what is not understood: {str(line)[:200]!a}", level="warn"))
            continue
        job, tale = read(job, line, now)
        if tale is not None:
            tales.append(tale)
    kept = tuple(each for each in job.checkpoints if exists(each.name))[-CHECKPOINTS_MAX:]
    job, heard = replace(job, checkpoints=kept), _most_telling(tales, events_max)
    if len(heard) == len(tales):
        return Told(job, tuple(tales))
    missing = len(tales) - len(heard)
    if job.attempts and not job.attempts[-1].left_out:
        heard.append(Tale(message="its program tells more than can be kept: some of it is left out", level="warn"))
    return Told(_with_attempt(job, lambda attempt: replace(attempt, left_out=attempt.left_out + missing)), tuple(heard))


def _most_telling(tales: list[Tale], most: int) -> list[Tale]:
    """The most important ones, in their order: checkpoints and errors, messages, metrics; of those the last."""

    def importance(place: int) -> tuple[bool, bool, int]:
        tale = tales[place]
        return "checkpoint" in tale.data or tale.level == "error", tale.type != METRICS, place

    chosen = sorted(range(len(tales)), key=importance, reverse=True)[:most]
    return [tales[place] for place in sorted(chosen)]


def finite(value: Any) -> dict[str, float]:
    """The numbers of a mapping that are some."""
    if not isinstance(value, Mapping):
        return {}
    numbers = {str(name)[:100]: _number(each) for name, each in list(value.items())[:METRICS_MAX]}
    return {name: number for name, number in numbers.items() if number is not None}


def _metrics(job: Job, line: Mapping[str, Any], now: float) -> tuple[Job, Tale]:
    step, total = _count(line.get("step"), job.progress.step), _count(line.get("total_steps"), job.progress.total_steps)
    epoch, eta_s, metrics = _number(line.get("epoch")), _number(line.get("eta_s")), finite(line.get("metrics"))
    progress = Progress(
        step=step,
        total_steps=total,
        epoch=job.progress.epoch if epoch is None else epoch,
        metrics={**job.progress.metrics, **metrics},
        eta_s=eta_s,
        memory_bytes=_count(metrics.get("memory_bytes"), job.progress.memory_bytes),
    )
    if len(progress.metrics) > METRICS_MAX:
        progress = replace(progress, metrics=metrics)
    words = ", ".join(f"{name}={value:.6g}" for name, value in metrics.items() if name.endswith("loss"))
    place = f"Step {step}/{total}" if total else f"Step {step}"
    data: dict[str, Any] = {"step": step, "total_steps": total}
    if epoch is not None:
        data["epoch"] = epoch
    tale = Tale(type=METRICS, message=f"{place}: {words}" if words else place, data={**data, **metrics})
    return _stepped(replace(job, progress=progress), step), tale


def _message(job: Job, line: Mapping[str, Any], now: float) -> tuple[Job, Tale]:
    level = str(line.get("level"))
    return job, Tale(message=text(line.get("message")), level=level if level in LEVELS else "info")


def _checkpoint(job: Job, line: Mapping[str, Any], now: float) -> tuple[Job, Tale]:
    name, step = text(line.get("name"))[:200], _count(line.get("step"), job.progress.step)
    made = Checkpoint(
        id=new_id("ckpt"),
        name=name,
        step=step,
        created_at=now,
        metrics=finite(line.get("metrics")) or job.progress.metrics,
    )
    others = tuple(each for each in job.checkpoints if each.name != name)
    tale = Tale(message=f"Checkpoint {name} was saved", data={"checkpoint": made.id, "step": step})
    return _stepped(replace(job, checkpoints=(*others, made)), step), tale


def _last_word(job: Job, line: Mapping[str, Any], now: float) -> tuple[Job, Tale | None]:
    if line["type"] == "result":
        return _with_attempt(job, lambda attempt: replace(attempt, told=_result(line))), None
    said = {"type": "error", "reason": text(line.get("reason")), "message": text(line.get("message"))}
    return _with_attempt(job, lambda attempt: replace(attempt, told=said)), Tale(message=said["message"], level="error")


def _result(line: Mapping[str, Any]) -> dict[str, Any]:
    """What a program came to: its metrics that are numbers, as many as a line holds, its tokens, and what has names."""
    metrics, data = line.get("metrics"), line.get("data")
    numbers = {name: _number(each) for name, each in metrics.items()} if isinstance(metrics, Mapping) else {}
    return {
        "type": "result",
        "metrics": {name: number for name, number in numbers.items() if number is not None},
        "trained_tokens": _count(line.get("trained_tokens"), 0),
        "data": dict(data) if isinstance(data, Mapping) else {},
    }


_READERS: dict[str, Callable[[Job, Mapping[str, Any], float], tuple[Job, Tale | None]]] = {
    "metrics": _metrics,
    "message": _message,
    "checkpoint": _checkpoint,
    "error": _last_word,
    "result": _last_word,
}


def text(value: Any) -> str:
    """Something told as text, no longer than what an event holds."""
    return str(value if value is not None else "")[:MESSAGE_MAX]


def _stepped(job: Job, step: int) -> Job:
    return _with_attempt(job, lambda attempt: replace(attempt, last_step=max(attempt.last_step, step)))


def _with_attempt(job: Job, change: Callable[[Attempt], Attempt]) -> Job:
    return replace(job, attempts=(*job.attempts[:-1], change(job.attempts[-1]))) if job.attempts else job


def _count(value: Any, default: int) -> int:
    number = _number(value)
    return default if number is None or not 0 <= number <= _STEP_MAX else int(number)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _is_plain(line: Mapping[str, Any]) -> bool:
    """Whether it can be written down."""
    try:
        return len(msgspec.json.encode(line)) <= LINE_MAX_BYTES
    except (TypeError, ValueError, RecursionError):
        return False
