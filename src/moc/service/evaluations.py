"""What a caller may ask about evaluations: jobs that measured a model, their items, and two of them side by side."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from moc.kernel.errors import Conflict, NotFound
from moc.learning.evaluation import ITEMS_FILE
from moc.learning.job import Job, JobState, JobType
from moc.learning.jobs import Jobs
from moc.learning.scoring import LATENCY, PERPLEXITY, Record, adds_up, compared
from moc.security.identity import Identity
from moc.security.policy import Operation
from moc.service.guard import check, visible
from moc.service.jobs import JobsService, JobWish, check_after, check_job
from moc.service.views import Page, rfc3339

ITEMS_MIN = 10
"""With fewer, the interval of a bootstrap is too narrow."""

_decode_record = msgspec.json.Decoder(Record).decode


class EvaluationWish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An evaluation that is wanted; `suite` is what docs/reference/suites.md says."""

    model: str
    suite: dict[str, Any]
    priority: int = 5
    seed: int = 0
    metadata: dict[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """What a task came to: its `metric`, its standard error and 95 % interval, of `n` items that were answered.

    These two are null where the items do not tell them: there is only one, or the harness has no formula. `more` are
    other numbers of it, by their names.
    """

    metric: str
    score: float
    stderr: float | None
    ci95: tuple[float, float] | None
    n: int
    errors: int
    more: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationView:
    """An evaluation, by the id of its job. `score` is the mean of its accuracies, null without any or until the end.

    Two of one `suite_digest` measured the same. `done` of `total` items were asked so far, of
    an unknown total of 0 where the harness asks. `digests` are of the
    versions that answered: more than one were measured together, as `warnings` say, which name tasks too that have too
    few items for their interval.
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
    tasks: dict[str, TaskView]
    digests: list[str]
    warnings: list[str]
    created_at: str
    created_by_name: str
    finished_at: str | None
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemView:
    """What came of an item; see `learning.scoring.Record`."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonView:
    """How the second of two evaluations differs from the first in a task, on the `n` items that both have a score of.

    `a` and `b` are of these items alone. `p_value` is how likely so large a difference is by chance alone, by `test`:
    `mcnemar` or `permutation`. `ci95` is null of one item without right and wrong. `only_a` and `only_b` are items that
    one of them alone got right; null where there is no right and wrong.
    """

    metric: str
    a: float
    b: float
    difference: float
    ci95: tuple[float, float] | None
    p_value: float
    test: str
    n: int
    only_a: int | None
    only_b: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How the evaluation `b` differs from `a`, by task.

    `warnings` say why that may be no difference of two models, and what is not compared.
    """

    a: str
    b: str
    tasks: dict[str, ComparisonView]
    warnings: list[str]


class EvaluationsService:
    """Evaluations; every method authorises first. A key that is for some models sees those of these alone."""

    def __init__(self, *, jobs: Jobs, service: JobsService) -> None:
        self._jobs = jobs
        self._service = service

    async def run(self, identity: Identity, wish: EvaluationWish, *, idempotency_key: str = "") -> EvaluationView:
        """Have a model measured; see `JobsService.submit`."""
        job = JobWish(
            type=JobType.EVALUATE,
            model=wish.model,
            options={"suite": wish.suite},
            priority=wish.priority,
            seed=wish.seed,
            metadata=wish.metadata,
        )
        made = await self._service.submit(identity, job, idempotency_key=idempotency_key)
        return _view(self._jobs.show(made.id))

    async def list(self, identity: Identity, *, after: str | None, limit: int) -> Page[EvaluationView]:
        """Evaluations by id, so oldest first; `after` is the last id of the page before, which may be gone by now."""
        check_after(after)
        may_see = visible(identity, Operation.READ_JOBS)
        seen = [job for job in self._jobs.all() if job.spec.type is JobType.EVALUATE and may_see(job.spec.model)]
        found = [job for job in seen if after is None or job.id > after]
        return Page([_view(job) for job in found[:limit]], found[limit - 1].id if len(found) > limit else None)

    async def show(self, identity: Identity, job_id: str) -> EvaluationView:
        """One evaluation; NotFound when there is none."""
        visible(identity, Operation.READ_JOBS)
        return _view(self._pick(identity, job_id))

    async def items(
        self, identity: Identity, job_id: str, *, task: str, failed: bool, after: int, limit: int
    ) -> Page[ItemView]:
        """Its items in the order they were asked in, those of a `task` or those not right alone if so wanted."""
        visible(identity, Operation.READ_JOBS)
        job = self._pick(identity, job_id)
        names = [each["name"] for each in job.spec.options["suite"]["tasks"]]
        if task and task not in names:
            raise NotFound(f"{job_id} has no task {task[:100]!r}; there are {', '.join(names)}")
        records = [
            record
            for record in await asyncio.to_thread(_records, self._jobs.folder(job.id) / ITEMS_FILE)
            if task in ("", record.task) and not (failed and record.score == 1 and not record.error)
        ]
        views = [_item(record) for record in islice(records, after, after + limit)]
        return Page(views, str(after + limit) if len(records) > after + limit else None)

    async def compare(self, identity: Identity, first_id: str, second_id: str) -> Comparison:
        """How the second differs from the first; Conflict unless both are done and of the same suite."""
        visible(identity, Operation.READ_JOBS)
        first, second = self._pick(identity, first_id), self._pick(identity, second_id)
        for job in (first, second):
            if job.state is not JobState.SUCCEEDED:
                raise Conflict(f"the evaluation {job.id} is {job.state}; compare those that have succeeded")
        one, other = _view(first), _view(second)
        if one.suite_digest != other.suite_digest:
            raise Conflict(
                f"{first.id} and {second.id} measured by different suites ({one.suite} and {other.suite}, "
                "or other items); compare two runs of the same one"
            )
        paths = [self._jobs.folder(job.id) / ITEMS_FILE for job in (first, second)]
        types = {task["name"]: task["type"] for task in first.spec.options["suite"]["tasks"]}
        tasks, warnings = await asyncio.to_thread(_compared, types, one, other, *paths)
        return Comparison(a=one.id, b=other.id, tasks=tasks, warnings=[*one.warnings, *other.warnings, *warnings])

    def _pick(self, identity: Identity, job_id: str) -> Job:
        try:
            job = self._jobs.show(job_id)
        except NotFound:
            check(identity, Operation.READ_JOBS)
            raise
        check_job(identity, Operation.READ_JOBS, job.spec)
        if job.spec.type is not JobType.EVALUATE:
            raise NotFound(f"job {job_id} measures nothing, it is of the type {job.spec.type}")
        return job


def _view(job: Job) -> EvaluationView:
    outcome, progress = job.outcome, job.progress
    data = outcome.data if outcome is not None else {}
    digests = data.get("digests", [])
    tasks = {name: msgspec.convert(task, TaskView) for name, task in data.get("tasks", {}).items()}
    return EvaluationView(
        id=job.id,
        model=job.spec.model,
        suite=str(job.spec.options["suite"]["name"]),
        suite_digest=data.get("suite_digest", ""),
        status=job.state,
        message=job.message,
        waits_for=job.waits_for,
        done=progress.step,
        total=progress.total_steps,
        score=None if outcome is None else outcome.metrics.get("score"),
        tasks=tasks,
        digests=digests,
        warnings=[*_warnings(job, tasks, len(digests))],
        created_at=rfc3339(job.created_at),
        created_by_name=job.created_by_name,
        finished_at=rfc3339(job.finished_at) if job.finished_at else None,
        metadata=job.spec.metadata,
    )


def _warnings(job: Job, tasks: Mapping[str, TaskView], versions: int) -> Iterator[str]:
    if versions > 1:
        yield f"{versions} versions answered {job.id}, as {job.spec.model}"
    for name, task in tasks.items():
        if task.metric in (PERPLEXITY, LATENCY) and task.ci95 is not None and task.n < ITEMS_MIN:
            yield f"{name} of {job.id} has {task.n} items, which is too few for its interval to be relied on"


def _records(path: Path) -> Sequence[Record]:
    """The last record of each item, without a line that is just being written."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    whole = (_decode_record(line) for line in lines if line.endswith(b"\n"))
    return [*{(record.task, record.id): record for record in whole}.values()]


def _item(record: Record) -> ItemView:
    return ItemView(**msgspec.structs.asdict(record) | {"logprobs": [*record.logprobs]})


def _compared(
    types: Mapping[str, str], one: EvaluationView, other: EvaluationView, *paths: Path
) -> tuple[dict[str, ComparisonView], Sequence[str]]:
    """Each task that can be compared, and what is left out."""
    found, warnings = {}, []
    first, second = map(_by_task, paths)
    for name, task in one.tasks.items():
        before, after, of_harness = first.get(name, {}), second.get(name, {}), types[name] == "harness"
        pairs = [
            (record, after[key])
            for key, record in before.items()
            if key in after and None not in (record.score, after[key].score)
        ]
        sums = ((task.score, before), (other.tasks[name].score, after)) if of_harness else ()
        if not pairs or not all(adds_up(task.metric, score, [*records.values()]) for score, records in sums):
            warnings.append(f"{name} is not compared: no scores of single items make up its {task.metric} in both")
            continue
        found[name] = _comparison(task.metric, pairs, of_harness)
        total = len(before.keys() | after.keys())
        if total > len(pairs):
            warnings.append(f"{name} is compared by the {len(pairs)} of {total} items that have a score in both")
    return found, warnings


def _by_task(path: Path) -> Mapping[str, Mapping[str, Record]]:
    found: dict[str, dict[str, Record]] = {}
    for record in _records(path):
        found.setdefault(record.task, {})[record.id] = record
    return found


def _comparison(metric: str, pairs: Sequence[tuple[Record, Record]], of_harness: bool) -> ComparisonView:
    first, second = [before for before, _ in pairs], [after for _, after in pairs]
    paired = compared(metric, first, second, seed=0, harness=of_harness)
    is_right = paired.test == "mcnemar"
    return ComparisonView(
        metric=metric,
        a=paired.first,
        b=paired.second,
        difference=paired.difference,
        ci95=paired.ci95,
        p_value=paired.p_value,
        test=paired.test,
        n=len(pairs),
        only_a=sum(before.score == 1 != after.score for before, after in pairs) if is_right else None,
        only_b=sum(after.score == 1 != before.score for before, after in pairs) if is_right else None,
    )
