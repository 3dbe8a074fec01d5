"""What is written down of jobs: every move in one commit with its events, under the fence of the seat.

Records: `jobs/<id>` (Job), `job_events/<id>/<number>` (JobEvent), `job_keys/<whose>/<idempotency key>` (Submission).
"""

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

import msgspec
import structlog

from moc.kernel.clock import Clock
from moc.kernel.errors import Conflict, NotFound, StoreUnavailable
from moc.kernel.events import Event
from moc.kernel.records import ABSENT, Op, Store, Table
from moc.kernel.tasks import to_the_end
from moc.learning.job import ENDED, MOVES, Job, JobEvent, JobSpec, JobState
from moc.learning.ports import ClusterSeat

log = structlog.get_logger(__name__)

EVENTS_MAX = 10_000
"""How many events of a job are kept: the oldest metrics go first."""

METRICS = "metrics"
MESSAGE = "message"

_ENDS = {JobState.SUCCEEDED: "succeeded", JobState.FAILED: "failed", JobState.CANCELLED: "was cancelled"}
_PAGE = 1_000
_SYSTEM = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What an idempotency key was used for: `job`, and the hash of the spec it was given."""

    job: str
    digest: str

    @classmethod
    def of(cls, job_id: str, spec: JobSpec) -> "Submission":
        """That `job_id` came of `spec`."""
        return cls(job=job_id, digest=hashlib.sha256(msgspec.json.encode(spec, order="sorted")).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Tale:
    """An event of a job that is not numbered yet; see `JobEvent`."""

    message: str
    type: str = MESSAGE
    level: str = "info"
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """What a job becomes, and what is to be told of it."""

    job: Job
    tales: tuple[Tale, ...] = ()


Change = Callable[[Job], Told | Job | None]
"""What a job becomes, None when it stays as it is; it sees the job as it is now."""


@dataclass(slots=True)
class _Held:
    """A job; whoever changes it has `writing`. `kept` are its events, unless they are surely few enough."""

    job: Job
    revision: int | None
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    kept: "_Kept | None" = None


class _Kept:
    """The numbers of the events that are kept of a job, and which go when there are more."""

    def __init__(self, events: Sequence[JobEvent]) -> None:
        self._metrics = deque(each.number for each in events if each.type == METRICS)
        self._others = deque(each.number for each in events if each.type != METRICS)

    def spare(self, more: int) -> list[int]:
        """Those that go when `more` come."""
        count = len(self._metrics) + len(self._others) + more - EVENTS_MAX
        return list(islice(chain(self._metrics, self._others), max(0, count)))

    def turn(self, spare: Sequence[int], events: Sequence[JobEvent]) -> None:
        """Those in `spare`, which it gave, are gone, and these are there."""
        for _ in spare:
            (self._metrics or self._others).popleft()
        for each in events:
            (self._metrics if each.type == METRICS else self._others).append(each.number)


class JobBook:
    """The records of jobs, and their one writer: changes of one job follow each other, and the seat keeps others out.

    `on_moved(job)` is called on the event loop after each commit that gave a job another state or reason.
    """

    def __init__(self, *, store: Store, seat: ClusterSeat, clock: Clock, on_moved: Callable[[Job], None]) -> None:
        self._store = store
        self._seat = seat
        self._clock = clock
        self._on_moved = on_moved
        self._jobs: Table[Job] = Table(store, "jobs/", Job)
        self._events: Table[JobEvent] = Table(store, "job_events/", JobEvent)
        self._submissions: Table[Submission] = Table(store, "job_keys/", Submission)
        self._held: dict[str, _Held] = {}
        self._unsure: set[str] = set()

    async def read(self) -> None:
        """Know every job there is. A record that cannot be read is left as it is: the others are looked after."""
        self._held = {}
        for record in await self._store.list(self._jobs.prefix):
            try:
                job = self._jobs.decode(record)
            except (msgspec.MsgspecError, RecursionError) as error:
                log.error("the record of a job cannot be read, and is left as it is", key=record.key, error=str(error))
                continue
            self._held[record.key.removeprefix(self._jobs.prefix)] = _Held(job, record.revision)

    # what is known

    def all(self) -> list[Job]:
        """Every job, oldest first."""
        return [held.job for held in self._held.values()]

    def get(self, job_id: str) -> Job:
        """One; NotFound when there is none."""
        return self._find(job_id).job

    def find(self, job_id: str) -> Job | None:
        """One, None when there is none."""
        held = self._held.get(job_id)
        return None if held is None else held.job

    async def submission(self, asker: str, key: str) -> Submission | None:
        """What an idempotency key was used for, by an actor or for the parent of a job."""
        found = await self._submissions.find(f"{asker}/{key}")
        return None if found is None else found[0]

    async def events(self, job_id: str, *, after: int, limit: int) -> list[JobEvent]:
        """What happened to a job, from behind the event `after`; NotFound when there is no such job."""
        self._find(job_id)
        found = await self._events.list(f"{job_id}/", after=_event_key(job_id, after), limit=limit)
        return [event for _, event, _ in found]

    async def follow(self, job_id: str, *, after: int) -> AsyncIterator[JobEvent]:
        """Its events behind `after`, then each new one; ends when the job has, and all is told."""
        while True:
            held = self._find(job_id)
            changed, job = held.changed, held.job
            events = await self.events(job_id, after=after, limit=_PAGE)
            for event in events:
                after = event.number
                yield event
            if after >= job.event_count or not events:
                if job.ended:
                    return
                await changed.wait()

    async def wait(self, job_id: str, until: Callable[[Job], bool]) -> Job:
        """The job once it is so."""
        while not until((held := self._find(job_id)).job):
            await held.changed.wait()
        return held.job

    # writing

    async def add(self, job: Job, submission: Submission) -> Job:
        """Write down a new job, and what its idempotency key was used for."""
        held = _Held(job, ABSENT)
        ops: list[Op] = []
        if job.idempotency_key:
            ops.append(self._submissions.put(_key_of(job), submission, expect=ABSENT))
        return await to_the_end(self._add(held, ops))

    async def _add(self, held: _Held, ops: Sequence[Op]) -> Job:
        job = held.job
        try:
            await self._write(held, job, [Tale(message="The job was submitted")], _event(job), ops)
        except StoreUnavailable:
            self._unsure.add(job.id)
            raise
        self._held[job.id] = held
        self._on_moved(held.job)
        return held.job

    async def recall(self, job_id: str) -> Job:
        """One, read if it is not known: the store may have taken it and failed to say so. NotFound."""
        found = None if job_id in self._held else await self._jobs.find(job_id)
        self._unsure.discard(job_id)
        if found is not None and job_id not in self._held:
            self._held[job_id] = _Held(*found)
            self._on_moved(found[0])
        return self.get(job_id)

    async def recall_all(self) -> None:
        """Know those, too, that were recorded though the store failed to say so."""
        for job_id in list(self._unsure):
            with contextlib.suppress(NotFound):
                await self.recall(job_id)

    async def change(self, job_id: str, change: Change, *, actor: str = _SYSTEM) -> Job:
        """What a job is after `change`; a change of state tells of itself.

        Conflict for a move a job cannot make. If this is cancelled the change may have been made, and is known of.
        """
        held = self._find(job_id)
        async with held.writing:
            before = held.job
            made = change(before)
            if made is None:
                return before
            job, tales = (made.job, made.tales) if isinstance(made, Told) else (made, ())
            if job == before and not tales:
                return before
            moved, event = (job.state, job.reason) != (before.state, before.reason), None
            if moved:
                if job.state is not before.state and job.state not in MOVES[before.state]:
                    raise Conflict(f"job {job_id} is {before.state} and cannot become {job.state}")
                job = replace(job, changed_at=self._clock.wall())
                tales, event = (*tales, _told(job)), _event(job, actor)
            return await to_the_end(self._change(held, job, tales, event))

    async def _change(self, held: _Held, job: Job, tales: Sequence[Tale], event: Event | None) -> Job:
        await self._write(held, job, tales, event)
        if event is not None:
            self._on_moved(held.job)
        return held.job

    def remark(self, job_id: str, waits_for: str) -> None:
        """Say what a job waits for; it is not written down before something else of it is."""
        held = self._held.get(job_id)
        if held is not None and held.job.waits_for != waits_for:
            held.job = replace(held.job, waits_for=waits_for)
            _wake(held)

    async def remove(self, job_id: str, *, actor: str) -> None:
        """Forget a job that has ended, and its events."""
        held = self._find(job_id)
        async with held.writing:
            while found := await self._events.list(f"{job_id}/", limit=_PAGE):
                ops: list[Op] = [self._events.delete(key, expect=None) for key, _, _ in found]
                await self._store.commit([self._seat.fence(), *ops])
            ops = [self._seat.fence(), self._jobs.delete(job_id, expect=held.revision)]
            if held.job.idempotency_key:
                ops.append(self._submissions.delete(_key_of(held.job), expect=None))
            await self._store.commit(ops, [Event(kind="job.removed", subject=job_id, actor=actor)])
            self._held.pop(job_id, None)
        _wake(held)

    async def _write(
        self, held: _Held, job: Job, tales: Sequence[Tale], event: Event | None, more: Sequence[Op] = ()
    ) -> None:
        now, first = self._clock.wall(), job.event_count + 1
        events = [
            JobEvent(
                number=number, created_at=now, type=each.type, message=each.message, level=each.level, data=each.data
            )
            for number, each in enumerate(tales, first)
        ]
        job = replace(job, event_count=job.event_count + len(events))
        if held.kept is None and job.event_count > EVENTS_MAX:
            held.kept = _Kept([each for _, each, _ in await self._events.list(f"{job.id}/")])
        spare = [] if held.kept is None else held.kept.spare(len(events))
        ops: list[Op] = [self._seat.fence(), self._jobs.put(job.id, job, expect=held.revision), *more]
        ops += [self._events.put(_event_key(job.id, each.number), each, expect=None) for each in events]
        ops += [self._events.delete(_event_key(job.id, number), expect=None) for number in spare]
        if held.revision != ABSENT:
            held.revision = None  # until it is known whether this one was made
        held.revision = await self._store.commit(ops, [] if event is None else [event])
        held.job = job
        if held.kept is not None:
            held.kept.turn(spare, events)
        _wake(held)

    def _find(self, job_id: str) -> _Held:
        held = self._held.get(job_id)
        if held is None:
            raise NotFound(f"there is no job {job_id[:128]!r}; `moc jobs list` shows those there are")
        return held


def _wake(held: _Held) -> None:
    """Let those see it that wait for a change."""
    changed, held.changed = held.changed, asyncio.Event()
    changed.set()


def _event_key(job_id: str, number: int) -> str:
    return f"{job_id}/{number:09d}"


def _key_of(job: Job) -> str:
    return f"{job.spec.parent or job.created_by}/{job.idempotency_key}"


def _told(job: Job) -> Tale:
    """What an owner is told of a job's new state."""
    level = "error" if job.state is JobState.FAILED else "info"
    words = f"The job is {job.state}" if job.state not in ENDED else f"The job {_ENDS[job.state]}"
    message = f"{words}: {job.message}" if job.message else words
    return Tale(message=message, level=level, data={"state": job.state, "reason": job.reason})


def _event(job: Job, actor: str = "") -> Event:
    spec = job.spec
    return Event(
        kind=f"job.{job.state}",
        subject=job.id,
        reason=job.reason,
        actor=actor or job.created_by,
        data={"type": spec.type, "name": spec.name, "model": spec.model, "message": job.message},
    )
