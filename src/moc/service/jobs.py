"""What a caller may ask about jobs."""

import re
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal

import msgspec

from moc.kernel.errors import InvalidRequest, NotFound, TooLarge
from moc.kernel.units import Bytes
from moc.learning.files import Files
from moc.learning.hyperparameters import from_openai
from moc.learning.job import TRAINING, Job, JobSpec, JobState, JobType, Reason
from moc.learning.jobs import Jobs
from moc.security.identity import Identity
from moc.security.policy import Operation
from moc.service.files import check_files
from moc.service.guard import Journal, audited, check, visible
from moc.service.job_views import (
    CheckpointView,
    JobEventView,
    JobView,
    checkpoint_view,
    job_event_view,
    job_view,
)
from moc.service.views import Page

SPEC_MAX_BYTES: Final = 2**18
TEXT_MAX: Final = 200
_SUFFIX: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OTHER_NAMES: Final = {"sft": JobType.SUPERVISED}


class JobWish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job that is wanted; see `learning.job.JobSpec`. `memory` is a size such as `2GiB`, or `memory_bytes` bytes."""

    type: str
    name: str = ""
    model: str = ""
    training_file: str = ""
    validation_file: str = ""
    hyperparameters: dict[str, Any] = {}
    options: dict[str, Any] = {}
    seed: int = 0
    priority: int = 5
    devices: str = "auto"
    memory: str | int | None = None
    memory_bytes: int | None = None
    result: Literal["adapter", "merged"] = "adapter"
    parent: str = ""
    metadata: dict[str, str] = {}


class TrainingWish(msgspec.Struct, frozen=True, kw_only=True):
    """A training that is wanted, as OpenAI has it: see `learning.hyperparameters.from_openai` for the last two."""

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int | None = None
    metadata: dict[str, str] | None = None
    method: dict[str, Any] | None = None
    hyperparameters: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs: those with all that is not empty, and with every pair of `metadata`."""

    status: str = ""
    type: str = ""
    parent: str = ""
    metadata: tuple[tuple[str, str], ...] = ()

    def takes(self, job: Job) -> bool:
        """Whether it is one of them."""
        spec = job.spec
        return (
            self.status in ("", job.state)
            and _OTHER_NAMES.get(self.type, self.type) in ("", spec.type)
            and self.parent in ("", spec.parent)
            and all(spec.metadata.get(key) == value for key, value in self.metadata)
        )


