"""Tasks of the lm-evaluation-harness over local rows, asked of the public API. Importing this brings the harness in."""

import asyncio
import hashlib
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from moc.kernel.errors import Cancelled, InvalidRequest, MocError
from moc.learning.job import Reason
from moc.learning.scoring import Record, TaskResult
from moc.learning.statistics import wilson
from moc.learning.suite import HARNESS_LENGTHS, Harness
from moc.workers.trainers.assignment import Failure
from moc.workers.trainers.endpoint import Endpoint, is_hopeless
from moc.workers.trainers.records import Records

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_MULTIPROC": "1",  # processes forked from this one would hear SIGTERM for it, and not end by it
}
DRAWS = 1_000
"""How often the harness draws for a standard error that it has no formula for."""

MAX_TOKENS = 256

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How the harness reaches the model: its requests, answered in `loop`, `concurrency` at once.

    What was answered is kept in `answers`, and not asked again by the next attempt. No more than `errors_share` of a
    task's items may fail. `told` hears of each that was answered.
    """

    endpoint: Endpoint
    loop: asyncio.AbstractEventLoop
    answers: Records
    concurrency: int
    errors_share: float
    told: Callable[[], None]


class Failed(Exception):
    """Items that were not answered, with the error of each, of all that were asked."""

    def __init__(self, errors: Mapping[int, str], asked: frozenset[int]) -> None:
        super().__init__(f"{len(errors)} of {len(asked)} items failed")
        self.errors = errors
        self.asked = asked


def run(task: Harness, rows: Path | None, way: Way, records: Records, *, scratch: Path, seed: int) -> TaskResult:
    """What the task comes to, its items in `records`; blocks. InvalidRequest when the harness cannot work on it."""
    os.environ |= {**ENVIRONMENT, "HF_HOME": str(scratch)}
    import jinja2.sandbox
    import lm_eval
    from lm_eval import utils
    from lm_eval.tasks import TaskManager

    # a template of a task is no reason to trust it with this process
    shut = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    shut.filters["regex_replace"] = utils.regex_replace
    utils.env = shut
    if rows is None:
        raise InvalidRequest(f"the task {task.name} has no `data`")
    config = {
        **task.config,
        "task": task.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
    }
    manager = TaskManager(include_defaults=False)

    def evaluated(places: Sequence[int] | None) -> Any:
        try:
            return lm_eval.simple_evaluate(
                model=_model(way, places),
                tasks=[config],
                task_manager=manager,
                limit=task.limit if places is None else None,
                samples=None if places is None else {task.name: list(places)},
                bootstrap_iters=DRAWS,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except (KeyError, TypeError, ValueError, jinja2.TemplateError) as error:
            raise InvalidRequest(f"the harness cannot work on the task {task.name}: {error}") from error

    found, errors = _without_failed(task.name, evaluated, way.errors_share)
    results = found["results"][task.name]
    main = _main_metric(task, results)
    samples = [sample for sample in found["samples"][task.name] if sample["filter"] == main.partition(",")[2]]
    made = [_record(task.name, sample, main) for sample in samples]
    for record in made:
        records.add(record)
    for place, error in errors.items():
        records.add(Record(task=task.name, id=str(place), error=error))
    return _result(results, main, [record.score for record in made], len(errors))


def _without_failed(
    task: str, evaluated: Callable[[Sequence[int] | None], Any], errors_share: float
) -> tuple[Any, Mapping[int, str]]:
    """What the harness found on the items that were answered, and the errors of the others."""
    errors: dict[int, str] = {}
    places: list[int] | None = None
    total = 0
    while True:
        try:
            return evaluated(places), errors
        except Failed as failed:  # the harness knows of no item without an answer: it works again on the others
            total = total or len(failed.asked)
            errors |= failed.errors
            if len(errors) > errors_share * total:
                last = next(reversed(errors.values()))
                raise Failure(
                    Reason.PROGRAM_FAILED, f"{len(errors)} of the {total} items of {task} failed; the last: {last}"
                ) from None
            places = sorted(failed.asked - failed.errors.keys())


def _model(way: Way, places: Sequence[int] | None) -> Any:
    """What the harness asks; it counts the items from 0, where those at some `places` are chosen too."""
    from lm_eval.api.model import LM

    answered = partial(_answered, way, places)

    class Served(LM):
        """A model behind the API."""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            def ask(context: str, continuation: str) -> Awaitable[tuple[Any, str]]:
                return _likelihood(way.endpoint, context + continuation, len(context), whole=not context)

            return [(total, greedy) for total, greedy in answered("loglikelihood", requests, ask)]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            def ask(text: str) -> Awaitable[tuple[Any, str]]:
                return _likelihood(way.endpoint, text, 0)

            return [total for total, _ in answered("rolling", requests, ask)]

        def generate_until(self, requests: list[Any]) -> list[str]:
            def ask(context: str, how: Mapping[str, Any]) -> Awaitable[tuple[Any, str]]:
                return _text(way.endpoint, context, how)

            return answered("generate", requests, ask)

    return Served()


def _answered(
    way: Way,
    places: Sequence[int] | None,
    method: str,
    requests: Sequence[Any],
    ask: Callable[..., Awaitable[tuple[Any, str]]],
) -> list[Any]:
    """The answers to requests in their order; those that were answered once are not asked again.

    Failed when there are items without one.
    """
    known = way.answers.of(method)
    room = asyncio.Semaphore(way.concurrency)
    asked = frozenset(_place(request, places) for request in requests)
    errors: dict[int, str] = {}

    async def one(request: Any) -> Any:
        name, place = hashlib.sha256(msgspec.json.encode(request.args)).hexdigest(), _place(request, places)
        if name in known:
            return known[name].got
        async with room:
            if place in errors or len(errors) > way.errors_share * len(asked):
                return None
            try:
                got, digest = await ask(*request.args)
            except MocError as error:
                if is_hopeless(error):
                    raise
                errors[place] = error.message
                return None
        await asyncio.to_thread(way.answers.add, Record(task=method, id=name, got=got, digest=digest))
        way.told()
        return got

    async def every() -> list[Any]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(request)) for request in requests]
        if errors:
            raise Failed(errors, asked)
        return [task.result() for task in tasks]

    try:
        return asyncio.run_coroutine_threadsafe(every(), way.loop).result()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    except asyncio.CancelledError:
        raise Cancelled("the evaluation was stopped") from None


def _place(request: Any, places: Sequence[int] | None) -> int:
    """Which of the task's rows it is about."""
    return int(request.doc_id if places is None else places[request.doc_id])


