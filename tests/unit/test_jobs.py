"""Jobs from their submission to their end, with programs that do what the test says."""

import asyncio
import errno
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from moc.kernel.errors import Conflict, InvalidRequest, NoCapacity, NotFound, Unavailable
from moc.learning.job import JobState, JobType, Reason, Wish
from moc.learning.ports import STOPPED_STATUS
from moc.security.identity import Identity, Role
from tests.job_house import SPEC, JobHouse, job_house


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[JobHouse]:
    async with job_house(tmp_path / "jobs") as made:
        yield made


async def test_a_job_runs_to_its_end(house: JobHouse) -> None:
    job = await house.submit(replace(SPEC, name="zorblax"))
    assert job.state is JobState.VALIDATING
    program = await house.programs.started()
    assert (await house.reaches(job.id, JobState.RUNNING)).reason is Reason.STARTED
    program.tell(type="metrics", step=1, total_steps=2, metrics={"train_loss": 1.5})
    program.end(0, metrics={"train_loss": 1.25}, data={"rows": 3})

    done = await house.jobs.wait(job.id)

    assert (done.state, done.reason) == (JobState.SUCCEEDED, Reason.DONE)
    assert done.outcome is not None
    assert (done.outcome.model, done.outcome.metrics, done.outcome.data) == (
        "zorblax@1",
        {"train_loss": 1.25},
        {"rows": 3},
    )
    assert (done.progress.step, done.progress.total_steps) == (1, 2)
    assert [each.outcome for each in done.attempts] == ["succeeded"]
    assert not house.memory.held
    assert not house.visitors.admitted
    assert await house.messages(job.id) == [
        "The job was submitted",
        "The job is queued",
        "The job is running",
        "Step 1/2: train_loss=1.5",
        "The job succeeded: it made zorblax@1",
    ]
    kinds = [event.kind for event in await house.store.events()]
    assert kinds == ["job.validating", "job.queued", "job.running", "job.succeeded"]


async def test_an_idempotency_key_gives_the_same_job_again(house: JobHouse) -> None:
    job = await house.submit(key="once")

    assert (await house.submit(key="once")).id == job.id
    with pytest.raises(Conflict, match="with another request"):
        await house.submit(replace(SPEC, seed=1), key="once")
    other = await house.jobs.submit(SPEC, actor=Identity("key-2", "you", Role.OPERATOR), idempotency_key="once")
    assert other.id != job.id


async def test_one_key_used_at_the_same_moment_makes_one_job(house: JobHouse) -> None:
    jobs = await asyncio.gather(*(house.submit(key="once") for _ in range(10)))

    assert len({job.id for job in jobs}) == 1
    assert len(house.jobs.all()) == 1


async def test_a_spec_that_makes_no_sense_is_refused(house: JobHouse) -> None:
    house.kind.refusal = InvalidRequest("no such thing")
    with pytest.raises(InvalidRequest, match="no such thing"):
        await house.submit()
    house.kind.refusal = None
    with pytest.raises(InvalidRequest, match="priority"):
        await house.submit(replace(SPEC, priority=11))
    with pytest.raises(InvalidRequest, match="idempotency key"):
        await house.submit(key="x" * 256)
    with pytest.raises(NotFound):
        await house.submit(replace(SPEC, parent="job-none"))
    assert not house.jobs.all()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (InvalidRequest("line 3: no messages"), Reason.INVALID),
        (OSError(errno.ENOSPC, "No space left on device"), Reason.DISK_FULL),
        (ZeroDivisionError("never"), Reason.PROGRAM_FAILED),
    ],
)
async def test_what_cannot_be_worked_on_fails_before_it_runs(house: JobHouse, fault: Exception, reason: Reason) -> None:
    house.kind.fault = fault
    job = await house.jobs.wait((await house.submit()).id)

    assert (job.state, job.reason) == (JobState.FAILED, reason)
    assert str(fault) in job.message
    assert not house.programs.programs