class JobsService:
    """Jobs; every method authorises first. A key that is for some models may only touch jobs that are about them."""

    def __init__(self, *, jobs: Jobs, files: Files, journal: Journal) -> None:
        self.journal = journal
        self._jobs = jobs
        self._files = files

    def count(self) -> dict[str, int]:
        """How many jobs there are in each state."""
        return self._jobs.count()

    async def list(self, identity: Identity, *, wanted: JobFilter, after: str | None, limit: int) -> Page[JobView]:
        """Jobs by id, so oldest first; `after` is the last id of the page before, which may be gone by now."""
        _check_filter(wanted)
        check_after(after)
        found = [job for job in self._visible(identity) if wanted.takes(job) and (after is None or job.id > after)]
        return Page([job_view(job) for job in found[:limit]], found[limit - 1].id if len(found) > limit else None)

    async def trainings(self, identity: Identity, *, wanted: JobFilter, after: str | None, limit: int) -> Page[JobView]:
        """Those that fine-tune and belong to no other, newest first; `after` is the last id of the page before.

        NotFound when it is none.
        """
        seen = self._visible(identity)
        if after is not None and all(job.id != after for job in seen):
            raise NotFound(f"`after` names none that is here: {after[:80]!r}", details={"param": "after"})
        found = [
            job
            for job in reversed(seen)
            if _is_training(job) and wanted.takes(job) and (after is None or job.id < after)
        ]
        return Page([job_view(job) for job in found[:limit]], found[limit - 1].id if len(found) > limit else None)

    async def show(self, identity: Identity, job_id: str) -> JobView:
        """One job; NotFound when there is none."""
        return job_view(self._pick(identity, Operation.READ_JOBS, job_id))

    async def show_training(self, identity: Identity, job_id: str, *, to_change: bool = False) -> JobView:
        """One that fine-tunes, for who may see it, or `to_change` it; NotFound when there is none."""
        job = self._pick(identity, Operation.CHANGE_JOBS if to_change else Operation.READ_JOBS, job_id)
        if job.spec.type not in TRAINING:
            raise NotFound(f"job {job_id} fine-tunes nothing, it is of the type {job.spec.type}")
        return job_view(job)

    @audited("jobs.submit", subject=lambda job: job.id)
    async def submit(self, identity: Identity, wish: JobWish, *, idempotency_key: str = "") -> JobView:
        """Have a job done; see `learning.jobs.Jobs.submit`. The key must be for all it is about and reads."""
        visible(identity, Operation.CHANGE_JOBS)
        spec = _spec(wish)
        self._authorise(identity, spec)
        if spec.parent:
            self._find(identity, Operation.CHANGE_JOBS, spec.parent)
        job = await self._jobs.submit(
            spec,
            actor=identity,
            idempotency_key=idempotency_key,
            authorise=lambda checked: self._authorise(identity, checked),
        )
        return job_view(job)

    async def train(self, identity: Identity, wish: TrainingWish, *, idempotency_key: str = "") -> JobView:
        """Like `submit`, for a training as OpenAI's clients ask for one; its model is called `ft-<base>-<suffix>`."""
        kind, hyperparameters = from_openai(wish.method, wish.hyperparameters)
        if wish.suffix and not _SUFFIX.fullmatch(wish.suffix):
            told = "`suffix` is up to 64 letters, digits, dots, underscores and hyphens"
            raise InvalidRequest(told, details={"param": "suffix"})
        base = wish.model.partition("@")[0]
        native = JobWish(
            type=kind,
            name=f"ft-{base}-{wish.suffix}" if wish.suffix else f"ft-{base}",
            model=wish.model,
            training_file=wish.training_file,
            validation_file=wish.validation_file or "",
            hyperparameters=hyperparameters,
            seed=wish.seed or 0,
            metadata=wish.metadata or {},
        )
        return await self.submit(identity, native, idempotency_key=idempotency_key)

    @audited("jobs.pause")
    async def pause(self, identity: Identity, job_id: str) -> JobView:
        """Have it save a checkpoint and give its memory back, until it is resumed."""
        self._pick(identity, Operation.CHANGE_JOBS, job_id)
        return job_view(await self._jobs.pause(job_id, actor=identity.key_id))

    @audited("jobs.resume")
    async def resume(self, identity: Identity, job_id: str) -> JobView:
        """Have it go on."""
        self._pick(identity, Operation.CHANGE_JOBS, job_id)
        return job_view(await self._jobs.resume(job_id, actor=identity.key_id))

    @audited("jobs.cancel")
    async def cancel(self, identity: Identity, job_id: str, *, pruned: bool = False) -> JobView:
        """End it; `pruned` says that the search it belongs to saw that it would not become the best."""
        job = self._pick(identity, Operation.CHANGE_JOBS, job_id)
        if pruned and not job.spec.parent:
            raise InvalidRequest(f"job {job_id} belongs to no search that could prune it; cancel it without `pruned`")
        reason = Reason.PRUNED if pruned else Reason.REQUESTED
        return job_view(await self._jobs.cancel(job_id, actor=identity.key_id, reason=reason))

    @audited("jobs.remove")
    async def remove(self, identity: Identity, job_id: str) -> None:
        """Forget one that has ended, with all it left but the model it made."""
        self._pick(identity, Operation.CHANGE_JOBS, job_id)
        await self._jobs.remove(job_id, actor=identity.key_id)

    async def events(self, identity: Identity, job_id: str, *, after: int, limit: int) -> Sequence[JobEventView]:
        """What happened to it, oldest first, from behind the event `after`."""
        self._pick(identity, Operation.READ_JOBS, job_id)
        return [job_event_view(event) for event in await self._jobs.events(job_id, after=after, limit=limit)]

    async def latest_events(
        self, identity: Identity, job_id: str, *, before: int | None, limit: int
    ) -> Page[JobEventView]:
        """What happened to it last, newest first, from before the event `before`; `next` is what to give for that."""
        newest = self._pick(identity, Operation.READ_JOBS, job_id).event_count
        newest = newest if before is None else min(newest, before - 1)
        found, many = deque[JobEventView](), limit
        while newest > 0 and len(found) <= limit:
            oldest = max(0, newest - many)
            part = await self._jobs.events(job_id, after=oldest, limit=newest - oldest)
            found.extend(job_event_view(event) for event in reversed(part) if event.number <= newest)
            newest, many = oldest, 2 * many  # of old events few may be left
        views = [*islice(found, limit)]
        return Page(views, str(views[-1].number) if len(found) > limit else None)

    def follow(self, identity: Identity, job_id: str, *, after: int) -> AsyncGenerator[JobEventView, None]:
        """Its events behind `after`, then each as it comes; ends when the job has. NotFound before the first."""
        self._pick(identity, Operation.READ_JOBS, job_id)
        return self._follow(identity, job_id, after)

    async def logs(self, identity: Identity, job_id: str, *, attempt: int | None, tail_bytes: int) -> str:
        """The last that its program wrote, in its last attempt or in `attempt`."""
        self._pick(identity, Operation.READ_JOBS, job_id)
        return await self._jobs.logs(job_id, attempt=attempt, tail_bytes=tail_bytes)

    async def checkpoints(self, identity: Identity, job_id: str) -> Sequence[CheckpointView]:
        """The states it can go on from, oldest first."""
        return [checkpoint_view(each) for each in self._pick(identity, Operation.READ_JOBS, job_id).checkpoints]

    async def _follow(self, identity: Identity, job_id: str, after: int) -> AsyncGenerator[JobEventView, None]:
        async for event in self._jobs.follow(job_id, after=after):
            identity.quota.check()
            yield job_event_view(event)

    def _authorise(self, identity: Identity, spec: JobSpec) -> None:
        check_job(identity, Operation.CHANGE_JOBS, spec)
        check_files(identity, self._files, spec)

    def _visible(self, identity: Identity) -> Sequence[Job]:
        may_see = visible(identity, Operation.READ_JOBS)
        return [job for job in self._jobs.all() if all(map(may_see, _about(job.spec)))]

    def _pick(self, identity: Identity, operation: Operation, job_id: str) -> Job:
        """A job, for a request that is counted."""
        visible(identity, operation)
        return self._find(identity, operation, job_id)

    def _find(self, identity: Identity, operation: Operation, job_id: str) -> Job:
        try:
            job = self._jobs.show(job_id)
        except NotFound:
            check(identity, operation)  # a key that is for some models is not told which others there are
            raise
        check_job(identity, operation, job.spec)
        return job


