"""What a coordinator that begins does with the jobs it finds. Pure decisions."""

from enum import StrEnum

from moc.learning.job import ENDED, Job, JobState

HEARTBEAT_S = 10.0
"""How often a runner writes down that the program of its job lives."""

SILENCE_S = 3 * HEARTBEAT_S
"""How long the runner of another host may be silent before its job is taken from it."""


class Rescue(StrEnum):
    """What is to be done: `watch` takes up an attempt of this host, whether its program lives or ended meanwhile;
    `requeue` gives up one of a host that is gone; `validate` begins anew; `leave` waits for its turn, for
    its owner, or for the runner of another host."""

    WATCH = "watch"
    REQUEUE = "requeue"
    VALIDATE = "validate"
    LEAVE = "leave"


def rescue(job: Job, *, host: str, now: float) -> Rescue:
    """What is to be done with a job that nobody here looks after, at the wall time `now`."""
    if job.state in ENDED:
        return Rescue.LEAVE
    if job.attempt is not None:
        if job.attempt.host == host:
            return Rescue.WATCH
        silent_s = now - max(job.attempt.heartbeat_at, job.attempt.started_at)
        return Rescue.REQUEUE if silent_s > SILENCE_S else Rescue.LEAVE
    return Rescue.VALIDATE if job.state is JobState.VALIDATING else Rescue.LEAVE
