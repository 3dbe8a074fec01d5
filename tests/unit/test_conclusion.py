"""What the end of a program means for its job, and what is done with jobs that are found."""

import errno
from dataclasses import replace

import pytest

from moc.kernel.errors import InvalidRequest, NoCapacity
from moc.learning.conclusion import conclude, failure_of, how_it_ended, went_on
from moc.learning.job import Attempt, Checkpoint, Job, JobState, Reason, Wish
from moc.learning.ports import Ending
from moc.learning.rescuer import SILENCE_S, Rescue, rescue
from moc.learning.starvation import LOOKS_KEPT, Starvation
from tests.unit.test_told import JOB

PAUSE = replace(JOB, wish=Wish.PAUSE, wish_reason=Reason.PARENT)
CANCEL = replace(JOB, wish=Wish.CANCEL, wish_reason=Reason.PRUNED)
TOLD = replace(JOB, attempts=(replace(JOB.attempts[0], told={"type": "error", "reason": "Invalid", "message": "bad"}),))


@pytest.mark.parametrize(
    ("job", "status", "asked", "state", "reason"),
    [
        (JOB, 0, None, JobState.SUCCEEDED, Reason.DONE),
        (PAUSE, 0, Reason.REQUESTED, JobState.SUCCEEDED, Reason.DONE),
        (CANCEL, 0, Reason.REQUESTED, JobState.CANCELLED, Reason.PRUNED),
        (CANCEL, 1, Reason.REQUESTED, JobState.CANCELLED, Reason.PRUNED),
        (CANCEL, None, None, JobState.CANCELLED, Reason.PRUNED),
        (PAUSE, 75, Reason.REQUESTED, JobState.PAUSED, Reason.PARENT),
        (PAUSE, -9, Reason.REQUESTED, JobState.PAUSED, Reason.PARENT),
        (PAUSE, 143, Reason.REQUESTED, JobState.PAUSED, Reason.PARENT),
        (PAUSE, None, None, JobState.PAUSED, Reason.PARENT),
        (PAUSE, 75, Reason.PREEMPTED, JobState.PAUSED, Reason.PARENT),
        (JOB, 75, Reason.PREEMPTED, JobState.PAUSED, Reason.PREEMPTED),
        (JOB, 75, Reason.REQUESTED, JobState.QUEUED, Reason.RESUMED),
        (JOB, 75, Reason.RUNNER_GONE, JobState.QUEUED, Reason.RUNNER_GONE),
        (JOB, -9, Reason.DISK_FULL, JobState.FAILED, Reason.DISK_FULL),
        (JOB, 75, None, JobState.QUEUED, Reason.RUNNER_GONE),
        (JOB, None, None, JobState.QUEUED, Reason.RUNNER_GONE),
        (JOB, -9, None, JobState.QUEUED, Reason.RUNNER_GONE),
        (JOB, 1, None, JobState.FAILED, Reason.PROGRAM_FAILED),
        (JOB, 1, Reason.PREEMPTED, JobState.FAILED, Reason.PROGRAM_FAILED),
        (JOB, -11, None, JobState.FAILED, Reason.PROGRAM_FAILED),
        (TOLD, 1, None, JobState.FAILED, Reason.INVALID),
        (TOLD, -9, None, JobState.FAILED, Reason.INVALID),
        (TOLD, 0, None, JobState.SUCCEEDED, Reason.DONE),
        (TOLD, 75, Reason.PREEMPTED, JobState.PAUSED, Reason.PREEMPTED),
    ],
)
def test_every_end_has_its_meaning(
    job: Job, status: int | None, asked: Reason | None, state: JobState, reason: Reason
) -> None:
    found = conclude(job, Ending(status), asked=asked, attempts_max=3)

    assert (found.state, found.reason) == (state, reason)
    assert found.outcome
    assert found.fruitless == (1 if found.outcome == "gone" else 0)


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("OSError: [Errno 28] No space left on device", Reason.DISK_FULL),
        ("torch.OutOfMemoryError: CUDA out of memory.", Reason.OUT_OF_MEMORY),
        ("Traceback\nMemoryError", Reason.OUT_OF_MEMORY),
        ("ValueError: remembered MemoryError", Reason.PROGRAM_FAILED),
        ("", Reason.PROGRAM_FAILED),
    ],
)
def test_the_log_tells_what_the_program_did_not(log: str, reason: Reason) -> None:
    found = conclude(JOB, Ending(1, log), asked=None, attempts_max=3)

    assert found.reason is reason
    assert found.message.startswith("its program ended with status 1")
    assert (log.splitlines() or [""])[-1] in found.message


def test_one_that_the_system_killed_for_want_of_memory_ran_out_of_it() -> None:
    assert conclude(JOB, Ending(-9, starved=True), asked=None, attempts_max=3).reason is Reason.OUT_OF_MEMORY
    assert conclude(JOB, Ending(1, starved=True), asked=None, attempts_max=3).reason is Reason.PROGRAM_FAILED
    assert not conclude(JOB, Ending(-9, starved=True), asked=None, attempts_max=3).outgrown, "perhaps others did"
    asked = conclude(JOB, Ending(-9, starved=True), asked=Reason.PREEMPTED, attempts_max=3)
    assert asked.reason is Reason.PREEMPTED


