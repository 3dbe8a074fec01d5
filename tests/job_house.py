"""A coordinator's jobs over a memory store, with programs that do what the test says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from moc.kernel.clock import SystemClock
from moc.learning.disk import DiskQuota
from moc.learning.job import Job, JobSpec, JobState, JobType, Reason
from moc.learning.jobs import Jobs
from moc.learning.watch import Limits
from moc.security.identity import Identity, Role
from moc.testing.programs import FakeJobMemory, FakeKind, FakePrograms, FakeVisitors
from moc.testing.seat import FakeSeat
from tests.full_store import FullStore

ME = Identity("key-1", "me", Role.OPERATOR)
SPEC = JobSpec(type=JobType.SCRIPT)


def made_job(spec: JobSpec, **changes: Any) -> Job:
    """A job that runs, as nothing else knows it."""
    usual = Job(
        id="job-1",
        spec=spec,
        state=JobState.RUNNING,
        reason=Reason.STARTED,
        created_at=0.0,
        created_by="key-1",
        created_by_name="me",
        changed_at=0.0,
    )
    return replace(usual, **changes)


class JobHouse:
    """A coordinator's jobs; `restart` is what a crash and a new coordinator are to them."""

    def __init__(self, store: FullStore, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.seat = FakeSeat(store, "cluster")
        self.programs, self.memory, self.visitors = FakePrograms(), FakeJobMemory(), FakeVisitors()
        self.kind = FakeKind(visits=True)
        self.limits = Limits(places=2, attempts=3, grace_s=30.0)
        self.disk = DiskQuota([folder], limit_bytes=1024**3)
        self.jobs = self.make()

    def make(self, host: str = "here") -> Jobs:
        return Jobs(
            store=self.store,
            seat=self.seat,
            clock=SystemClock(),
            host=host,
            folder=self.folder,
            kinds=dict.fromkeys(JobType, self.kind),
            programs=self.programs,
            memory=self.memory,
            visitors=self.visitors,
            disk=self.disk,
            limits=self.limits,
            look_s=0.02,
        )

    async def restart(self, host: str = "here") -> None:
        await self.jobs.stop()
        self.jobs = self.make(host)
        await self.jobs.start()

    async def submit(self, spec: JobSpec = SPEC, key: str = "") -> Job:
        return await self.jobs.submit(spec, actor=ME, idempotency_key=key)

    async def until(self, job_id: str, what: Callable[[Job], bool]) -> Job:
        """The job once it is so."""
        async with asyncio.timeout(20):
            return await self.jobs.wait(job_id, what)

    async def reaches(self, job_id: str, state: JobState) -> Job:
        job = await self.until(job_id, lambda job: job.state is state)
        assert job.state is state
        return job

    async def messages(self, job_id: str) -> list[str]:
        return [event.message for event in await self.jobs.events(job_id)]


@asynccontextmanager
async def job_house(folder: Path) -> AsyncIterator[JobHouse]:
    """It, started."""
    store = FullStore()
    await store.start()
    made = JobHouse(store, folder)
    await made.seat.start()
    await made.jobs.start()
    try:
        yield made
    finally:
        await made.jobs.stop()
        await store.stop()