def check_after(after: str | None) -> None:
    """InvalidRequest when a page is to begin behind what was never a job."""
    if after is not None and not after.startswith("job-"):
        raise InvalidRequest(f"`after` is no id of a job: {after[:80]!r}", details={"param": "after"})


def check_job(identity: Identity, operation: Operation, spec: JobSpec) -> None:
    """Forbidden unless the caller's role allows the operation and its key all models that the job is about."""
    for model in _about(spec):
        check(identity, operation, model=model or None)


def _about(spec: JobSpec) -> list[str]:
    """The models it has to do with; empty text stands for any, as for scripts and searches over them."""
    given = spec.options.get("base") if spec.type is JobType.TUNE else None
    base = given if isinstance(given, Mapping) else {}
    if JobType.SCRIPT in (spec.type, base.get("type")):
        return [""]
    return [str(model) for model in (spec.model, spec.name, base.get("model")) if model] or [""]


def _is_training(job: Job) -> bool:
    return job.spec.type in TRAINING and not job.spec.parent


def _spec(wish: JobWish) -> JobSpec:
    if len(msgspec.json.encode(wish)) > SPEC_MAX_BYTES:
        raise TooLarge(f"a job is described in at most {SPEC_MAX_BYTES} bytes; upload what is larger as a file")
    if wish.memory is not None and wish.memory_bytes is not None:
        raise InvalidRequest("say how much memory it needs with either `memory`, such as 2GiB, or `memory_bytes`")
    for name in ("name", "model", "training_file", "validation_file", "devices", "parent"):
        if len(getattr(wish, name)) > TEXT_MAX:
            raise InvalidRequest(f"`{name}` is longer than {TEXT_MAX} characters")
    kind = _type(wish.type)
    if kind in TRAINING and not wish.name and not wish.parent:
        raise InvalidRequest("a training needs a `name`: what the model is called that it makes")
    return JobSpec(
        type=kind,
        name=wish.name,
        model=wish.model,
        training_file=wish.training_file,
        validation_file=wish.validation_file,
        hyperparameters=wish.hyperparameters,
        options=wish.options,
        seed=wish.seed,
        priority=wish.priority,
        devices=wish.devices,
        memory_bytes=wish.memory_bytes if wish.memory is None else int(Bytes.parse(wish.memory)),
        result=wish.result,
        parent=wish.parent,
        metadata=wish.metadata,
    )


def _type(text: str) -> JobType:
    try:
        return _OTHER_NAMES.get(text) or JobType(text)
    except ValueError:
        raise InvalidRequest(f"there is no type of job {text[:40]!r}; known are {', '.join(JobType)}") from None


def _check_filter(wanted: JobFilter) -> None:
    if wanted.status and wanted.status not in list(JobState):
        raise InvalidRequest(f"there is no status {wanted.status[:40]!r}; known are {', '.join(JobState)}")
    if wanted.type:
        _type(wanted.type)