async def _likelihood(endpoint: Endpoint, text: str, begin: int, *, whole: bool = False) -> tuple[Any, str]:
    found = await endpoint.likelihood(text, begin, whole=whole)
    return (sum(found.logprobs), found.greedy), found.digest


async def _text(endpoint: Endpoint, prompt: str, how: Mapping[str, Any]) -> tuple[Any, str]:
    until = how.get("until") or []
    length = next((how[name] for name in HARNESS_LENGTHS if how.get(name)), MAX_TOKENS)
    options = {
        "max_tokens": int(length),
        "temperature": 0.0 if how.get("do_sample") is False else float(how.get("temperature") or 0.0),
        "stop": [until] if isinstance(until, str) else list(until),
        **{name: how[name] for name in ("top_p", "seed") if how.get(name) is not None},
    }
    reply = await endpoint.answer(prompt, options, chat=False)
    return reply.text, reply.digest


def _main_metric(task: Harness, results: Mapping[str, Any]) -> str:
    """The first one it names, as the harness calls it among the results."""
    listed = [entry["metric"] for entry in task.config.get("metric_list") or []]
    found = [name for name in results if "," in name and "_stderr," not in name]
    chosen = next((name for wanted in listed for name in found if name.partition(",")[0] == wanted), None)
    if chosen is None and not found:
        raise InvalidRequest(f"the harness measured nothing in the task {task.name}")
    return chosen or found[0]


def _record(task: str, sample: Mapping[str, Any], main: str) -> Record:
    score = sample.get(main.partition(",")[0])
    prompt = sample["arguments"][0][0] if sample["arguments"] else ""
    return Record(
        task=task,
        id=str(sample["doc_id"]),
        prompt_sha256=hashlib.sha256(str(prompt).encode()).hexdigest(),
        expected=str(sample["target"]),
        got=str(sample["filtered_resps"]),
        score=_number(score),
    )


def _result(results: Mapping[str, Any], main: str, scores: Sequence[float | None], errors: int) -> TaskResult:
    metric, _, way = main.partition(",")
    score = float(results[main])
    stderr = _number(results.get(f"{metric}_stderr,{way}"))
    interval = None if stderr is None else (score - 1.96 * stderr, score + 1.96 * stderr)
    right = scores.count(1.0)
    if set(scores) <= {0.0, 1.0} and math.isclose(score, right / len(scores), abs_tol=1e-9):
        # where all were right, or none, the harness knows of no error
        interval = wilson(right, len(scores))
    others = {name: number for name, value in results.items() if (number := _number(value)) is not None}
    return TaskResult(
        metric=metric,
        score=score,
        stderr=stderr,
        ci95=interval,
        n=len(scores),
        errors=errors,
        more={name.removesuffix(",none"): number for name, number in others.items() if "," in name and name != main},
    )


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