async def test_a_job_that_can_never_have_its_memory_fails(house: JobHouse) -> None:
    house.memory.error = NoCapacity("32 GiB are more than host has")
    job = await house.jobs.wait((await house.submit()).id)

    assert (job.state, job.reason, job.message) == (
        JobState.FAILED,
        Reason.NO_CAPACITY,
        "32 GiB are more than host has",
    )


async def test_no_more_run_at_once_than_may(house: JobHouse) -> None:
    jobs = [await house.submit() for _ in range(3)]
    second = await house.programs.started(2)
    await house.until(jobs[2].id, lambda job: "a place" in job.waits_for)
    assert house.jobs.count()["running"] == 2

    second.end(0)
    await house.programs.started(3)
    assert (await house.reaches(jobs[2].id, JobState.RUNNING)).waits_for == ""


async def test_who_coordinates_takes_no_place(house: JobHouse) -> None:
    house.limits.places = 1
    parent = await house.submit(replace(SPEC, type=JobType.TUNE))
    await house.programs.started()
    child = await house.submit(replace(SPEC, parent=parent.id))
    await house.programs.started(2)
    await house.reaches(child.id, JobState.RUNNING)


async def test_a_more_urgent_job_overtakes_one_that_waits_for_memory(house: JobHouse) -> None:
    house.limits.places = 1
    house.kind.gate.clear()
    slow = await house.submit()
    house.memory.starved.add(slow.id)
    house.kind.gate.set()
    await house.until(slow.id, lambda job: job.waits_for == "memory")
    urgent = await house.submit(replace(SPEC, priority=1))

    assert (await house.programs.started()).order.job_id == urgent.id
    await house.reaches(urgent.id, JobState.RUNNING)
    await house.until(slow.id, lambda job: "a place" in job.waits_for)
    assert house.jobs.show(slow.id).state is JobState.QUEUED
    assert len(house.memory.held) == 1


async def test_jobs_that_wait_for_memory_take_no_place(house: JobHouse) -> None:
    house.kind.gate.clear()
    large = [await house.submit() for _ in range(2)]
    house.memory.starved |= {job.id for job in large}
    house.kind.gate.set()
    for job in large:
        await house.until(job.id, lambda job: job.waits_for == "memory")
    small = [await house.submit() for _ in range(2)]
    for job in small:
        await house.reaches(job.id, JobState.RUNNING)

    assert [house.jobs.show(job.id).state for job in large] == [JobState.QUEUED] * 2
    assert len(house.memory.held) == 2


async def test_pausing_waits_until_the_program_is_dead_and_its_memory_free(house: JobHouse) -> None:
    house.programs.obeys = False
    job = await house.submit()
    program = await house.programs.started()
    await house.reaches(job.id, JobState.RUNNING)

    asked = await house.jobs.pause(job.id, actor="key-1")
    assert (asked.state, asked.wish) == (JobState.RUNNING, Wish.PAUSE)
    await asyncio.wait_for(program.interrupted.wait(), 10)
    assert house.jobs.show(job.id).state is JobState.RUNNING
    program.tell(type="checkpoint", name="missing", step=4)
    program.end(STOPPED_STATUS)

    paused = await house.reaches(job.id, JobState.PAUSED)
    assert (paused.reason, paused.wish) == (Reason.REQUESTED, Wish.NONE)
    assert not house.memory.held
    assert (await house.jobs.pause(job.id, actor="key-1")).state is JobState.PAUSED
    await house.jobs.resume(job.id, actor="key-1")
    again = await house.programs.started(2)
    running = await house.reaches(job.id, JobState.RUNNING)
    assert (running.reason, running.attempt_count, again.order.attempt) == (Reason.RESUMED, 2, 2)


async def test_one_that_does_not_end_in_its_grace_is_killed_and_paused(house: JobHouse) -> None:
    house.programs.obeys, house.limits.grace_s = False, 0.0
    job = await house.submit()
    program = await house.programs.started()
    await house.reaches(job.id, JobState.RUNNING)
    await house.jobs.pause(job.id, actor="key-1")

    await house.reaches(job.id, JobState.PAUSED)
    assert (program.interrupts, program.status) == (1, -9)


