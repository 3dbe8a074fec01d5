"""Deleting the files whose time is over."""

import asyncio
from collections.abc import Iterable

import msgspec
import structlog

from moc.kernel.clock import Clock
from moc.kernel.errors import MocError
from moc.kernel.routine import Routine
from moc.learning.files import Files
from moc.learning.job import Job, JobSpec
from moc.learning.jobs import SYSTEM, Jobs
from moc.learning.ports import ClusterSeat

log = structlog.get_logger(__name__)

PERIOD_S = 30.0


class Expiry:
    """Deletes every file that was to expire, up to `period_s` after that, or once no job needs it any more."""

    def __init__(
        self, *, files: Files, jobs: Jobs, seat: ClusterSeat, clock: Clock, period_s: float = PERIOD_S
    ) -> None:
        self._files = files
        self._jobs = jobs
        self._seat = seat
        self._clock = clock
        self._period_s = period_s
        self._routine = Routine("files-expiry", self._look_often)

    async def start(self) -> None:
        """Begin to look."""
        self._routine.start()

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        """Look no more."""
        await self._routine.stop()

    async def _look_often(self) -> None:
        while True:
            if self._seat.held:
                try:
                    await self._look()
                except MocError as error:
                    log.warning("files that expired are deleted later", problem=error.message)
            await asyncio.sleep(self._period_s)

    async def _look(self) -> None:
        now = self._clock.wall()
        for file in self._files.all():
            if file.expires_at is not None and file.expires_at <= now and reader(self._jobs.all(), file.id) is None:
                await self._files.remove(file.id, actor=SYSTEM)


def reader(jobs: Iterable[Job], file_id: str) -> Job | None:
    """One of them that is not over and has the file."""
    return next((job for job in jobs if not job.ended and file_id.encode() in named(job.spec)), None)


def named(spec: JobSpec) -> bytes:
    """Wherever a job may name files."""
    return msgspec.json.encode((spec.training_file, spec.validation_file, spec.options))
