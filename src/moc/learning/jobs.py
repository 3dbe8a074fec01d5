"""Jobs: accepted, given their turn, paused, resumed, cancelled, and told of."""

import asyncio
import contextlib
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from moc.kernel.clock import Clock
from moc.kernel.errors import Conflict, InvalidRequest, MocError, NotFound, QueueFull, Unavailable
from moc.kernel.ids import new_id
from moc.kernel.records import Store
from moc.kernel.tasks import Tasks
from moc.learning.disk import DiskQuota
from moc.learning.job import COORDINATING, TRAINING, Job, JobEvent, JobSpec, JobState, JobType, Reason, Wish
from moc.learning.job_book import JobBook, Submission, Tale, Told
from moc.learning.job_queue import Waiting, turns
from moc.learning.ports import ClusterSeat, Kind, Memory, Programs, Started, Visitors
from moc.learning.rescuer import Rescue, rescue
from moc.learning.runner import Runner, may_run, places_taken
from moc.learning.watch import CHECKPOINTS, LOOK_S, Limits, Means, attempt_folder
from moc.security.identity import Identity

log = structlog.get_logger(__name__)

KEY_MAX = 255
REST_MAX_S = 60.0
FAULT_REST_S = 10.0
SYSTEM = "system"
TICK_S = 1.0


