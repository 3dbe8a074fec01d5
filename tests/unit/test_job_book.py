"""The records of jobs: one commit for each change, bounded events, and what is left when a commit fails."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from moc.kernel.errors import Conflict, NotFound, NotLeader, StoreUnavailable
from moc.kernel.events import Event
from moc.kernel.records import ABSENT, Op, Put
from moc.learning.job import Job, JobState, Reason
from moc.learning.job_book import EVENTS_MAX, METRICS, JobBook, Submission, Tale, Told
from moc.store.memory import MemoryStore
from moc.testing.clock import ManualClock
from moc.testing.seat import FakeSeat
from tests.unit.test_told import JOB

NEW = replace(JOB, state=JobState.VALIDATING, reason=Reason.SUBMITTED, attempts=(), attempt_count=0)


class FailingStore(MemoryStore):
    """Refuses commits while `fails`; `made` says whether they are made all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = self.made = False

    async def commit(self, ops: Sequence[Op], events: Sequence[Event] = ()) -> int:
        if self.fails and not self.made:
            raise StoreUnavailable("the disk is full")
        revision = await super().commit(ops, events)
        if self.fails:
            raise StoreUnavailable("no answer")
        return revision


class House:
    """A book over a store that can fail; `moved` are the states it told of."""

    def __init__(self) -> None:
        self.store = FailingStore()
        self.seat = FakeSeat(self.store, "cluster")
        self.moved: list[JobState] = []
        self.book = self.make()

    def make(self) -> JobBook:
        return JobBook(
            store=self.store, seat=self.seat, clock=ManualClock(), on_moved=lambda job: self.moved.append(job.state)
        )


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    await made.store.start()
    await made.seat.start()
    await made.book.add(NEW, Submission.of(NEW.id, NEW.spec))
    yield made
    await made.store.stop()


def queued(job: Job) -> Job:
    return replace(job, state=JobState.QUEUED, reason=Reason.VALIDATED)


async def test_a_move_is_one_commit_with_its_events(house: House) -> None:
    job = await house.book.change(NEW.id, queued, actor="key-2")

    assert house.moved == [JobState.VALIDATING, JobState.QUEUED]
    assert [(event.kind, event.actor) for event in await house.store.events()] == [
        ("job.validating", "key-1"),
        ("job.queued", "key-2"),
    ]
    events = await house.book.events(NEW.id, after=0, limit=10)
    assert [(event.number, event.message) for event in events] == [
        (1, "The job was submitted"),
        (2, "The job is queued"),
    ]
    other = house.make()
    await other.read()
    assert other.get(NEW.id) == job


async def test_a_move_that_cannot_be_is_refused(house: House) -> None:
    with pytest.raises(Conflict, match="is validating and cannot become running"):
        await house.book.change(NEW.id, lambda job: replace(job, state=JobState.RUNNING))
    with pytest.raises(NotFound):
        await house.book.change("job-none", queued)


async def test_a_record_that_cannot_be_read_keeps_no_other_from_being_looked_after(house: House) -> None:
    unreadable = {"jobs/job-0": b'{"id": 1}', "jobs/job-00": b"not JSON", "jobs/job-2": b"[" * 100_000}
    await house.store.commit([Put(key, value, ABSENT) for key, value in unreadable.items()])
    again = house.make()
    await again.read()

    assert [job.id for job in again.all()] == [NEW.id]
    await again.change(NEW.id, queued)
    records = {record.key: record.value for record in await house.store.list("jobs/job-")}
    assert records.items() >= unreadable.items()


async def test_changes_at_the_same_moment_follow_each_other(house: House) -> None:
    await house.book.change(NEW.id, queued)

    async def count() -> None:
        await house.book.change(NEW.id, lambda job: replace(job, fruitless=job.fruitless + 1))

    await asyncio.gather(*(count() for _ in range(50)))
    assert house.book.get(NEW.id).fruitless == 50


@pytest.mark.parametrize("made", [False, True])
async def test_after_a_commit_that_failed_it_goes_on_either_way(house: House, made: bool) -> None:
    house.store.fails, house.store.made = True, made
    with pytest.raises(StoreUnavailable):
        await house.book.change(NEW.id, queued)
    assert house.book.get(NEW.id).state is JobState.VALIDATING
    house.store.fails = False

    await house.book.change(NEW.id, queued)
    events = await house.book.events(NEW.id, after=0, limit=10)
    assert [event.number for event in events] == [1, 2]


async def test_a_job_that_was_taken_and_the_store_did_not_say_so_is_found(house: House) -> None:
    named = replace(NEW, id="job-2", idempotency_key="once")
    house.store.fails = house.store.made = True
    with pytest.raises(StoreUnavailable):
        await house.book.add(named, Submission.of(named.id, named.spec))
    house.store.fails = False
    assert house.book.find("job-2") is None

    await house.book.recall_all()
    assert (await house.book.recall("job-2")).idempotency_key == "once"
    assert house.moved == [JobState.VALIDATING] * 2
    with pytest.raises(NotFound):
        await house.book.recall("job-none")


async def test_who_lost_the_seat_changes_nothing(house: House) -> None:
    house.seat.lose()
    with pytest.raises(NotLeader):
        await house.book.change(NEW.id, queued)


async def test_a_change_whose_caller_is_cancelled_is_known_of(house: House) -> None:
    task = asyncio.create_task(house.book.change(NEW.id, queued))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    other = house.make()
    await other.read()
    assert other.get(NEW.id) == house.book.get(NEW.id)


async def tell(book: JobBook, count: int, kind: str) -> None:
    tales = tuple(Tale(type=kind, message=kind) for _ in range(count))
    await book.change(NEW.id, lambda job: Told(job, tales))


async def test_of_too_many_events_the_oldest_metrics_go_first(house: House) -> None:
    await tell(house.book, EVENTS_MAX // 2, METRICS)
    await tell(house.book, EVENTS_MAX // 2, "message")
    other = house.make()
    await other.read()
    await tell(other, 100, METRICS)

    events = await other.events(NEW.id, after=0, limit=2 * EVENTS_MAX)
    assert len(events) == EVENTS_MAX
    assert events[0].message == "The job was submitted"
    assert events[1].number == 103
    assert events[-1].number == EVENTS_MAX + 101
    await tell(other, EVENTS_MAX, "message")
    left = await other.events(NEW.id, after=0, limit=2 * EVENTS_MAX)
    assert len(left) == EVENTS_MAX
    assert not [event for event in left if event.type == METRICS]


async def test_who_follows_is_told_all_and_then_it_ends(house: House) -> None:
    async def follow() -> list[int]:
        return [event.number async for event in house.book.follow(NEW.id, after=1)]

    following = asyncio.create_task(follow())
    await house.book.change(NEW.id, queued)
    await tell(house.book, 2500, METRICS)
    await house.book.change(NEW.id, lambda job: replace(job, state=JobState.CANCELLED, reason=Reason.REQUESTED))

    async with asyncio.timeout(10):
        assert await following == list(range(2, 2504))


async def test_removing_takes_events_and_key_along(house: House) -> None:
    named = replace(NEW, id="job-2", idempotency_key="once")
    await house.book.add(named, Submission.of(named.id, named.spec))
    assert await house.book.submission("key-1", "once") is not None
    await house.book.remove("job-2", actor="key-1")

    assert await house.book.submission("key-1", "once") is None
    assert {record.key for record in await house.store.list("job")} == {"jobs/job-1", "job_events/job-1/000000001"}
