"""Looking after one attempt: what its program tells, the memory it has, what is asked of it, and how it ends."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import structlog

from moc.kernel.clock import Clock
from moc.kernel.errors import Conflict, MocError, NotFound, NotLeader, StoreUnavailable, Unavailable
from moc.learning.conclusion import Conclusion, conclude, failure_of
from moc.learning.disk import DiskQuota
from moc.learning.job import TRAINING, Attempt, Job, JobState, JobType, Outcome, Reason, Wish
from moc.learning.job_book import JobBook, Tale, Told
from moc.learning.ports import (
    EXPIRED,
    PROCESS_GONE,
    ClusterSeat,
    Ending,
    Holding,
    Kind,
    Memory,
    Prepared,
    Programs,
    Started,
    Visitors,
)
from moc.learning.rescuer import HEARTBEAT_S
from moc.learning.starvation import Starvation
from moc.learning.told import EVENTS_BURST, EVENTS_PER_S, take_up

R = TypeVar("R")

log = structlog.get_logger(__name__)

LOOK_S = 0.5
MEASURED_LOOKS = 10
"""Every how many looks memory and disk are measured, which takes longer than the rest."""

RETRY_S = 1.0
NOBODY = Started(0, 0.0)
"""The process of an attempt that never had one."""

OUT_OF_MEMORY_FACTOR = 1.25
"""How much more than it was given a job needs at least that ran out of memory."""

CHECKPOINTS = "checkpoints"
_HOST = "host"


@dataclass(slots=True, kw_only=True)
class Limits:
    """What is allowed: jobs at once, attempts without a step forward, seconds to end when asked.

    `live` jobs may wait or run, and `kept` that have ended are kept, with their folders.
    """

    places: int
    attempts: int
    grace_s: float
    live: int = 1_000
    kept: int = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """All that running a job takes. `folder` holds those of the jobs; `host` is the name of this one."""

    book: JobBook
    seat: ClusterSeat
    clock: Clock
    host: str
    folder: Path
    kinds: Mapping[JobType, Kind]
    programs: Programs
    memory: Memory
    visitors: Visitors
    disk: DiskQuota
    limits: Limits
    look_s: float


async def insist(what: Callable[[], Awaitable[R]]) -> R:
    """What it comes to, tried again and again while the store or another part is not there."""
    while True:
        try:
            return await what()
        except (StoreUnavailable, Unavailable) as error:
            log.warning("a job waits for another part", error=error.message)
            await asyncio.sleep(RETRY_S)


class Watch:
    """Looks after the running attempt of a job, whoever started it.

    `prepared` and `base` are known to who started it. `failure` is why it could not be started.
    """

    def __init__(
        self,
        means: Means,
        job: Job,
        process: Started,
        holding: Holding,
        *,
        prepared: Prepared | None = None,
        failure: Exception | None = None,
    ) -> None:
        if job.attempt is None:
            raise ValueError(f"job {job.id} has no attempt that runs")
        self.process = process
        self._means = means
        self._id = job.id
        self._holding = holding
        self._prepared = prepared
        self._failure = failure
        self._job_folder = means.folder / job.id
        self._folder = attempt_folder(self._job_folder, job.attempt.number)
        self._poked = asyncio.Event()
        self._asked: Reason | None = None
        self._kill_at = float("inf")
        self._beat_at = float("-inf")
        self._looks = 0
        self._peak_bytes = 0
        self._starvation = Starvation()
        self._events_left = float(EVENTS_BURST)
        self._told_at = means.clock.monotonic()

    async def run(self) -> None:
        """Until the attempt is over, and the job ended or ready for another. Cancelled it leaves the program alone."""
        ending = Ending(None)
        if self._failure is None:
            ending = await self._until_ended()
        await self._settle(ending)

    @property
    def ends(self) -> bool:
        """Whether the program was asked to end."""
        return self._asked is not None

    def poke(self) -> None:
        """Something was asked of the job: see to it now."""
        self._poked.set()

    async def ask_to_end(self, reason: Reason, within_s: float | None = None) -> None:
        """Have the program save and end within the grace, or be killed; what it was asked for first counts."""
        grace_s = self._means.limits.grace_s
        within_s = grace_s if within_s is None else min(grace_s, max(0.0, within_s))
        self._kill_at = min(self._kill_at, self._means.clock.monotonic() + within_s)
        if self._asked is None:
            self._asked = reason
            await self._means.programs.interrupt(self._folder, self.process)

    # while it runs

    async def _until_ended(self) -> Ending:
        ending: Ending | None = None
        while True:
            with self._patience():
                ending = ending or await self._see_end()  # once seen: what it met may be over at the next look
                if ending is None:
                    await self._tend()
            with self._patience():
                while await self._take_up() and ending is not None:
                    pass
                if ending is not None:
                    return ending
            await self._pause()

    async def _see_end(self) -> Ending | None:
        ending = await self._means.programs.look(self._folder, self.process)
        if ending is not None:
            return replace(ending, starved=self._starvation.struck())
        self._starvation.lives()
        return None

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """What another part keeps from being done now is done at the next look."""
        try:
            yield
        except (StoreUnavailable, Unavailable) as error:
            log.warning("a job is looked after again in a moment", job=self._id, error=error.message)

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._means.look_s):
                await self._poked.wait()
        self._poked.clear()

    async def _take_up(self) -> bool:
        """Write down what the program told since, and that it lives; whether it told anything."""
        attempt = self._attempt()
        news = await self._means.programs.news(self._folder, attempt.read_bytes)
        now = self._means.clock.monotonic()
        beats = now - self._beat_at >= HEARTBEAT_S
        told = news.read_bytes != attempt.read_bytes
        if not (told or beats or attempt.pid != self.process.pid):
            return False
        self._events_left = min(EVENTS_BURST, self._events_left + EVENTS_PER_S * (now - self._told_at))
        self._told_at, events_max = now, max(1, int(self._events_left))
        wall, checkpoints = self._means.clock.wall(), self._job_folder / CHECKPOINTS

        def change(job: Job) -> Told:
            seen = replace(
                job.attempts[-1],
                pid=self.process.pid,
                process_started_at=self.process.process_started_at,
                heartbeat_at=wall,
                read_bytes=news.read_bytes,
            )
            job = replace(job, attempts=(*job.attempts[:-1], seen))
            return take_up(
                job, news.lines, now=wall, exists=lambda name: _is_there(checkpoints, name), events_max=events_max
            )

        def skip(job: Job) -> Told:
            attempt = replace(job.attempts[-1], read_bytes=news.read_bytes)
            tale = Tale(message="told what cannot be taken up; it is left out", level="warn")
            return Told(replace(job, attempts=(*job.attempts[:-1], attempt)), (tale,))

        before = self._means.book.get(self._id).event_count
        try:
            after = await self._means.book.change(self._id, change)
        except MocError:
            raise
        except Exception as error:  # whatever it is must not end the looking after the program
            log.error("what a program told cannot be taken up", job=self._id, exc_info=error)
            after = await self._means.book.change(self._id, skip)
        self._events_left = max(0.0, self._events_left - (after.event_count - before))
        self._beat_at = now
        return told

    async def _tend(self) -> None:
        """Say that the program is wanted, which asks nothing of the store, and see to what is asked of it."""
        await self._means.programs.claim(self._folder)
        if self._looks % MEASURED_LOOKS == 0:
            await self._measure()
        self._looks += 1
        with self._patience():
            await self._keep_memory()
        job = self._means.book.get(self._id)
        if job.wish is not Wish.NONE:
            await self.ask_to_end(Reason.REQUESTED)
        if self._means.clock.monotonic() >= self._kill_at:
            await self._means.programs.kill(self._folder, self.process)

    async def _measure(self) -> None:
        job = self._means.book.get(self._id)
        size = job.progress.memory_bytes
        if self._holding.device == _HOST and (job.progress.step or job.spec.type not in TRAINING):
            # before its first step a training may take more, to make its base, which is kept for the next
            size = await asyncio.to_thread(self._means.programs.memory_bytes, self.process)
        self._peak_bytes = max(self._peak_bytes, size)
        if await asyncio.to_thread(self._means.disk.culprit) == self._job_folder:
            await self.ask_to_end(Reason.DISK_FULL)

    async def _keep_memory(self) -> None:
        try:
            self._holding = await self._means.memory.renew(self._holding, self.process.pid)
        except (Conflict, NotFound) as error:
            await self._without_memory(error.details)
            return
        if self._holding.evict_in_s is not None:
            await self.ask_to_end(Reason.PREEMPTED, self._holding.evict_in_s)

    async def _without_memory(self, over: Mapping[str, Any]) -> None:
        """Its lease is `over`, as after this coordinator was stopped for long; see `Memory.renew`."""
        if over.get("reason") == EXPIRED and over.get("quarantined"):
            await self.ask_to_end(Reason.PREEMPTED)
            return
        if over.get("reason") != PROCESS_GONE:  # that is how it ended, which the next look tells
            self._asked = self._asked or Reason.PREEMPTED
        await self._means.programs.kill(self._folder, self.process)

    # when it has ended

    async def _settle(self, ending: Ending) -> None:
        """Give back what it had, and write down what becomes of the job."""
        means, job = self._means, self._means.book.get(self._id)
        await insist(lambda: means.memory.release(self._holding))
        await insist(lambda: means.visitors.dismiss(job))
        known, outcome = None if self._failure is None else failure_of(self._failure), None
        if isinstance(self._failure, (StoreUnavailable, Unavailable)):
            known, ending = None, Ending(None, log=self._failure.message)
        if known is None and self._conclusion(job, ending).state is JobState.SUCCEEDED:
            known, outcome = await self._finish(job, self._conclusion(job, ending))
        await self._learn(job, known or self._conclusion(job, ending))
        now = means.clock.wall()

        def change(job: Job) -> Job:
            return closed(job, known or self._conclusion(job, ending), outcome, now)

        await insist(lambda: means.book.change(self._id, change))

    def _conclusion(self, job: Job, ending: Ending) -> Conclusion:
        return conclude(job, ending, asked=self._asked, attempts_max=self._means.limits.attempts)

    async def _finish(self, job: Job, done: Conclusion) -> tuple[Conclusion, Outcome | None]:
        """Make what the job came to durable; how it ended if that cannot be."""
        kind = self._means.kinds[job.spec.type]

        async def finish() -> Outcome:
            if self._prepared is None:
                self._prepared = await kind.prepare(job, self._job_folder)
            return await kind.finish(job, self._prepared, job.attempts[-1].told, self._job_folder)

        try:
            outcome = await insist(finish)
        except NotLeader:
            raise
        except Exception as error:
            report(job, error)
            return failure_of(error), None
        return replace(done, message=f"it made {outcome.model}" if outcome.model else ""), outcome

    async def _learn(self, job: Job, conclusion: Conclusion) -> None:
        """Let the next estimate be better by what was seen of this one."""
        peak_bytes = max(self._peak_bytes, job.progress.memory_bytes)
        if conclusion.outgrown:
            peak_bytes = max(peak_bytes, int(self._holding.bytes * OUT_OF_MEMORY_FACTOR))
        if peak_bytes:
            learn, device = self._means.memory.learn, self._holding.device
            await insist(lambda: learn(job, self._prepared, device=device, peak_bytes=peak_bytes))

    def _attempt(self) -> Attempt:
        return self._means.book.get(self._id).attempts[-1]


def attempt_folder(job_folder: Path, number: int) -> Path:
    """Where an attempt's task, log and progress are."""
    return job_folder / "attempts" / str(number)


def _is_there(folder: Path, name: str) -> bool:
    if name in {"", ".", ".."} or "/" in name:
        return False
    try:
        return (folder / name).exists()
    except (OSError, ValueError):  # too long a name, a folder that may not be read, "\0"
        return False


def closed(job: Job, conclusion: Conclusion, outcome: Outcome | None, now: float) -> Job:
    """The job once its attempt is over."""
    attempt = replace(job.attempts[-1], ended_at=now, outcome=conclusion.outcome, message=conclusion.message, told={})
    job = replace(
        job,
        state=conclusion.state,
        reason=conclusion.reason,
        message=conclusion.message,
        wish=Wish.NONE,
        wish_reason=Reason.REQUESTED,
        attempts=(*job.attempts[:-1], attempt),
        fruitless=conclusion.fruitless,
        outcome=outcome,
    )
    return replace(job, finished_at=now) if job.ended else replace(job, queued_at=now)


def report(job: Job, error: Exception) -> None:
    """Log what ended a job if it is a fault of the coordinator: its owner can do nothing about it."""
    if not isinstance(error, (MocError, OSError)):
        log.error("a job could not be run", job=job.id, exc_info=error)