def test_a_kill_of_long_ago_is_not_why_a_program_was_killed() -> None:
    count = 3
    starvation = Starvation(lambda: count)
    assert not starvation.struck()
    starvation.lives()
    count = 4  # it takes some looks until the one that was killed is seen dead
    for _ in range(LOOKS_KEPT - 1):
        starvation.lives()
        assert starvation.struck()
    starvation.lives()
    assert not starvation.struck()
    count = 5
    assert starvation.struck()


def test_a_disk_that_was_full_before_anybody_could_see_how_it_ended_is_named() -> None:
    log = "Traceback\nOSError: [Errno 28] No space left on device: 'exit.json.new'\n"
    assert conclude(JOB, Ending(None, log), asked=None, attempts_max=3).reason is Reason.DISK_FULL
    assert conclude(JOB, Ending(-9, log), asked=None, attempts_max=3).state is JobState.QUEUED
    long_ago = Ending(None, log + "one\ntwo\nthree\n")
    assert conclude(JOB, long_ago, asked=None, attempts_max=3).state is JobState.QUEUED


def test_a_disk_without_room_is_named_where_the_program_could_not() -> None:
    found = conclude(JOB, Ending(1, disk_full=True), asked=None, attempts_max=3)
    assert (found.reason, found.message) == (
        Reason.DISK_FULL,
        "its program ended with status 1, with no room left on its disk",
    )
    told = conclude(JOB, Ending(1, "CUDA error: out of memory", disk_full=True), asked=None, attempts_max=3)
    assert told.reason is Reason.OUT_OF_MEMORY


def test_attempts_are_used_up_only_by_those_that_come_no_further() -> None:
    tired = replace(JOB, fruitless=2)
    assert conclude(tired, Ending(None), asked=None, attempts_max=3).reason is Reason.ATTEMPTS_USED_UP
    assert conclude(tired, Ending(75), asked=Reason.PREEMPTED, attempts_max=3).fruitless == 2

    first = Attempt(number=1, host="here", started_at=1.0, last_step=5, outcome="gone")
    second = replace(JOB.attempts[0], number=2, started_at=2.0, first_step=3, last_step=5)
    same = replace(tired, attempts=(first, second))
    assert not went_on(same)
    assert went_on(replace(same, attempts=(first, replace(second, last_step=6))))
    saved = Checkpoint(id="c", name="c", step=4, created_at=3.0)
    assert went_on(replace(same, checkpoints=(saved,)))
    assert not went_on(replace(same, checkpoints=(replace(saved, created_at=1.5),)))


def test_what_cannot_begin_or_be_finished_fails_clearly() -> None:
    full = NoCapacity("too much", details={"reason": "DiskFull"})
    reasons = [
        failure_of(error).reason
        for error in (
            OSError(errno.ENOSPC, "No space left on device"),
            OSError(errno.EACCES, "Permission denied"),
            NoCapacity("never"),
            full,
            InvalidRequest("line 3"),
            ValueError("a fault"),
        )
    ]
    assert reasons == [
        Reason.DISK_FULL,
        Reason.PROGRAM_FAILED,
        Reason.NO_CAPACITY,
        Reason.DISK_FULL,
        Reason.INVALID,
        Reason.PROGRAM_FAILED,
    ]


def test_ends_are_told_in_words() -> None:
    assert [how_it_ended(status) for status in (None, 3, -9, 143, 200)] == [
        "is gone",
        "ended with status 3",
        "was killed by SIGKILL",
        "was killed by SIGTERM",
        "ended with status 200",
    ]


@pytest.mark.parametrize(
    ("state", "host", "silent_s", "expected"),
    [
        (JobState.VALIDATING, None, 0, Rescue.VALIDATE),
        (JobState.QUEUED, None, 0, Rescue.LEAVE),
        (JobState.PAUSED, None, 0, Rescue.LEAVE),
        (JobState.RUNNING, "here", 0, Rescue.WATCH),
        (JobState.RUNNING, "here", 10 * SILENCE_S, Rescue.WATCH),
        (JobState.RUNNING, "there", SILENCE_S, Rescue.LEAVE),
        (JobState.RUNNING, "there", SILENCE_S + 1, Rescue.REQUEUE),
        (JobState.SUCCEEDED, None, 0, Rescue.LEAVE),
        (JobState.FAILED, None, 0, Rescue.LEAVE),
        (JobState.CANCELLED, None, 0, Rescue.LEAVE),
    ],
)
def test_a_job_that_is_found_is_taken_up_or_left(
    state: JobState, host: str | None, silent_s: float, expected: Rescue
) -> None:
    attempts = () if host is None else (Attempt(number=1, host=host, started_at=0.0, heartbeat_at=100.0),)
    job = replace(JOB, state=state, attempts=attempts)

    assert rescue(job, host="here", now=100.0 + silent_s) is expected
