"""Actions on jobs."""

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta

from moc.security.identity import Identity
from moc.service.job_views import JobView
from moc.service.jobs import JobFilter, JobsService, JobWish
from moc.transports.zmq.call import Action, Call, Outcome


class JobsPayload(msgspec.Struct, forbid_unknown_fields=True):
    """Some of the jobs: those behind `after` with all that is said."""

    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    status: str = ""
    type: str = ""
    parent: str = ""


class JobPayload(msgspec.Struct, forbid_unknown_fields=True):
    """A job by its id."""

    id: str


class EventsPayload(msgspec.Struct, forbid_unknown_fields=True):
    """What happened to a job behind the event `after`; with `stream` pieces tell it until the job has ended."""

    id: str
    after: Annotated[int, Meta(ge=0, lt=2**62)] = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    stream: bool = False


Verb = Callable[[Identity, str], Awaitable[JobView]]


def job_actions(jobs: JobsService) -> Mapping[str, Action]:
    """Jobs, from their submission to their end."""
    return {
        "submit_job": Action(handle=partial(_submit, jobs)),
        "job": Action(handle=partial(_one, jobs.show)),
        "list_jobs": Action(handle=partial(_list, jobs)),
        "job_events": Action(handle=partial(_events, jobs), patient=True),
        "pause_job": Action(handle=partial(_one, jobs.pause)),
        "resume_job": Action(handle=partial(_one, jobs.resume)),
        "cancel_job": Action(handle=partial(_one, jobs.cancel)),
    }


async def _submit(jobs: JobsService, call: Call) -> Outcome:
    wish = call.read(JobWish)
    return Outcome(await jobs.submit(call.identity, wish, idempotency_key=call.idempotency_key))


async def _one(verb: Verb, call: Call) -> Outcome:
    return Outcome(await verb(call.identity, call.read(JobPayload).id))


async def _list(jobs: JobsService, call: Call) -> Outcome:
    payload = call.read(JobsPayload)
    wanted = JobFilter(status=payload.status, type=payload.type, parent=payload.parent)
    page = await jobs.list(call.identity, wanted=wanted, after=payload.after, limit=payload.limit)
    return Outcome({"jobs": page.items, "next": page.next})


async def _events(jobs: JobsService, call: Call) -> Outcome:
    payload = call.read(EventsPayload)
    if not payload.stream or call.emit is None:
        found = await jobs.events(call.identity, payload.id, after=payload.after, limit=payload.limit)
        return Outcome({"events": found, "next": found[-1].number if len(found) == payload.limit else None})
    async with contextlib.aclosing(jobs.follow(call.identity, payload.id, after=payload.after)) as followed:
        async for view in followed:
            await call.emit(view)
    return Outcome()
