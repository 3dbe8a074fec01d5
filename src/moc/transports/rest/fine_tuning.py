"""Trainings as jobs of OpenAI's fine-tuning API."""

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, Generic, TypeVar

import msgspec

from moc.kernel.errors import InvalidRequest, NotFound
from moc.security.identity import Identity
from moc.service.job_views import CheckpointView, JobEventView, JobView
from moc.service.jobs import JobFilter, TrainingWish
from moc.service.services import Services
from moc.transports.rest.body import decoded
from moc.transports.rest.exchange import Exchange
from moc.transports.rest.operation import Operation

T = TypeVar("T")
_PATH: Final = "/v1/fine_tuning/jobs"
_PAGE: Final = 20
_CHECKPOINTS: Final = 10
_PAGE_MAX: Final = 100


class FineTuningRequest(TrainingWish, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A training that is wanted; there is nobody here that `integrations` could tell."""

    integrations: list[Any] | None = None


class FineTuningError(msgspec.Struct):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class FineTuningHyperparameters(msgspec.Struct):
    """Those that OpenAI has a name for; `auto` becomes the value that is used once the files are read."""

    n_epochs: Any
    batch_size: Any
    learning_rate_multiplier: Any


class FineTuningJob(msgspec.Struct, kw_only=True):
    """A training; times are seconds since the epoch."""

    id: str
    created_at: int
    error: FineTuningError | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: FineTuningHyperparameters
    model: str
    organization_id: str = "modelops"
    result_files: list[str] = []
    seed: int
    status: str
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    estimated_finish: int | None
    integrations: list[Any] | None = None
    metadata: dict[str, str]
    method: dict[str, Any]
    object: str = "fine_tuning.job"


class FineTuningEvent(msgspec.Struct, kw_only=True):
    """Something told of a job."""

    id: str
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any]
    object: str = "fine_tuning.job.event"


class FineTuningCheckpoint(msgspec.Struct, kw_only=True):
    """A state a job can go on from. It is no model that could be asked, whatever its name looks like."""

    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int
    object: str = "fine_tuning.job.checkpoint"


class FineTuningList(msgspec.Struct, Generic[T]):
    """A part of a list, newest first; the next is behind the id of the last one."""

    data: Sequence[T]
    has_more: bool
    object: str = "list"


_requests: Final = msgspec.json.Decoder(FineTuningRequest)
_AFTER: Final = {
    "name": "after",
    "in": "query",
    "required": False,
    "description": "Start behind this one: the last id of the page before.",
    "schema": {"type": "string", "maxLength": 200},
}
_LIMIT: Final = {
    "name": "limit",
    "in": "query",
    "required": False,
    "description": "How many at most.",
    "schema": {"type": "integer", "minimum": 1, "maximum": _PAGE_MAX},
}
_METADATA: Final = {
    "name": "metadata",
    "in": "query",
    "required": False,
    "description": "Only those with these pairs, as `metadata[name]=value`.",
    "style": "deepObject",
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
}
Verb = Callable[[Identity, str], Awaitable[JobView]]


class FineTuning:
    """The endpoints."""

    def __init__(self, services: Services) -> None:
        self._jobs = services.jobs

    def operations(self) -> list[Operation]:
        """Its routes."""
        one = f"{_PATH}/{{job_id}}"
        paged = partial(Operation, method="GET", query=(_AFTER, _LIMIT))
        changed = partial(Operation, method="POST", answer=FineTuningJob)
        return [
            changed(path=_PATH, handle=self._create, summary="Fine-tune a model", body=FineTuningRequest),
            Operation(
                method="GET",
                path=_PATH,
                handle=self._list,
                summary="List fine-tuning jobs",
                answer=FineTuningList[FineTuningJob],
                query=(_AFTER, _LIMIT, _METADATA),
            ),
            Operation(
                method="GET", path=one, handle=self._show, summary="Show a fine-tuning job", answer=FineTuningJob
            ),
            changed(path=f"{one}/cancel", handle=partial(self._change, self._jobs.cancel), summary="Cancel it"),
            changed(path=f"{one}/pause", handle=partial(self._change, self._jobs.pause), summary="Pause it"),
            changed(path=f"{one}/resume", handle=partial(self._change, self._jobs.resume), summary="Let it go on"),
            paged(
                path=f"{one}/events",
                handle=self._events,
                summary="List what happened to it",
                answer=FineTuningList[FineTuningEvent],
            ),
            paged(
                path=f"{one}/checkpoints",
                handle=self._checkpoints,
                summary="List its checkpoints",
                answer=FineTuningList[FineTuningCheckpoint],
            ),
        ]

    async def _create(self, exchange: Exchange) -> None:
        wish = decoded(_requests, await exchange.body())
        if wish.integrations:
            raise InvalidRequest(
                "this coordinator tells nobody of its jobs, so it takes no `integrations`; follow the job's events",
                details={"param": "integrations"},
            )
        key = (exchange.header(b"idempotency-key") or b"").decode("latin-1")
        view = await self._jobs.train(exchange.identity, wish, idempotency_key=key)
        await exchange.answer_message(_job(view))

    async def _list(self, exchange: Exchange) -> None:
        after, limit = _page_of(exchange, _PAGE)
        wanted = JobFilter(metadata=_metadata_of(exchange))
        page = await self._jobs.trainings(exchange.identity, wanted=wanted, after=after, limit=limit)
        await exchange.answer_message(FineTuningList([_job(view) for view in page.items], page.next is not None))

    async def _show(self, exchange: Exchange) -> None:
        view = await self._jobs.show_training(exchange.identity, exchange.path("job_id"))
        await exchange.answer_message(_job(view))

    async def _change(self, verb: Verb, exchange: Exchange) -> None:
        job = await self._jobs.show_training(exchange.identity, exchange.path("job_id"), to_change=True)
        await exchange.answer_message(_job(await verb(exchange.identity, job.id)))

    async def _events(self, exchange: Exchange) -> None:
        after, limit = _page_of(exchange, _PAGE)
        job_id = (await self._jobs.show_training(exchange.identity, exchange.path("job_id"))).id
        before = None if after is None else _number_of(job_id, after)
        page = await self._jobs.latest_events(exchange.identity, job_id, before=before, limit=limit)
        events = [_event(job_id, view) for view in page.items]
        await exchange.answer_message(FineTuningList(events, page.next is not None))

    async def _checkpoints(self, exchange: Exchange) -> None:
        after, limit = _page_of(exchange, _CHECKPOINTS)
        job = await self._jobs.show_training(exchange.identity, exchange.path("job_id"))
        views = [*await self._jobs.checkpoints(exchange.identity, job.id)][::-1]
        ids = [view.id for view in views]
        if after is not None and after not in ids:
            raise _unknown_after(after)
        start = 0 if after is None else ids.index(after) + 1
        found = [_checkpoint(job, view) for view in views[start : start + limit]]
        await exchange.answer_message(FineTuningList(found, len(views) > start + limit))


def _job(view: JobView) -> FineTuningJob:
    eta_s = view.progress.eta_s
    given = {"n_epochs" if name == "epochs" else name: value for name, value in view.hyperparameters.items()}
    hyperparameters = FineTuningHyperparameters(
        n_epochs=_whole(given.get("n_epochs", "auto")),
        batch_size=given.get("batch_size", "auto"),
        learning_rate_multiplier=given.get("learning_rate_multiplier", "auto"),
    )
    return FineTuningJob(
        id=view.id,
        created_at=_seconds(view.created_at),
        error=FineTuningError(view.reason, view.message) if view.status == "failed" else None,
        fine_tuned_model=None if view.outcome is None else view.outcome.model or None,
        finished_at=None if view.finished_at is None else _seconds(view.finished_at),
        hyperparameters=hyperparameters,
        model=view.model,
        seed=view.seed,
        status={"validating": "validating_files"}.get(view.status, view.status),
        trained_tokens=None if view.outcome is None else view.outcome.trained_tokens,
        training_file=view.training_file,
        validation_file=view.validation_file or None,
        estimated_finish=None if eta_s is None or view.status != "running" else int(time.time() + eta_s),
        metadata=view.metadata,
        method={"type": view.type, view.type: {"hyperparameters": given | msgspec.to_builtins(hyperparameters)}},
    )


def _whole(epochs: Any) -> Any:
    """Epochs as OpenAI counts them, where they are."""
    return int(epochs) if isinstance(epochs, float) and epochs.is_integer() else epochs


def _event(job_id: str, view: JobEventView) -> FineTuningEvent:
    return FineTuningEvent(
        id=f"{job_id}.{view.number}",
        created_at=_seconds(view.created_at),
        level=view.level,
        message=view.message,
        type="metrics" if view.type == "metrics" else "message",
        data=view.data,
    )


def _number_of(job_id: str, event_id: str) -> int:
    job, _, number = event_id.rpartition(".")
    if job != job_id or not (number.isascii() and number.isdigit() and len(number) < 19):
        raise _unknown_after(event_id)
    return int(number)


def _unknown_after(given: str) -> NotFound:
    return NotFound(f"`after` names none that is here: {given[:80]!r}", details={"param": "after"})


def _checkpoint(job: JobView, view: CheckpointView) -> FineTuningCheckpoint:
    return FineTuningCheckpoint(
        id=view.id,
        created_at=_seconds(view.created_at),
        fine_tuned_model_checkpoint=f"{job.name}:ckpt-step-{view.step}",
        fine_tuning_job_id=job.id,
        metrics={"step": view.step, **view.metrics},
        step_number=view.step,
    )


def _page_of(exchange: Exchange, usual: int) -> tuple[str | None, int]:
    query = exchange.query
    limit = query.get("limit", str(usual))
    if not (limit.isascii() and limit.isdigit() and 0 < len(limit) < 4 and 1 <= int(limit) <= _PAGE_MAX):
        raise InvalidRequest(f"`limit` is 1 to {_PAGE_MAX}, not {limit[:40]!r}", details={"param": "limit"})
    return query.get("after"), int(limit)


def _metadata_of(exchange: Exchange) -> tuple[tuple[str, str], ...]:
    pairs = exchange.query.multi_items()
    return tuple(
        (name[len("metadata[") : -1], value)
        for name, value in pairs
        if name.startswith("metadata[") and name[-1] == "]"
    )


def _seconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp())