class Jobs:
    """Every job. The records are the truth: whoever starts after a crash goes on from them.

    `folder` holds those of the jobs. `kinds` says what jobs there are. Programs are looked after every `look_s`.
    """

    def __init__(
        self,
        *,
        store: Store,
        seat: ClusterSeat,
        clock: Clock,
        host: str,
        folder: Path,
        kinds: Mapping[JobType, Kind],
        programs: Programs,
        memory: Memory,
        visitors: Visitors,
        disk: DiskQuota,
        limits: Limits,
        look_s: float = LOOK_S,
    ) -> None:
        self._seat = seat
        self._clock = clock
        self._host = host
        self._folder = folder
        self._kinds = kinds
        self._programs = programs
        self._limits = limits
        self._book = JobBook(store=store, seat=seat, clock=clock, on_moved=self._moved)
        self._runner = Runner(
            Means(
                book=self._book,
                seat=seat,
                clock=clock,
                host=host,
                folder=folder,
                kinds=kinds,
                programs=programs,
                memory=memory,
                visitors=visitors,
                disk=disk,
                limits=limits,
                look_s=look_s,
            ),
            on_idle=self._idle,
        )
        self._submitting = asyncio.Lock()
        self._woken = asyncio.Event()
        self._rests: dict[str, float] = {}
        self._tasks = Tasks(lambda error: log.error("the jobs' task failed", exc_info=error))
        self._dispatching: asyncio.Task[None] | None = None

    # life

    async def start(self) -> None:
        """Read them, and take up those that are not over: what runs, what ended meanwhile, what is to run."""
        if self._dispatching is None:
            await asyncio.to_thread(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True)
            await self._book.read()
            self._dispatching = self._tasks.spawn(self._dispatch())
            for job in self._book.all():
                if job.ended:
                    self._clear_up(job)

    async def drain(self) -> None:
        """Accept no more and start no more; what runs goes on."""
        dispatching, self._dispatching = self._dispatching, None
        if dispatching is not None:
            dispatching.cancel()
            await asyncio.gather(dispatching, return_exceptions=True)
        await self._runner.settle()

    async def stop(self) -> None:
        """Leave the programs that run to whoever starts next."""
        await self.drain()
        await self._tasks.cancel()
        await self._runner.stop()

    async def stop_programs(self) -> None:
        """After `drain`: have what runs save and end; its jobs wait for the next start."""
        await self._runner.end_programs()

    def adjust(self, limits: Limits) -> None:
        """Run by these limits from now on."""
        self._limits.places, self._limits.attempts = limits.places, limits.attempts
        self._limits.grace_s = limits.grace_s
        self._woken.set()

    def processes(self) -> list[Started]:
        """The programs that run now, but those that were asked to end."""
        return self._runner.processes()

    # what is known

    def all(self) -> Sequence[Job]:
        """Every job, oldest first."""
        return self._book.all()

    def show(self, job_id: str) -> Job:
        """One; NotFound when there is none."""
        return self._book.get(job_id)

    def count(self) -> dict[str, int]:
        """How many there are in each state."""
        counts = Counter(job.state for job in self._book.all())
        return {state: counts[state] for state in JobState}

    async def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> list[JobEvent]:
        """What happened to it, oldest first, from behind the event `after`."""
        return await self._book.events(job_id, after=after, limit=limit)

    def follow(self, job_id: str, *, after: int = 0) -> AsyncIterator[JobEvent]:
        """Its events behind `after`, then each new one; ends when the job has, and all is told."""
        return self._book.follow(job_id, after=after)

    async def logs(self, job_id: str, *, attempt: int | None = None, tail_bytes: int = 65_536) -> str:
        """The last that its program wrote, in its last attempt or in `attempt`; NotFound when that is not kept."""
        job = self._book.get(job_id)
        numbers = [each.number for each in job.attempts]
        if attempt is not None and attempt not in numbers:
            raise NotFound(f"job {job_id} has no attempt {attempt}; it has {', '.join(map(str, numbers)) or 'none'}")
        if not numbers:
            return ""
        folder = attempt_folder(self._folder / job_id, attempt or numbers[-1])
        return await asyncio.to_thread(self._programs.log, folder, tail_bytes=tail_bytes)

    async def wait(self, job_id: str, until: Callable[[Job], bool] = lambda job: job.ended) -> Job:
        """Wait until it has ended, or is otherwise as is wanted; NotFound once it is removed."""
        return await self._book.wait(job_id, until)

    def folder(self, job_id: str) -> Path:
        """Where its attempts, checkpoints and output are."""
        return self._folder / self._book.get(job_id).id

    # what is asked

    async def submit(
        self,
        spec: JobSpec,
        *,
        actor: Identity,
        idempotency_key: str = "",
        authorise: Callable[[JobSpec], None] = lambda spec: None,
    ) -> Job:
        """Accept a job; what the same actor asked with the same `idempotency_key` before is given again.

        With a parent it is what was asked for that one: its program has another key for each attempt.
        Conflict when that was something else, or the parent is over. InvalidRequest, NotFound: see `Kind.check`.
        QueueFull when too many wait. `authorise` raises for what the actor may not ask, with every default filled in.
        """
        check_key(idempotency_key)
        async with self._submitting:
            job_id = new_id("job")
            submission = Submission.of(job_id, spec)
            asker = spec.parent or actor.key_id
            if idempotency_key and (known := await self._book.submission(asker, idempotency_key)) is not None:
                if known.digest != submission.digest:
                    raise Conflict(f"the idempotency key was used for {known.job} already, with another request")
                return await self._book.recall(known.job)
            spec.check()
            if spec.type not in self._kinds:
                raise InvalidRequest(f"there are no jobs of the type {spec.type} here")
            self._parent(spec)
            spec = await self._kinds[spec.type].check(spec)
            authorise(spec)
            await self._make_room()
            parent = self._parent(spec)  # it may have ended meanwhile
            now, waits = self._clock.wall(), parent is not None and _pauses(parent)
            job = Job(
                id=job_id,
                spec=spec,
                state=JobState.VALIDATING,
                reason=Reason.SUBMITTED,
                created_at=now,
                created_by=actor.key_id,
                created_by_name=actor.name,
                changed_at=now,
                wish=Wish.PAUSE if waits else Wish.NONE,
                wish_reason=Reason.PARENT if waits else Reason.REQUESTED,
                idempotency_key=idempotency_key,
            )
            return await self._book.add(job, submission)

    def _parent(self, spec: JobSpec) -> Job | None:
        """The job it belongs to, if it does to any."""
        if not spec.parent:
            return None
        parent = self._book.get(spec.parent)
        if parent.ended or parent.wish is Wish.CANCEL:
            raise Conflict(f"job {parent.id} is over; nothing more can belong to it")
        return parent

    async def _make_room(self) -> None:
        if self._dispatching is None:
            raise Unavailable("the coordinator is stopping; ask again shortly")
        live = {job.id for job in self._book.all() if not job.ended}
        ended = [job for job in self._book.all() if job.ended]
        if len(live) >= self._limits.live:
            raise QueueFull(f"{self._limits.live} jobs wait or run already; ask again when some have ended")
        spare = [job for job in ended if job.spec.parent not in live]  # a search reads what its trials came to
        for job in spare[: max(0, len(ended) + 1 - self._limits.kept)]:
            with contextlib.suppress(NotFound):
                await self._remove(job, SYSTEM)

    async def pause(self, job_id: str, *, actor: str, reason: Reason = Reason.REQUESTED) -> Job:
        """Have it save a checkpoint and stay paused until it is resumed; its children too.

        No error when it is, or was asked to already. Conflict when it has ended or is being cancelled.
        """
        job = await self._ask(job_id, lambda job: _paused(job, reason), actor)
        for child in self._children(job_id):
            with contextlib.suppress(Conflict, NotFound):  # it has ended, or will
                await self.pause(child.id, actor=actor, reason=Reason.PARENT)
        return job

    async def resume(self, job_id: str, *, actor: str, reason: Reason = Reason.REQUESTED) -> Job:
        """Have it go on, and those of its children that were paused with it; no error when it does already.

        Conflict when it has ended or is being cancelled.
        """
        now = self._clock.wall()
        job = await self._ask(job_id, lambda job: _resumed(job, now), actor)
        for child in self._children(job_id):
            pauses = child.reason if child.state is JobState.PAUSED else child.wish_reason
            if _pauses(child) and pauses is Reason.PARENT:
                with contextlib.suppress(Conflict, NotFound):
                    await self.resume(child.id, actor=actor, reason=Reason.PARENT)
        return job

    async def cancel(self, job_id: str, *, actor: str, reason: Reason = Reason.REQUESTED) -> Job:
        """End it and its children; at once where no program runs, else once that has ended.

        No error when it is cancelled already; Conflict when it ended in another way.
        """
        now = self._clock.wall()
        job = await self._ask(job_id, lambda job: _cancelled(job, reason, now), actor)
        for child in self._children(job_id):
            with contextlib.suppress(Conflict, NotFound):
                await self.cancel(child.id, actor=actor, reason=Reason.PARENT)
        return job

    async def remove(self, job_id: str, *, actor: str) -> None:
        """Forget one that has ended, with its folder; Conflict while it has not. What it made elsewhere stays."""
        job = self._book.get(job_id)
        if not job.ended:
            raise Conflict(f"job {job_id} is {job.state}; cancel it first")
        await self._remove(job, actor)

    async def _remove(self, job: Job, actor: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self._folder / job.id, ignore_errors=True)
        await self._book.remove(job.id, actor=actor)

    async def _ask(self, job_id: str, change: "Callable[[Job], Told | Job | None]", actor: str) -> Job:
        job = await self._book.change(job_id, change, actor=actor)
        if job.attempt is not None:
            self._runner.poke(job_id)
        elif not may_run(job) and job.state is not JobState.VALIDATING:
            self._runner.withdraw(job_id)
        self._woken.set()
        return job

    def _children(self, job_id: str) -> list[Job]:
        return [job for job in self._book.all() if job.spec.parent == job_id and not job.ended]

    # turns

    def _moved(self, job: Job) -> None:
        if job.ended:
            self._rests.pop(job.id, None)
            self._clear_up(job)
        elif job.reason is Reason.RUNNER_GONE:
            self._rest(job.id, min(REST_MAX_S, 2.0**job.fruitless - 1))
        self._woken.set()

    def _idle(self, job_id: str, error: BaseException | None) -> None:
        if error is not None:
            self._rest(job_id, FAULT_REST_S)
        self._woken.set()

    def _rest(self, job_id: str, seconds: float) -> None:
        """Try nothing with it for so long: what made it fail may be over then."""
        self._rests[job_id] = self._clock.monotonic() + seconds

    def _clear_up(self, job: Job) -> None:
        """A training that is over needs its checkpoints no more; of one that failed they are all there is."""
        if job.spec.type in TRAINING and job.state is not JobState.FAILED:
            self._tasks.spawn(asyncio.to_thread(shutil.rmtree, self._folder / job.id / CHECKPOINTS, ignore_errors=True))

    async def _dispatch(self) -> None:
        """Take up what nobody looks after, and give turns, whenever something may have changed."""
        while True:
            self._woken.clear()
            if self._seat.held:
                try:
                    await self._book.recall_all()
                    await self._end_orphans()
                    await self._take_up()
                    self._give_turns()
                except MocError as error:
                    log.warning("jobs are looked after again in a moment", error=error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._woken.wait()

    async def _end_orphans(self) -> None:
        """A job is over when the one it belongs to is."""
        for job in self._book.all():
            if job.ended or not job.spec.parent or job.wish is Wish.CANCEL:
                continue
            parent = self._book.find(job.spec.parent)
            if parent is None or parent.ended:
                with contextlib.suppress(Conflict, NotFound):
                    await self.cancel(job.id, actor=SYSTEM, reason=Reason.PARENT)

    async def _take_up(self) -> None:
        for job in [job for job in self._book.all() if self._is_free(job)]:
            todo = rescue(job, host=self._host, now=self._clock.wall())
            if todo is Rescue.WATCH and job.attempt is not None:
                self._runner.adopt(job, job.attempt)
            elif todo is Rescue.REQUEUE:
                self._runner.requeue(job)
            elif todo is Rescue.VALIDATE:
                self._runner.validate(job.id)
            elif job.wish is Wish.PAUSE and job.attempt is None:
                await self._book.change(job.id, lambda job: _paused(job, job.wish_reason))

    def _is_free(self, job: Job) -> bool:
        """Whether nothing is done for a job, and something could."""
        rested = self._clock.monotonic() >= self._rests.get(job.id, float("-inf"))
        return not job.ended and rested and job.id not in self._runner.busy

    def _give_turns(self) -> None:
        jobs = self._book.all()
        waiting = {job.id: job for job in jobs if may_run(job) and (self._is_free(job) or job.id in self._runner.busy)}
        chosen = turns(
            (_waiting(job, seeks=job.id in self._runner.seekers) for job in waiting.values()),
            running=places_taken(jobs),
            places=self._limits.places,
            now=self._clock.wall(),
        )
        for job_id in waiting.keys() - set(chosen):
            self._runner.withdraw(job_id)
            self._book.remark(job_id, f"a place: {self._limits.places} jobs may run at once, and others are before it")
        for job_id in chosen:
            if job_id not in self._runner.busy:
                self._runner.start(job_id)


def check_key(key: str) -> None:
    """InvalidRequest when an idempotency key is none."""
    if len(key) > KEY_MAX or not key.isprintable() or not key.isascii():
        raise InvalidRequest(f"an idempotency key has up to {KEY_MAX} printable ASCII characters")


def _waiting(job: Job, *, seeks: bool) -> Waiting:
    return Waiting(
        id=job.id,
        priority=job.spec.priority,
        since=job.queued_at,
        created_at=job.created_at,
        coordinates=job.spec.type in COORDINATING,
        seeks=seeks,
    )


def _pauses(job: Job) -> bool:
    """Whether it is paused until it is asked to go on, or will be."""
    return job.wish is Wish.PAUSE or (job.state is JobState.PAUSED and job.reason is not Reason.PREEMPTED)


def _check_alive(job: Job, what: str) -> None:
    if job.ended:
        raise Conflict(f"job {job.id} cannot be {what}: it is {job.state}")
    if job.wish is Wish.CANCEL:
        raise Conflict(f"job {job.id} cannot be {what}: it is being cancelled")


def _paused(job: Job, reason: Reason) -> Told | Job | None:
    _check_alive(job, "paused")
    if _pauses(job) and job.wish is Wish.NONE and reason is Reason.PARENT:
        return None
    if job.attempt is None and job.state is not JobState.VALIDATING:
        return replace(job, state=JobState.PAUSED, reason=reason, message="", waits_for="", wish=Wish.NONE)
    if job.wish is Wish.PAUSE:
        return None if reason is Reason.PARENT else replace(job, wish_reason=reason)
    return Told(replace(job, wish=Wish.PAUSE, wish_reason=reason), (Tale(message="It was asked to pause"),))


def _resumed(job: Job, now: float) -> Told | Job | None:
    _check_alive(job, "resumed")
    if job.wish is Wish.PAUSE:
        return Told(
            replace(job, wish=Wish.NONE, wish_reason=Reason.REQUESTED), (Tale(message="It was asked to go on"),)
        )
    if not _pauses(job):
        return None
    return replace(job, state=JobState.QUEUED, reason=Reason.RESUMED, message="", queued_at=now)


def _cancelled(job: Job, reason: Reason, now: float) -> Told | Job | None:
    if job.state is JobState.CANCELLED:
        return None
    if job.ended:
        raise Conflict(f"job {job.id} cannot be cancelled: it is {job.state}")
    if job.attempt is None:
        return replace(
            job,
            state=JobState.CANCELLED,
            reason=reason,
            message="",
            waits_for="",
            finished_at=now,
            wish=Wish.NONE,
        )
    if job.wish is Wish.CANCEL:
        return None
    return Told(replace(job, wish=Wish.CANCEL, wish_reason=reason), (Tale(message="It was asked to end"),))
