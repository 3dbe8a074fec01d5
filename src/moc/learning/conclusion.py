"""What the end of a program means for its job. Pure decisions."""

import errno
import re
import signal
from dataclasses import dataclass, replace
from typing import Any

from moc.kernel.errors import MocError, NoCapacity
from moc.learning.job import Job, JobState, Reason, Wish
from moc.learning.ports import STOPPED_STATUS, Ending
from moc.learning.told import text

_SHELL_SIGNAL = 128
_ASKED_TO_END = frozenset({signal.SIGTERM, signal.SIGKILL})
_TELLABLE = frozenset({Reason.INVALID, Reason.OUT_OF_MEMORY, Reason.DISK_FULL, Reason.PROGRAM_FAILED})
_DISK_FULL = re.compile(r"no space left on device|disk quota exceeded|database or disk is full", re.IGNORECASE)
_OUT_OF_MEMORY = re.compile(
    r"out of memory|(failed to|cannot|can't) allocate|bad_alloc|^MemoryError", re.IGNORECASE | re.MULTILINE
)
_LOG_LINES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """What a job is now. It failed by its `reason`, or is done, or `goes_on`: paused or queued for another attempt.

    `outcome` is what its attempt came to, in a word. `outgrown`: the program itself said that its memory was too
    little, which is no guess from its log or from what the system did.
    """

    state: JobState
    reason: Reason
    message: str
    outcome: str
    fruitless: int = 0
    outgrown: bool = False


def conclude(job: Job, ending: Ending, *, asked: Reason | None, attempts_max: int) -> Conclusion:
    """What becomes of a job whose attempt ended.

    `asked` is why the program was asked to end before it was done: for its owner (`Requested`), for its memory
    (`Preempted`), because the disk is full or the coordinator ends; None if nobody did.
    """
    status, said = ending.status, job.attempts[-1].told
    if job.wish is Wish.CANCEL:
        message = "it was cancelled while it ran"
        return Conclusion(state=JobState.CANCELLED, reason=job.wish_reason, message=message, outcome="cancelled")
    if status == 0:
        return Conclusion(state=JobState.SUCCEEDED, reason=Reason.DONE, message="", outcome="succeeded")
    if said.get("type") == "error" and status != STOPPED_STATUS:
        failed = _failed(_reason_of(said, ending), text(said.get("message")) or how_it_ended(status))
        return replace(failed, outgrown=said.get("reason") == Reason.OUT_OF_MEMORY)
    stopped, killed = status == STOPPED_STATUS, status is None or _signal(status) in _ASKED_TO_END
    if asked is None and ending.starved and status is not None and _signal(status) is signal.SIGKILL:
        return _failed(Reason.OUT_OF_MEMORY, "the system had no memory left and killed its program; give it more")
    if (stopped or killed) and (asked is not None or job.wish is Wish.PAUSE):
        return _stopped(job, asked)
    if stopped or killed:
        return _gone(job, ending, attempts_max)
    where = ", with no room left on its disk" if ending.disk_full else ""
    return _failed(_reason_of(said, ending), f"its program {how_it_ended(status)}{where}{_last_lines(ending.log)}")


def failure_of(error: Exception) -> Conclusion:
    """What becomes of a job that cannot be begun or finished."""
    if isinstance(error, OSError):
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        return _failed(Reason.DISK_FULL if full else Reason.PROGRAM_FAILED, str(error))
    if isinstance(error, NoCapacity):
        full = error.details.get("reason") == Reason.DISK_FULL
        return _failed(Reason.DISK_FULL if full else Reason.NO_CAPACITY, error.message)
    if isinstance(error, MocError):
        return _failed(Reason.INVALID, error.message)
    return _failed(Reason.PROGRAM_FAILED, f"the coordinator failed: {type(error).__name__}: {error}"[:500])


def how_it_ended(status: int | None) -> str:
    """In words: `was killed by SIGKILL`, `ended with status 1`."""
    if status is None:
        return "is gone"
    number = _signal(status)
    return f"ended with status {status}" if number is None else f"was killed by {number.name}"


def went_on(job: Job) -> bool:
    """Whether the last attempt came further than all before it."""
    last, before = job.attempts[-1], job.attempts[:-1]
    furthest = max((each.last_step for each in before), default=0)
    saved = job.checkpoints[-1] if job.checkpoints else None
    return last.last_step > furthest or (
        saved is not None and saved.created_at >= last.started_at and saved.step > last.first_step
    )


def _stopped(job: Job, asked: Reason | None) -> Conclusion:
    if asked is Reason.DISK_FULL:
        return _failed(asked, "jobs and files take more of the disk than learning.disk_quota allows; remove some")
    state, reason, message, outcome = JobState.QUEUED, Reason.RUNNER_GONE, "the coordinator was stopped", "stopped"
    if job.wish is Wish.PAUSE:
        state, reason, message, outcome = JobState.PAUSED, job.wish_reason, "", "paused"
    elif asked is Reason.PREEMPTED:
        message = "its memory is needed for something more urgent; it goes on when there is enough again"
        state, reason, outcome = JobState.PAUSED, asked, "preempted"
    elif asked is Reason.REQUESTED:
        reason, message = Reason.RESUMED, ""
    return Conclusion(state=state, reason=reason, message=message, outcome=outcome, fruitless=job.fruitless)


def _gone(job: Job, ending: Ending, attempts_max: int) -> Conclusion:
    fruitless, status = 0 if went_on(job) else job.fruitless + 1, ending.status
    how = "asked to be started again" if status == STOPPED_STATUS else how_it_ended(status)
    last = _last_lines(ending.log)
    how = f"its program {how}{last}"
    if status is None and _DISK_FULL.search(last):
        return _failed(Reason.DISK_FULL, how)
    if fruitless < attempts_max:
        state, reason, message = JobState.QUEUED, Reason.RUNNER_GONE, f"{how}; it goes on from its last checkpoint"
    else:
        state, reason = JobState.FAILED, Reason.ATTEMPTS_USED_UP
        message = f"{how}; {fruitless} times in a row without a step forward"
    return Conclusion(state=state, reason=reason, message=message, outcome="gone", fruitless=fruitless)


def _failed(reason: Reason, message: str) -> Conclusion:
    return Conclusion(state=JobState.FAILED, reason=reason, message=message, outcome="failed")


def _reason_of(said: dict[str, Any], ending: Ending) -> Reason:
    told = said.get("reason") if said.get("type") == "error" else None
    reason = next((each for each in _TELLABLE if each == told), Reason.PROGRAM_FAILED)
    if reason is Reason.PROGRAM_FAILED:
        for pattern, better in ((_DISK_FULL, Reason.DISK_FULL), (_OUT_OF_MEMORY, Reason.OUT_OF_MEMORY)):
            if pattern.search(ending.log):
                return better
        if ending.disk_full:
            return Reason.DISK_FULL
    return reason


def _last_lines(log: str) -> str:
    filled = [line.strip() for line in log.splitlines() if line.strip()]
    return f": {' | '.join(filled[-_LOG_LINES:])[-500:]}" if filled else ""


def _signal(status: int) -> signal.Signals | None:
    """What killed it, as the system or a shell tells."""
    number = -status if status < 0 else status - _SHELL_SIGNAL
    try:
        return signal.Signals(number)
    except ValueError:
        return None