async def test_a_pause_that_is_taken_back_goes_on(house: JobHouse) -> None:
    house.programs.obeys = False
    job = await house.submit()
    program = await house.programs.started()
    await house.reaches(job.id, JobState.RUNNING)
    await house.jobs.pause(job.id, actor="key-1")
    await asyncio.wait_for(program.interrupted.wait(), 10)
    await house.jobs.resume(job.id, actor="key-1")
    program.end(STOPPED_STATUS)

    await house.programs.started(2)
    running = await house.until(job.id, lambda job: job.attempt_count == 2)
    assert (running.state, running.fruitless) == (JobState.RUNNING, 0)


@pytest.mark.parametrize("moment", ["validating", "queued", "running", "paused"])
async def test_a_job_is_cancelled_at_every_state(house: JobHouse, moment: str) -> None:
    if moment == "validating":
        house.kind.gate.clear()
    if moment == "queued":
        house.memory.gate.clear()
    job = await house.submit()
    if moment == "paused":
        await house.reaches(job.id, JobState.RUNNING)
        await house.jobs.pause(job.id, actor="key-1")
    await house.reaches(job.id, JobState(moment))

    await house.jobs.cancel(job.id, actor="key-1")
    done = await house.jobs.wait(job.id)

    assert (done.state, done.reason) == (JobState.CANCELLED, Reason.REQUESTED)
    assert done.finished_at > 0
    assert not house.memory.held
    assert not house.programs.running()
    assert (await house.jobs.cancel(job.id, actor="key-1")).state is JobState.CANCELLED
    for refused in (house.jobs.pause, house.jobs.resume):
        with pytest.raises(Conflict, match="it is cancelled"):
            await refused(job.id, actor="key-1")
    house.kind.gate.set()
    house.memory.gate.set()
    assert house.jobs.show(job.id).state is JobState.CANCELLED


async def test_a_job_paused_before_it_ran_waits(house: JobHouse) -> None:
    house.kind.gate.clear()
    job = await house.submit()
    assert (await house.jobs.pause(job.id, actor="key-1")).state is JobState.VALIDATING
    house.kind.gate.set()
    await house.reaches(job.id, JobState.PAUSED)
    assert not house.programs.programs

    await house.jobs.resume(job.id, actor="key-1")
    await house.reaches(job.id, JobState.RUNNING)


async def test_one_whose_memory_is_needed_is_paused_and_comes_back(house: JobHouse) -> None:
    job = await house.submit()
    await house.programs.started()
    await house.reaches(job.id, JobState.RUNNING)
    house.memory.gate.clear()
    house.memory.evict_in_s = 5.0

    paused = await house.reaches(job.id, JobState.PAUSED)
    assert (paused.reason, paused.attempts[-1].outcome) == (Reason.PREEMPTED, "preempted")
    assert not house.memory.held
    house.memory.evict_in_s = None
    house.memory.gate.set()
    assert (await house.until(job.id, lambda job: job.attempt_count == 2)).state is JobState.RUNNING


async def test_one_whose_lease_is_over_is_killed_at_once(house: JobHouse) -> None:
    house.programs.obeys = False
    job = await house.submit()
    program = await house.programs.started()
    running = await house.reaches(job.id, JobState.RUNNING)
    assert running.attempt is not None
    house.memory.over[running.attempt.lease_id] = {"reason": "Expired", "quarantined": False}

    await house.until(job.id, lambda job: job.attempt_count == 2)
    assert (program.status, program.interrupts) == (-9, 0)
    assert house.jobs.show(job.id).attempts[0].outcome == "preempted"


async def test_one_whose_memory_nobody_else_can_have_yet_may_save_when_its_lease_is_over(house: JobHouse) -> None:
    job = await house.submit()
    program = await house.programs.started()
    running = await house.reaches(job.id, JobState.RUNNING)
    assert running.attempt is not None
    house.memory.over[running.attempt.lease_id] = {"reason": "Expired", "quarantined": True}

    await house.until(job.id, lambda job: job.attempt_count == 2)
    assert (program.status, program.interrupts) == (STOPPED_STATUS, 1)
    assert house.jobs.show(job.id).attempts[0].outcome == "preempted"


