"""`moc.v1.Jobs`."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final

import msgspec
from google.protobuf import json_format

from moc.kernel.choices import told
from moc.kernel.errors import InvalidRequest
from moc.security.identity import Identity
from moc.service.job_views import JobView
from moc.service.jobs import JobFilter, JobWish
from moc.service.services import Services
from moc.transports.closing import until
from moc.transports.grpc.call import Call, Method, Stream, Unary
from moc.transports.grpc.messages import fields_of, message_of, page_of, read
from moc.transports.grpc.stubs.moc.v1 import jobs_pb2 as pb

SERVICE: Final = "moc.v1.Jobs"
Verb = Callable[[Identity, str], Awaitable[JobView]]


class Jobs:
    """The service's methods; event streams end when `closing` is set."""

    def __init__(self, services: Services, closing: asyncio.Event) -> None:
        self._jobs = services.jobs
        self._closing = closing

    def methods(self) -> dict[str, Method]:
        """By path."""
        found: dict[str, Method] = {
            "List": Unary(self._list),
            "Get": Unary(partial(self._one, self._jobs.show)),
            "Submit": Unary(self._submit),
            "Pause": Unary(partial(self._one, self._jobs.pause)),
            "Resume": Unary(partial(self._one, self._jobs.resume)),
            "Cancel": Unary(partial(self._one, self._jobs.cancel)),
            "Events": Stream(self._events),
        }
        return {f"/{SERVICE}/{name}": method for name, method in found.items()}

    async def _list(self, data: bytes, call: Call) -> bytes:
        message = read(pb.ListJobsRequest, data)
        after, limit = page_of(message.after, message.limit)
        wanted = JobFilter(status=message.status, type=message.type, parent=message.parent)
        page = await self._jobs.list(call.identity, wanted=wanted, after=after, limit=limit)
        jobs = [message_of(pb.Job, view) for view in page.items]
        return pb.ListJobsResponse(jobs=jobs, next=page.next or "").SerializeToString()

    async def _one(self, verb: Verb, data: bytes, call: Call) -> bytes:
        return _written(await verb(call.identity, read(pb.GetJobRequest, data).id))

    async def _submit(self, data: bytes, call: Call) -> bytes:
        wish = _wish(read(pb.SubmitJobRequest, data))
        return _written(await self._jobs.submit(call.identity, wish, idempotency_key=call.idempotency_key()))

    async def _events(self, requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes, None]:
        async for data in requests:
            message = read(pb.JobEventsRequest, data)
            followed = until(self._closing, self._jobs.follow(call.identity, message.id, after=message.after))
            async with contextlib.aclosing(followed):
                async for view in followed:
                    yield message_of(pb.JobEvent, view).SerializeToString()
            return


def _wish(message: pb.SubmitJobRequest) -> JobWish:
    """The wish; what is absent has the defaults of a JobWish."""
    fields: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    for name in ("hyperparameters", "options"):
        if name in fields:
            fields[name] = fields_of(getattr(message, name))
    try:
        return msgspec.convert(fields, JobWish, strict=False)  # JSON has 64-bit numbers in texts
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the job is not what this takes: {told(error, JobWish)}") from None


def _written(view: JobView) -> bytes:
    return message_of(pb.Job, view).SerializeToString()
