"""Jobs whose coordinator, host, parent or program is gone, and what is left when they are removed."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from moc.app.learning import host_of
from moc.kernel.errors import Conflict, MocError, NotFound, QueueFull, Unavailable
from moc.learning.job import ENDED, JobState, JobType, Reason, Wish
from moc.learning.ports import STOPPED_STATUS
from tests.job_house import SPEC, JobHouse, job_house

OCCASIONS = ("pause", "resume", "resume", "cancel", "vanish", "fail", "evict", "keep", "crash", "wait", "wait")


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[JobHouse]:
    async with job_house(tmp_path / "jobs") as made:
        yield made


# children


async def test_what_happens_to_a_parent_happens_to_its_children(house: JobHouse) -> None:
    house.limits.places = 4
    parent = await house.submit(replace(SPEC, type=JobType.TUNE))
    await house.programs.started()
    child, lone = (
        await house.submit(replace(SPEC, parent=parent.id)),
        await house.submit(replace(SPEC, parent=parent.id)),
    )
    await house.programs.started(3)
    for each in (parent, child, lone):
        await house.reaches(each.id, JobState.RUNNING)
    await house.jobs.pause(lone.id, actor="key-1")
    await house.reaches(lone.id, JobState.PAUSED)

    await house.jobs.pause(parent.id, actor="key-1")
    assert (await house.reaches(child.id, JobState.PAUSED)).reason is Reason.PARENT
    await house.reaches(parent.id, JobState.PAUSED)
    late = await house.submit(replace(SPEC, parent=parent.id))
    assert (await house.reaches(late.id, JobState.PAUSED)).reason is Reason.PARENT

    await house.jobs.resume(parent.id, actor="key-1")
    for each in (parent, child, late):
        await house.reaches(each.id, JobState.RUNNING)
    assert (house.jobs.show(lone.id).state, house.jobs.show(lone.id).reason) == (JobState.PAUSED, Reason.REQUESTED)

    await house.jobs.cancel(parent.id, actor="key-1")
    for each in (child, lone, late):
        assert (await house.jobs.wait(each.id)).reason is Reason.PARENT
    await house.jobs.wait(parent.id)
    with pytest.raises(Conflict, match="is over"):
        await house.submit(replace(SPEC, parent=parent.id))


async def test_a_child_that_ends_meanwhile_keeps_no_other_from_its_pause(house: JobHouse) -> None:
    house.limits.places, house.programs.obeys = 4, False
    parent = await house.submit(replace(SPEC, type=JobType.TUNE))
    children = [await house.submit(replace(SPEC, parent=parent.id)) for _ in range(3)]
    for each in (parent, *children):
        await house.reaches(each.id, JobState.RUNNING)
    async with house.jobs._book._held[children[0].id].writing:
        pausing = asyncio.create_task(house.jobs.pause(parent.id, actor="key-1"))
        await house.until(parent.id, lambda job: job.wish is Wish.PAUSE)
        await asyncio.sleep(0)
        await house.jobs.cancel(children[1].id, actor="key-1")

    await pausing
    assert [house.jobs.show(each.id).wish for each in children] == [Wish.PAUSE, Wish.CANCEL, Wish.PAUSE]


async def test_children_end_with_their_parent(house: JobHouse) -> None:
    parent = await house.submit(replace(SPEC, type=JobType.TUNE))
    program = await house.programs.started()
    child = await house.submit(replace(SPEC, parent=parent.id))
    await house.reaches(child.id, JobState.RUNNING)
    program.end(1)

    done = await house.jobs.wait(child.id)
    assert (done.state, done.reason) == (JobState.CANCELLED, Reason.PARENT)


async def test_a_child_of_a_parent_that_ends_meanwhile_is_refused(house: JobHouse) -> None:
    parent = await house.submit(replace(SPEC, type=JobType.TUNE))
    await house.reaches(parent.id, JobState.RUNNING)
    house.kind.checking.clear()
    asked = asyncio.create_task(house.submit(replace(SPEC, parent=parent.id)))
    await asyncio.sleep(0)
    await house.jobs.cancel(parent.id, actor="key-1")
    await house.jobs.wait(parent.id)
    house.kind.checking.set()

    with pytest.raises(Conflict, match="is over"):
        await asked


async def test_a_child_left_behind_ends_all_the_same(house: JobHouse) -> None:
    parent = await house.submit(replace(SPEC, type=JobType.TUNE))
    await house.reaches(parent.id, JobState.RUNNING)
    child = await house.submit(replace(SPEC, parent=parent.id))
    orphan = replace(child, spec=replace(child.spec, parent="job-none"))
    await house.jobs._book.change(child.id, lambda job: replace(job, spec=orphan.spec))

    assert (await house.jobs.wait(child.id)).reason is Reason.PARENT
    assert house.jobs.show(parent.id).state is JobState.RUNNING


async def test_the_trials_of_a_search_that_runs_are_kept(house: JobHouse) -> None:
    house.limits.kept = 1
    parent = await house.submit(replace(SPEC, type=JobType.TUNE))
    await house.programs.started()
    trials = [await house.submit(replace(SPEC, parent=parent.id)) for _ in range(3)]
    for trial in trials:
        await house.jobs.cancel(trial.id, actor="key-1")
        await house.jobs.wait(trial.id)
    await house.submit()
    assert {trial.id for trial in trials} <= {job.id for job in house.jobs.all()}

    await house.jobs.cancel(parent.id, actor="key-1")
    await house.jobs.wait(parent.id)
    await house.submit()
    assert not {trial.id for trial in trials} & {job.id for job in house.jobs.all()}


# after a crash


async def test_a_program_that_lives_is_adopted(house: JobHouse) -> None:
    job = await house.submit()
    program = await house.programs.started()
    await house.reaches(job.id, JobState.RUNNING)
    program.tell(type="message", message="one")
    await house.until(job.id, lambda job: job.attempts[-1].read_bytes == 1)
    await house.restart()
    claims = program.claims
    program.tell(type="message", message="two")
    program.end(0)

    assert (await house.jobs.wait(job.id)).state is JobState.SUCCEEDED
    assert len(house.programs.programs) == 1
    told = await house.messages(job.id)
    assert (told.count("one"), told.count("two"), claims > 0) == (1, 1, True)


async def test_a_program_that_ended_meanwhile_ended(house: JobHouse) -> None:
    job = await house.submit(replace(SPEC, name="m"))
    program = await house.programs.started()
    await house.reaches(job.id, JobState.RUNNING)
    await house.jobs.stop()
    program.end(0, data={"a": 1})
    await house.restart()

    done = await house.jobs.wait(job.id)
    assert done.outcome is not None
    assert (done.outcome.model, done.outcome.data, house.kind.made[job.id]) == ("m@1", {"a": 1}, 1)
    assert not house.memory.held


async def test_a_program_nobody_wrote_down_is_found(house: JobHouse) -> None:
    job = await house.submit()
    program = await house.programs.started()
    running = await house.reaches(job.id, JobState.RUNNING)
    await house.jobs.stop()
    forgotten = replace(running, attempts=(replace(running.attempts[0], pid=0, process_started_at=0.0),))
    book = house.jobs._book
    await book.change(job.id, lambda _: forgotten)
    await house.restart()
    program.end(0)

    assert (await house.jobs.wait(job.id)).state is JobState.SUCCEEDED
    assert len(house.programs.programs) == 1


def test_a_host_keeps_the_name_its_jobs_know(tmp_path: Path) -> None:
    assert host_of(tmp_path) == socket.gethostname()
    (tmp_path / "host").write_text("container-1\n")
    assert host_of(tmp_path) == "container-1"


async def test_what_another_host_ran_is_given_up_with_all_it_had(house: JobHouse) -> None:
    job = await house.submit()
    program = await house.programs.started()
    running = await house.reaches(job.id, JobState.RUNNING)
    (lease,) = house.memory.held
    await house.jobs.stop()
    attempt = replace(running.attempts[0], host="elsewhere", started_at=0.0, heartbeat_at=0.0)
    await house.jobs._book.change(job.id, lambda _: replace(running, attempts=(attempt,)))
    await house.restart()

    await house.programs.started(2)
    assert not program.runs, "it may be on this very machine"
    assert not house.programs.doubled
    assert lease not in house.memory.held


async def test_a_program_that_is_gone_is_started_again(house: JobHouse) -> None:
    job = await house.submit()
    program = await house.programs.started()
    await house.reaches(job.id, JobState.RUNNING)
    await house.jobs.stop()
    program.vanish()
    await house.restart()

    again = await house.programs.started(2)
    assert again.order.attempt == 2
    await house.until(job.id, lambda job: job.attempt_count == 2)


async def test_what_was_queued_or_asked_for_is_gone_on_with(house: JobHouse) -> None:
    house.limits.places = 1
    house.programs.obeys = False
    running = await house.submit()
    program = await house.programs.started()
    await house.reaches(running.id, JobState.RUNNING)
    queued = await house.submit()
    await house.reaches(queued.id, JobState.QUEUED)
    await house.jobs.cancel(running.id, actor="key-1")
    await house.restart()
    program.end(STOPPED_STATUS)

    assert (await house.jobs.wait(running.id)).state is JobState.CANCELLED
    await house.reaches(queued.id, JobState.RUNNING)


async def test_the_job_of_another_host_is_left_to_it_while_it_lives(house: JobHouse) -> None:
    job = await house.submit()
    await house.programs.started()
    await house.reaches(job.id, JobState.RUNNING)
    await house.restart("there")

    lone = await house.submit()
    await house.reaches(lone.id, JobState.RUNNING)
    assert house.jobs.show(job.id).attempt_count == 1


async def test_stopping_programs_keeps_their_jobs(house: JobHouse) -> None:
    job = await house.submit()
    await house.programs.started()
    await house.reaches(job.id, JobState.RUNNING)
    await house.jobs.drain()
    with pytest.raises(Unavailable):
        await house.submit()
    await house.jobs.stop_programs()

    left = house.jobs.show(job.id)
    assert (left.state, left.fruitless, house.programs.running()) == (JobState.QUEUED, 0, [])
    await house.restart()
    await house.programs.started(2)


async def test_who_lost_the_seat_writes_nothing(house: JobHouse) -> None:
    job = await house.submit()
    program = await house.programs.started()
    await house.reaches(job.id, JobState.RUNNING)
    house.seat.lose()
    program.end(0)
    with pytest.raises(MocError):
        await house.jobs.cancel(job.id, actor="key-1")

    assert house.jobs.show(job.id).state is JobState.RUNNING


# when another part fails


async def test_a_crash_that_ends_the_lease_first_is_no_preemption(house: JobHouse) -> None:
    job = await house.submit()
    await house.programs.started()
    running = await house.reaches(job.id, JobState.RUNNING)
    assert running.attempt is not None
    house.memory.over[running.attempt.lease_id] = {"reason": "ProcessGone", "quarantined": False}

    again = await house.until(job.id, lambda job: job.attempt_count == 2)
    assert (again.attempts[0].outcome, again.fruitless) == ("gone", 1)


async def test_while_the_store_fails_programs_are_looked_after(house: JobHouse) -> None:
    job = await house.submit()
    program = await house.programs.started()
    await house.reaches(job.id, JobState.RUNNING)
    house.store.full = True
    claims = program.claims
    program.tell(type="message", message="in vain")
    house.memory.evict_in_s = 5.0
    house.memory.gate.clear()
    async with asyncio.timeout(20):
        await program.interrupted.wait()
    assert program.claims > claims
    house.store.full = False

    assert (await house.reaches(job.id, JobState.PAUSED)).reason is Reason.PREEMPTED
    assert (await house.messages(job.id)).count("in vain") == 1


async def test_what_cannot_be_taken_up_keeps_no_job_from_its_end(house: JobHouse) -> None:
    job = await house.submit()
    program = await house.programs.started()
    await house.reaches(job.id, JobState.RUNNING)
    (house.folder / job.id / "checkpoints").mkdir()
    program.tell(type="checkpoint", name="\u00e9" * 200, step=1)
    await house.until(job.id, lambda job: job.attempts[-1].read_bytes == 1)
    house.store.fault = RuntimeError("nobody thought of this")
    program.tell(type="message", message="lost")
    await house.until(job.id, lambda job: job.attempts[-1].read_bytes == 2)
    program.end(0, data={"a": 1})

    done = await house.jobs.wait(job.id)
    assert done.outcome is not None
    assert (done.state, done.attempt_count, done.checkpoints) == (JobState.SUCCEEDED, 1, ())
    assert done.outcome.data == {"a": 1}
    assert "told what cannot be taken up; it is left out" in await house.messages(job.id)


# forgetting


async def test_only_what_has_ended_is_removed_with_all_it_left(house: JobHouse) -> None:
    job = await house.submit(key="once")
    program = await house.programs.started()
    await house.reaches(job.id, JobState.RUNNING)
    with pytest.raises(Conflict, match="cancel it first"):
        await house.jobs.remove(job.id, actor="key-1")
    program.end(0)
    await house.jobs.wait(job.id)
    assert (house.folder / job.id).is_dir()
    await house.jobs.remove(job.id, actor="key-1")

    with pytest.raises(NotFound):
        house.jobs.show(job.id)
    assert not (house.folder / job.id).exists()
    assert not [record.key for record in await house.store.list("job")]
    assert (await house.submit(key="once")).id != job.id


async def test_logs_are_those_of_the_attempt(house: JobHouse) -> None:
    house.kind.gate.clear()
    job = await house.submit()
    assert await house.jobs.logs(job.id) == ""
    house.kind.gate.set()
    program = await house.programs.started()
    program.log = "hello"
    await house.reaches(job.id, JobState.RUNNING)

    assert await house.jobs.logs(job.id) == "hello"
    assert await house.jobs.logs(job.id, attempt=1, tail_bytes=2) == "lo"
    with pytest.raises(NotFound, match="no attempt 2; it has 1"):
        await house.jobs.logs(job.id, attempt=2)


async def test_too_many_are_refused(house: JobHouse) -> None:
    house.limits.live = 1
    await house.submit()
    with pytest.raises(QueueFull):
        await house.submit()


async def test_whatever_happens_each_job_ends_once_and_leaves_nothing(house: JobHouse) -> None:
    """Random orders, ends, evictions and crashes."""
    dice = random.Random(20261123)
    house.limits.places, house.limits.attempts = 3, 1000
    jobs = [(await house.submit(replace(SPEC, priority=dice.randint(1, 10)))).id for _ in range(8)]
    for _ in range(300):
        await something_happens(house, dice, dice.choice(jobs))
        await asyncio.sleep(0)
    house.memory.evict_in_s = None
    for job_id in jobs:
        if not house.jobs.show(job_id).ended and house.jobs.show(job_id).wish is not Wish.CANCEL:
            await house.jobs.resume(job_id, actor="key-1")
    for job_id in jobs:
        while not house.jobs.show(job_id).ended:
            for program in house.programs.running():
                program.end(0)
            await a_moment(house, job_id, 0.05)

    ends = [event.subject for event in await house.store.events() if event.kind.split(".")[1] in ENDED]
    assert sorted(ends) == sorted(jobs)
    assert not house.programs.doubled
    assert not house.memory.held
    assert not house.programs.running()


async def something_happens(house: JobHouse, dice: random.Random, job_id: str) -> None:
    what = dice.choice(OCCASIONS)
    running = house.programs.running()
    if what in {"pause", "resume"} or (what == "cancel" and dice.random() < 0.05):
        with suppress(Conflict):
            await getattr(house.jobs, what)(job_id, actor="key-1")
    elif what == "vanish" and running:
        dice.choice(running).vanish()
    elif what == "fail" and running and dice.random() < 0.05:
        dice.choice(running).end(1)
    elif what in {"evict", "keep"}:
        house.memory.evict_in_s = 5.0 if what == "evict" and dice.random() < 0.3 else None
    elif what == "crash" and dice.random() < 0.3:
        await house.restart()
    else:
        await a_moment(house, job_id, dice.uniform(0, 0.05))


async def a_moment(house: JobHouse, job_id: str, most_s: float) -> None:
    """Until the job has ended, or a little while."""
    with suppress(TimeoutError):
        async with asyncio.timeout(most_s):
            await house.jobs.wait(job_id)
