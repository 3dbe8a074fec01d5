"""Running jobs: from what they were given to a program that has the memory it needs."""

import asyncio
import shutil
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from moc.kernel.errors import NoCapacity, NotLeader
from moc.kernel.tasks import Tasks, to_the_end
from moc.learning.conclusion import conclude, failure_of
from moc.learning.job import COORDINATING, Attempt, Job, JobState, Reason, Wish
from moc.learning.job_book import Tale, Told
from moc.learning.ports import Ending, Holding, Order, Prepared, Started
from moc.learning.watch import NOBODY, RETRY_S, Means, Watch, attempt_folder, closed, insist, report

log = structlog.get_logger(__name__)

ATTEMPTS_KEPT = 20
"""How many attempts of a job are remembered, with their logs."""

VALIDATIONS_MAX = 2


class Runner:
    """What is done for jobs now: at most one thing for each.

    `seekers` are the jobs that wait for memory. `on_idle(job_id, error)` is called when nothing is done for a job any
    more; `error` is there if that was no plan.
    """

    def __init__(self, means: Means, *, on_idle: Callable[[str, BaseException | None], None]) -> None:
        self._means = means
        self._on_idle = on_idle
        self._seeking: dict[str, asyncio.Task[None]] = {}
        self.seekers: set[str] = set()
        self._watches: dict[str, Watch] = {}
        self._validations = asyncio.Semaphore(VALIDATIONS_MAX)
        self._placing = asyncio.Lock()
        self._tasks = Tasks(lambda error: log.error("a job's task failed", exc_info=error))

    @property
    def busy(self) -> Collection[str]:
        """The jobs that something is done for."""
        return self._seeking.keys() | self._watches.keys()

    def processes(self) -> list[Started]:
        """The programs that run now, but those that were asked to end."""
        watches = self._watches.values()
        return [each.process for each in watches if each.process != NOBODY and not each.ends]

    def validate(self, job_id: str) -> None:
        """Begin to read what a job was given."""
        self._begin(job_id, self._validate(job_id))

    def start(self, job_id: str) -> None:
        """Begin to get memory for a job, and to run it then."""
        self._begin(job_id, self._start(job_id))

    def adopt(self, job: Job, attempt: Attempt) -> None:
        """Look after an attempt of this host that somebody else started."""
        self._begin(job.id, self._adopt(job, attempt))

    def requeue(self, job: Job) -> None:
        """Give up an attempt of another host, which is gone."""
        self._begin(job.id, self._requeue(job.id))

    def withdraw(self, job_id: str) -> None:
        """Let a job wait that has no program yet; no error when nothing is done for it."""
        if job_id in self._seeking:
            self._seeking[job_id].cancel()

    def poke(self, job_id: str) -> None:
        """See to what was asked of a job now."""
        if job_id in self._watches:
            self._watches[job_id].poke()

    async def settle(self) -> None:
        """Let no more be started."""
        seeking = list(self._seeking.values())
        for task in seeking:
            task.cancel()
        await asyncio.gather(*seeking, return_exceptions=True)

    async def end_programs(self) -> None:
        """Have every program save and end, its job to go on another day."""
        await self.settle()
        for watch in list(self._watches.values()):
            await watch.ask_to_end(Reason.RUNNER_GONE)
            watch.poke()
        await self._tasks.settle()

    async def stop(self) -> None:
        """Leave the programs to whoever comes next."""
        await self._tasks.cancel()

    def _begin(self, job_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._seeking[job_id] = self._tasks.spawn(work)
        task.add_done_callback(partial(self._sought, job_id))

    def _sought(self, job_id: str, task: "asyncio.Task[None]") -> None:
        self._seeking.pop(job_id, None)
        self.seekers.discard(job_id)
        if job_id not in self._watches:
            self._on_idle(job_id, None if task.cancelled() else task.exception())

    def _look_after(self, job_id: str, watch: Watch) -> None:
        self._watches[job_id] = watch
        self._tasks.spawn(watch.run()).add_done_callback(partial(self._watched, job_id))

    def _watched(self, job_id: str, task: "asyncio.Task[None]") -> None:
        self._watches.pop(job_id, None)
        self._means.disk.end(self._means.folder / job_id)
        self._on_idle(job_id, None if task.cancelled() else task.exception())

    # what is done

    async def _validate(self, job_id: str) -> None:
        means = self._means
        async with self._validations:
            job = means.book.get(job_id)
            folder = means.folder / job_id
            try:
                await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
                prepared = await insist(lambda: means.kinds[job.spec.type].prepare(job, folder))
            except NotLeader:
                raise
            except Exception as error:
                await self._fail(job, error)
                return

        def queue(job: Job) -> Job | None:
            if job.state is not JobState.VALIDATING:
                return None
            used = prepared.task.get("hyperparameters", job.spec.hyperparameters)
            return replace(
                job,
                spec=replace(job.spec, hyperparameters=used),
                state=JobState.QUEUED,
                reason=Reason.VALIDATED,
                queued_at=means.clock.wall(),
            )

        await insist(lambda: means.book.change(job_id, queue))

    async def _start(self, job_id: str) -> None:
        means, job = self._means, self._means.book.get(job_id)
        remark = partial(means.book.remark, job_id)

        def wait(needed: str) -> None:
            self.seekers.add(job_id)
            remark(needed)

        try:
            await self._wait_for_disk(remark)
            remark("what it needs to be made ready")
            prepared = await insist(lambda: means.kinds[job.spec.type].prepare(job, means.folder / job_id))
            size = await insist(lambda: means.memory.need(job, prepared))
            await self._warn(job, prepared)
            holding = await insist(lambda: means.memory.acquire(job, size, on_wait=wait))
        except NotLeader:
            raise
        except Exception as error:
            await self._fail(job, error)
            return
        await to_the_end(self._launch(job_id, prepared, holding))

    async def _warn(self, job: Job, prepared: Prepared) -> None:
        """Tell once if what was declared is too little: whoever declared it may know better."""
        doubt = "" if job.attempt_count else await self._means.memory.doubt(job, prepared)
        if doubt:
            tale = Tale(message=doubt, level="warn")
            await insist(lambda: self._means.book.change(job.id, lambda now: Told(now, (tale,))))

    async def _wait_for_disk(self, remark: Callable[[str], None]) -> None:
        while True:
            try:
                return await asyncio.to_thread(self._means.disk.check)
            except NoCapacity as error:
                remark(error.message)
                await asyncio.sleep(RETRY_S)

    async def _launch(self, job_id: str, prepared: Prepared, holding: Holding) -> None:
        """Start the program. The attempt is written down before there is one: whoever comes next looks for it."""
        means = self._means
        try:
            async with self._placing:
                job = await means.book.change(job_id, partial(self._begun, holding))
        except BaseException:
            await means.memory.release(holding)
            raise
        if job.attempt is None:
            await means.memory.release(holding)
            return
        process, failure = NOBODY, None
        try:
            process = await self._spawn(job, job.attempt, prepared, holding)
        except Exception as error:
            report(job, error)
            failure = error
        self._look_after(job_id, Watch(means, job, process, holding, prepared=prepared, failure=failure))

    def _begun(self, holding: Holding, job: Job) -> Job | None:
        """The job with an attempt, if it is still to run and there is a place for it."""
        means = self._means
        placed = job.spec.type in COORDINATING or places_taken(means.book.all()) < means.limits.places
        if not (placed and may_run(job)):
            return None
        return _begun(job, host=means.host, holding=holding, now=means.clock.wall())

    async def _spawn(self, job: Job, attempt: Attempt, prepared: Prepared, holding: Holding) -> Started:
        means, job_folder = self._means, self._means.folder / job.id
        folder = attempt_folder(job_folder, attempt.number)
        await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(means.disk.begin, job_folder)
        old = attempt_folder(job_folder, attempt.number - ATTEMPTS_KEPT)
        await asyncio.to_thread(shutil.rmtree, old, ignore_errors=True)
        environment = dict(prepared.environment)
        if prepared.visits:
            environment |= await means.visitors.admit(job, folder)
        means.seat.fence()
        return await means.programs.start(
            Order(
                job_id=job.id,
                attempt=attempt.number,
                folder=job_folder,
                type=job.spec.type,
                task=prepared.task,
                seed=job.spec.seed,
                device=holding.device,
                bytes=holding.bytes,
                command=prepared.command,
                workdir=prepared.workdir,
                environment=environment,
                gpus=holding.gpus,
            )
        )

    async def _adopt(self, job: Job, attempt: Attempt) -> None:
        process = Started(attempt.pid, attempt.process_started_at)
        if process == NOBODY:
            folder = attempt_folder(self._means.folder / job.id, attempt.number)
            process = await self._means.programs.find(folder) or NOBODY
        await asyncio.to_thread(self._means.disk.begin, self._means.folder / job.id)
        self._look_after(job.id, Watch(self._means, job, process, _held(attempt)))

    async def _requeue(self, job_id: str) -> None:
        """Give back what it had, and make sure of its end: this host may have been called otherwise then."""
        means, attempt = self._means, self._means.book.get(job_id).attempts[-1]
        job, folder = means.book.get(job_id), attempt_folder(means.folder / job_id, attempt.number)
        await insist(lambda: means.programs.kill(folder, Started(attempt.pid, attempt.process_started_at)))
        await insist(lambda: means.memory.release(_held(attempt)))
        await insist(lambda: means.visitors.dismiss(job))

        def give_up(job: Job) -> Job:
            lost = conclude(job, Ending(None), asked=None, attempts_max=means.limits.attempts)
            return closed(job, lost, None, means.clock.wall())

        await insist(lambda: means.book.change(job_id, give_up))

    async def _fail(self, job: Job, error: Exception) -> None:
        report(job, error)
        failure, now = failure_of(error), self._means.clock.wall()

        def fail(job: Job) -> Job | None:
            if job.ended:
                return None
            return replace(
                job,
                state=failure.state,
                reason=failure.reason,
                message=failure.message,
                finished_at=now,
                wish=Wish.NONE,
                waits_for="",
            )

        await insist(lambda: self._means.book.change(job.id, fail))


def may_run(job: Job) -> bool:
    """Whether a job is to run as soon as it can."""
    waits = job.state is JobState.QUEUED or (job.state is JobState.PAUSED and job.reason is Reason.PREEMPTED)
    return waits and job.wish is Wish.NONE


def places_taken(jobs: Iterable[Job]) -> int:
    """How many of the places that may run at once they take."""
    return sum(job.attempt is not None and job.spec.type not in COORDINATING for job in jobs)


def _held(attempt: Attempt) -> Holding:
    return Holding(lease_id=attempt.lease_id, token=attempt.lease_token, device=attempt.device, bytes=attempt.bytes)


def _begun(job: Job, *, host: str, holding: Holding, now: float) -> Job:
    attempt = Attempt(
        number=job.attempt_count + 1,
        host=host,
        started_at=now,
        lease_id=holding.lease_id,
        lease_token=holding.token,
        device=holding.device,
        bytes=holding.bytes,
        heartbeat_at=now,
        first_step=job.checkpoints[-1].step if job.checkpoints else 0,
    )
    return replace(
        job,
        state=JobState.RUNNING,
        reason=Reason.RESUMED if job.attempt_count else Reason.STARTED,
        message="",
        waits_for="",
        started_at=job.started_at or now,
        attempts=(*job.attempts, attempt)[-ATTEMPTS_KEPT:],
        attempt_count=job.attempt_count + 1,
    )
