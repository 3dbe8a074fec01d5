"""Jobs under /api/v1/jobs."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Header, Query
from fastapi.responses import Response, StreamingResponse

from moc.service.job_views import CheckpointView, JobEventView, JobView
from moc.service.jobs import TEXT_MAX, JobFilter, JobsService, JobWish
from moc.service.services import Services
from moc.transports.rest.body import decoded
from moc.transports.rest.openai import DONE
from moc.transports.rest.parameters import After, Call, IdempotencyKey, Limit, json_answer
from moc.transports.rest.streaming import endless, event_id, numbered_event


@dataclass(frozen=True, slots=True)
class JobList:
    """Jobs, oldest first; `next` is the `after` of the following page."""

    jobs: list[JobView]
    next: str | None


@dataclass(frozen=True, slots=True)
class JobEventList:
    """Events of a job, oldest first; `next` is the `after` of the following page, null when there is none yet."""

    events: list[JobEventView]
    next: int | None


@dataclass(frozen=True, slots=True)
class CheckpointList:
    """The states that a job can go on from, oldest first."""

    checkpoints: list[CheckpointView]


@dataclass(frozen=True, slots=True)
class JobLog:
    """The end of what the program of a job wrote."""

    log: str


_FILE: Final = {"type": "string", "maxLength": TEXT_MAX, "description": "The id of a file"}
_WISH: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type"],
    "additionalProperties": False,
    "properties": {
        "type": {"type": "string", "enum": ["supervised", "sft", "dpo", "evaluate", "tune", "script"]},
        "name": {"type": "string", "maxLength": TEXT_MAX, "description": "What the model is called that it makes"},
        "model": {"type": "string", "maxLength": TEXT_MAX, "description": "What it starts from, or measures"},
        "training_file": _FILE,
        "validation_file": _FILE,
        "hyperparameters": {"type": "object", "description": "Those of a training; the others have their defaults"},
        "options": {"type": "object", "description": "What belongs to the type"},
        "seed": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1, "default": 0},
        "priority": {"type": "integer", "minimum": 1, "maximum": 10, "default": 5, "description": "1 is the highest"},
        "devices": {
            "type": "string",
            "maxLength": TEXT_MAX,
            "default": "auto",
            "description": "`auto`, a kind or an id",
        },
        "memory": {"type": ["string", "integer", "null"], "description": "Declared need, such as `2GiB`"},
        "memory_bytes": {"type": ["integer", "null"], "minimum": 1, "maximum": 2**53},
        "result": {"type": "string", "enum": ["adapter", "merged"], "default": "adapter"},
        "parent": {"type": "string", "maxLength": TEXT_MAX, "description": "The job it belongs to"},
        "metadata": {
            "type": "object",
            "maxProperties": 16,
            "propertyNames": {"maxLength": 64},
            "additionalProperties": {"type": "string", "maxLength": 512},
        },
    },
}
JOB_BODY: Final = {"requestBody": {"required": True, "content": {"application/json": {"schema": _WISH}}}}
job_wishes: Final = msgspec.json.Decoder(JobWish)
_STREAM: Final[dict[int | str, dict[str, Any]]] = {200: {"content": {"text/event-stream": {}}}}


def add_jobs(routes: APIRouter, services: Services, closing: asyncio.Event) -> None:
    """The routes; event streams end when `closing` is set."""
    _add_reads(routes, services.jobs)
    _add_changes(routes, services.jobs)
    _add_events(routes, services.jobs, closing)


def _add_reads(routes: APIRouter, jobs: JobsService) -> None:
    @routes.get("/jobs", tags=["jobs"], response_model=JobList, summary="List jobs")
    async def list_jobs(
        call: Call,
        after: After = None,
        limit: Limit = 100,
        status: Annotated[str, Query(max_length=40, description="Only those that are so.")] = "",
        kind: Annotated[str, Query(alias="type", max_length=40, description="Only those of this type.")] = "",
        parent: Annotated[str, Query(max_length=200, description="Only those that belong to this job.")] = "",
    ) -> Response:
        wanted = JobFilter(status=status, type=kind, parent=parent)
        page = await jobs.list(call.identity, wanted=wanted, after=after, limit=limit)
        return json_answer(JobList(page.items, page.next))

    @routes.get("/jobs/{job_id}", tags=["jobs"], response_model=JobView, summary="Show a job")
    async def show_job(call: Call, job_id: str) -> Response:
        return json_answer(await jobs.show(call.identity, job_id))

    @routes.get("/jobs/{job_id}/logs", tags=["jobs"], response_model=JobLog, summary="Show what a job's program wrote")
    async def show_job_logs(
        call: Call,
        job_id: str,
        attempt: Annotated[int | None, Query(ge=1, lt=10**9, description="Which one; without it the last.")] = None,
        tail_bytes: Annotated[int, Query(ge=1, le=2**24, description="How much of the end, at most.")] = 65_536,
    ) -> Response:
        return json_answer(JobLog(await jobs.logs(call.identity, job_id, attempt=attempt, tail_bytes=tail_bytes)))

    @routes.get(
        "/jobs/{job_id}/checkpoints", tags=["jobs"], response_model=CheckpointList, summary="List a job's checkpoints"
    )
    async def list_job_checkpoints(call: Call, job_id: str) -> Response:
        return json_answer(CheckpointList([*await jobs.checkpoints(call.identity, job_id)]))


def _add_changes(routes: APIRouter, jobs: JobsService) -> None:
    @routes.post(
        "/jobs",
        tags=["jobs"],
        status_code=201,
        response_model=JobView,
        summary="Submit a job",
        openapi_extra=JOB_BODY,
    )
    async def submit_job(call: Call, idempotency_key: IdempotencyKey = "") -> Response:
        wish = decoded(job_wishes, await call.body())
        return json_answer(await jobs.submit(call.identity, wish, idempotency_key=idempotency_key), 201)

    @routes.post("/jobs/{job_id}/pause", tags=["jobs"], response_model=JobView, summary="Pause a job")
    async def pause_job(call: Call, job_id: str) -> Response:
        return json_answer(await jobs.pause(call.identity, job_id))

    @routes.post("/jobs/{job_id}/resume", tags=["jobs"], response_model=JobView, summary="Let a paused job go on")
    async def resume_job(call: Call, job_id: str) -> Response:
        return json_answer(await jobs.resume(call.identity, job_id))

    @routes.post("/jobs/{job_id}/cancel", tags=["jobs"], response_model=JobView, summary="Cancel a job")
    async def cancel_job(
        call: Call,
        job_id: str,
        pruned: Annotated[bool, Query(description="The search it belongs to needs it no more.")] = False,
    ) -> Response:
        return json_answer(await jobs.cancel(call.identity, job_id, pruned=pruned))

    @routes.delete("/jobs/{job_id}", tags=["jobs"], status_code=204, summary="Remove a job that has ended")
    async def remove_job(call: Call, job_id: str) -> Response:
        await jobs.remove(call.identity, job_id)
        return Response(status_code=204)


def _add_events(routes: APIRouter, jobs: JobsService, closing: asyncio.Event) -> None:
    @routes.get(
        "/jobs/{job_id}/events",
        tags=["jobs"],
        response_model=JobEventList,
        responses=_STREAM,
        summary="List what happened to a job, or follow it",
    )
    async def job_events(
        call: Call,
        job_id: str,
        after: Annotated[int, Query(ge=0, lt=2**62, description="Only events with a greater number.")] = 0,
        follow: Annotated[bool, Query(description="Server-sent events until the job has ended.")] = False,
        limit: Limit = 100,
        last_event_id: Annotated[str | None, Header(description="Go on behind this event.")] = None,
    ) -> Response:
        if not follow:
            found = [*await jobs.events(call.identity, job_id, after=after, limit=limit)]
            return json_answer(JobEventList(found, found[-1].number if len(found) == limit else None))
        start = after if last_event_id is None else event_id(last_event_id)
        followed = jobs.follow(call.identity, job_id, after=start)
        stream = endless(call, followed, _told, closing, last=DONE)
        return StreamingResponse(stream, media_type="text/event-stream")


def _told(view: JobEventView) -> bytes:
    return numbered_event(view.number, view.type, view)