async def test_one_whose_program_is_gone_is_started_again_and_not_for_ever(house: JobHouse) -> None:
    house.limits.attempts = 2
    job = await house.submit()
    first = await house.programs.started()
    first.tell(type="metrics", step=5, metrics={})
    first.vanish()
    second = await house.programs.started(2)
    again = await house.until(job.id, lambda job: job.attempt_count == 2)
    assert (again.fruitless, again.attempts[0].outcome, again.attempts[0].last_step) == (0, "gone", 5)

    second.tell(type="metrics", step=5, metrics={})
    second.end(-9)
    third = await house.programs.started(3)
    assert house.jobs.show(job.id).fruitless == 1
    third.vanish()

    done = await house.jobs.wait(job.id)
    assert (done.state, done.reason, done.fruitless) == (JobState.FAILED, Reason.ATTEMPTS_USED_UP, 2)
    assert "2 times in a row" in done.message


async def test_one_that_fails_says_why(house: JobHouse) -> None:
    job = await house.submit()
    program = await house.programs.started()
    program.log = "Traceback\nValueError: no such layer\n"
    program.end(1)
    done = await house.jobs.wait(job.id)

    assert (done.state, done.reason) == (JobState.FAILED, Reason.PROGRAM_FAILED)
    assert done.message == "its program ended with status 1: Traceback | ValueError: no such layer"


async def test_one_that_ran_out_of_memory_asks_for_more_the_next_time(house: JobHouse) -> None:
    job = await house.submit(replace(SPEC, memory_bytes=1000))
    program = await house.programs.started()
    program.tell(type="error", reason="OutOfMemory", message="CUDA out of memory")
    program.end(1)
    done = await house.jobs.wait(job.id)

    assert (done.reason, done.message) == (Reason.OUT_OF_MEMORY, "CUDA out of memory")
    assert house.memory.learned == [1250]


async def test_what_a_training_takes_to_make_its_base_is_not_learned(house: JobHouse) -> None:
    house.programs.resident_bytes = 99_000
    job = await house.submit(replace(SPEC, type=JobType.SUPERVISED, model="m"))
    program = await house.programs.started()
    async with asyncio.timeout(10):
        while program.claims < 2:  # noqa: ASYNC110 - it was measured at the first
            await asyncio.sleep(0.001)
    house.programs.resident_bytes = 88_000
    program.tell(type="metrics", step=1, metrics={"memory_bytes": 77_000})
    await house.until(job.id, lambda now: now.progress.step == 1)
    program.end(0)
    await house.jobs.wait(job.id)
    assert house.memory.learned in ([77_000], [88_000])


async def test_what_its_program_saw_itself_take_at_most_is_learned(house: JobHouse) -> None:
    job = await house.submit()
    program = await house.programs.started()
    program.tell(type="metrics", step=1, metrics={"memory_bytes": 77_000})
    program.tell(type="result")
    program.end(0)
    await house.jobs.wait(job.id)
    assert house.memory.learned == [77_000]


async def test_memory_that_is_too_little_is_given_and_told_of_once(house: JobHouse) -> None:
    job = await house.submit(replace(SPEC, memory_bytes=1))
    (await house.programs.started()).end(75)
    program = await house.programs.started()
    program.tell(type="result")
    program.end(0)
    await house.jobs.wait(job.id)
    events = await house.jobs.events(job.id)
    assert [event.level for event in events if event.message == "too little"] == ["warn"]


async def test_a_result_that_cannot_be_kept_fails_the_job(house: JobHouse) -> None:
    house.kind.flaw = OSError(errno.ENOSPC, "No space left on device")
    job = await house.submit()
    (await house.programs.started()).end(0)

    assert (await house.jobs.wait(job.id)).reason is Reason.DISK_FULL


