"""One request, one path: find the model, take a place, hand the request to the worker, give the place back.

Nothing is awaited that need not be: for a loaded model with a free place the only await is the worker's
answer.
"""

import asyncio

from moc.inference.answer import Answer, AnswerStream, Meter, Visit
from moc.inference.ports import Link, Links, Resident, Residents
from moc.inference.request import Caller, Reply, Request, Terms
from moc.kernel.errors import DeadlineExceeded, MocError, Unimplemented, WorkerLost
from moc.resilience.bulkhead import Bulkhead
from moc.resilience.deadline import Deadline


class Gateway:
    """Every inference goes through here."""

    def __init__(self, *, residents: Residents, links: Links, meter: Meter) -> None:
        self._residents = residents
        self._links = links
        self._meter = meter
        self._bulkheads: dict[str, Bulkhead] = {}

    async def infer(self, caller: Caller, reference: str, request: Request, terms: Terms) -> Answer:
        """One answer.

        A request that its worker was never given is tried once more on the worker that follows; one that
        was given fails with WorkerLost. Cancelling the caller frees the place and stops the engine.
        """
        try:
            return await self._infer(reference, request, terms.deadline)
        except WorkerLost as lost:
            if lost.sent:
                raise
        return await self._infer(reference, request, terms.deadline)

    async def stream(self, caller: Caller, reference: str, request: Request, terms: Terms) -> AnswerStream:
        """An answer in chunks; returns when the first is there. Retries like `infer`, before that only."""
        try:
            return await self._stream(reference, request, terms.deadline)
        except WorkerLost as lost:
            if lost.sent:
                raise
        return await self._stream(reference, request, terms.deadline)

    def waiting(self, worker_id: str) -> int:
        """How many requests wait for a place at a worker."""
        bulkhead = self._bulkheads.get(worker_id)
        return 0 if bulkhead is None else bulkhead.waiting

    async def _infer(self, reference: str, request: Request, deadline: Deadline) -> Answer:
        visit = self._visit(await self._resident(reference, deadline), request)
        code = "cancelled"
        try:
            if not visit.try_enter():
                await visit.wait(deadline)
            if deadline.at is None:
                reply = await visit.link.infer(request)
            else:
                reply = await _within(deadline, visit.link, request)
            code = "ok"
            return Answer(reply, visit.resident.reference, visit.resident.digest, visit.queue_s)
        except MocError as error:
            code = error.code
            raise
        finally:
            visit.end(code)

    async def _stream(self, reference: str, request: Request, deadline: Deadline) -> AnswerStream:
        visit = self._visit(await self._resident(reference, deadline), request)
        try:
            if not visit.try_enter():
                await visit.wait(deadline)
            stream = AnswerStream(visit, visit.link.stream(request), deadline)
        except BaseException as error:
            visit.end(error.code if isinstance(error, MocError) else "cancelled")
            raise
        await stream.begin()
        return stream

    async def _resident(self, reference: str, deadline: Deadline) -> Resident:
        found = self._residents.find(reference)
        return found if found is not None else await self._residents.ensure_ready(reference, deadline)

    def _visit(self, resident: Resident, request: Request) -> Visit:
        link = self._links.link(resident.worker_id)
        if link is None or not link.alive:
            raise WorkerLost(f"the worker of {resident.reference} is gone; try again shortly", sent=False)
        if request.kind not in link.info.kinds:
            can = ", ".join(link.info.kinds)
            raise Unimplemented(f"{resident.reference} cannot do {request.kind}; it can do {can}")
        bulkhead = self._bulkheads.get(resident.worker_id)
        if bulkhead is None:
            bulkhead = self._new_bulkhead(resident, link)
        return Visit(resident, link, bulkhead, self._meter, request.kind)

    def _new_bulkhead(self, resident: Resident, link: Link) -> Bulkhead:
        for gone in [worker_id for worker_id in self._bulkheads if self._links.link(worker_id) is None]:
            del self._bulkheads[gone]
        bulkhead = self._bulkheads[resident.worker_id] = Bulkhead(
            resident.reference,
            max_concurrent=max(1, min(resident.max_concurrent, link.info.concurrency)),
            max_queue=resident.max_queue,
        )
        return bulkhead


async def _within(deadline: Deadline, link: Link, request: Request) -> Reply:
    try:
        async with asyncio.timeout(deadline.remaining_s()):
            return await link.infer(request)
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed while the model worked on it; allow more time") from None