async def test_a_program_that_cannot_be_started_is_tried_again(house: JobHouse) -> None:
    house.limits.attempts = 2
    house.programs.error = Unavailable("no room for a process")
    job = await house.submit()
    done = await house.jobs.wait(job.id)

    assert (done.reason, done.attempt_count) == (Reason.ATTEMPTS_USED_UP, 2)
    assert "no room for a process" in done.message
    assert not house.memory.held


async def test_a_disk_without_room_for_a_program_fails_the_job_by_name(house: JobHouse) -> None:
    house.programs.error = OSError(errno.ENOSPC, "No space left on device")
    job = await house.submit()
    done = await house.jobs.wait(job.id)

    assert (done.reason, done.attempt_count) == (Reason.DISK_FULL, 1)
    assert not house.memory.held


async def test_over_the_quota_what_grew_most_ends_and_others_go_on_or_wait(house: JobHouse) -> None:
    greedy, modest = await house.submit(replace(SPEC, type=JobType.SUPERVISED)), await house.submit()
    first = await house.programs.started(2)
    for job in (greedy, modest):
        await house.reaches(job.id, JobState.RUNNING)
    checkpoint = house.folder / greedy.id / "checkpoints" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "big").write_bytes(b"x" * 65_536)
    (house.folder / modest.id / "small").write_bytes(b"x" * 4096)
    house.disk.adjust(limit_bytes=32_768)

    done = await house.jobs.wait(greedy.id)
    assert (done.state, done.reason) == (JobState.FAILED, Reason.DISK_FULL)
    late = await house.submit()
    waits = await house.until(late.id, lambda job: "learning.disk_quota" in job.waits_for)
    assert (waits.state, house.jobs.show(modest.id).state) == (JobState.QUEUED, JobState.RUNNING)
    assert first.interrupts + house.programs.programs[0].interrupts == 1
    assert checkpoint.exists(), "they are all that is left of it"

    await house.jobs.remove(greedy.id, actor="key-1")
    await house.reaches(late.id, JobState.RUNNING)


async def test_a_training_that_is_done_leaves_no_checkpoints(house: JobHouse) -> None:
    job = await house.submit(replace(SPEC, type=JobType.SUPERVISED))
    program = await house.programs.started()
    checkpoints = house.folder / job.id / "checkpoints"
    checkpoints.mkdir(parents=True)
    program.end(0)
    await house.jobs.wait(job.id)

    async with asyncio.timeout(10):
        while checkpoints.exists():  # noqa: ASYNC110 - only the disk can tell
            await asyncio.sleep(0.01)


async def test_a_job_whose_folder_cannot_be_made_fails(house: JobHouse) -> None:
    house.folder.rmdir()
    house.folder.write_text("in the way")

    done = await house.jobs.wait((await house.submit()).id)
    assert (done.state, done.reason) == (JobState.FAILED, Reason.PROGRAM_FAILED)


async def test_a_chatty_program_makes_few_events_and_ends_right(house: JobHouse) -> None:
    job = await house.submit()
    program = await house.programs.started()
    for step in range(20_000):
        program.tell(type="metrics", step=step, metrics={"train_loss": 1.0})
    program.tell(type="checkpoint", name="missing", step=20_000)
    program.end(0, metrics={"train_loss": 0.5})

    done = await house.jobs.wait(job.id)
    assert (done.state, done.progress.step) == (JobState.SUCCEEDED, 19_999)
    assert done.outcome is not None
    assert done.outcome.metrics == {"train_loss": 0.5}
    told = await house.messages(job.id)
    assert len(told) < 1000
    assert "Checkpoint missing was saved" in told
    assert len([message for message in told if "left out" in message]) == 1


async def test_a_submission_whose_asker_leaves_is_known_and_found_by_its_key(house: JobHouse) -> None:
    task = asyncio.create_task(house.submit(key="once"))
    while not await house.store.list("job_keys/"):  # noqa: ASYNC110 - at that very moment, before it is known
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    (job,) = house.jobs.all()
    assert (await house.submit(key="once")).id == job.id
    await house.reaches(job.id, JobState.RUNNING)
