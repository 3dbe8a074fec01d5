"""Files that were to be kept for a while: deleted after it, and never from under a job."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from moc.learning.expiry import Expiry
from moc.learning.files import File, Files, Purpose
from moc.learning.job import JobState
from moc.testing.clock import ManualClock
from tests.full_store import FullStore
from tests.job_house import SPEC, JobHouse, job_house


class Shelf:
    """Files beside the jobs of a house, and what lets them expire."""

    def __init__(self, house: JobHouse, folder: Path) -> None:
        self.clock, self.house, self.store = ManualClock(), house, FullStore()
        self.files = Files(store=self.store, folder=folder, clock=self.clock, take=lambda _: None)
        self.expiry = Expiry(files=self.files, jobs=house.jobs, seat=house.seat, clock=self.clock, period_s=0.001)

    async def add(self, expires_in_s: float | None) -> File:
        incoming = await self.files.receive()
        await incoming.write(b"row\n")
        return await incoming.keep(filename="a", purpose=Purpose.EVALS, actor="me", expires_in_s=expires_in_s)

    async def leaves(self, *kept: File) -> None:
        """Wait until these alone are left."""
        async with asyncio.timeout(10):
            while self.files.all() != [*kept]:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.001)


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[Shelf]:
    async with job_house(tmp_path / "jobs") as house:
        made = Shelf(house, tmp_path / "files")
        await made.store.start()
        await made.files.start()
        await made.expiry.start()
        yield made
        await made.expiry.stop()
        await made.store.stop()


async def test_a_file_is_deleted_after_its_time(shelf: Shelf) -> None:
    kept, later, sooner = await shelf.add(None), await shelf.add(7200), await shelf.add(3600)
    shelf.clock.advance(3601)
    await shelf.leaves(kept, later)
    assert shelf.files.path(later.id).is_file()
    shelf.clock.advance(3600)
    await shelf.leaves(kept)
    assert [event.subject for event in await shelf.store.events() if event.kind == "file.removed"] == [
        sooner.id,
        later.id,
    ]


async def test_a_file_that_a_job_has_stays_until_the_job_is_over(shelf: Shelf) -> None:
    used, other = await shelf.add(3600), await shelf.add(3600)
    job = await shelf.house.submit(replace(SPEC, training_file=used.id))
    program = await shelf.house.programs.started()
    shelf.clock.advance(3601)
    await shelf.leaves(used)
    assert other not in shelf.files.all()
    program.end(0)
    assert (await shelf.house.jobs.wait(job.id)).state is JobState.SUCCEEDED
    await shelf.leaves()


async def test_a_store_that_fails_is_asked_again(shelf: Shelf) -> None:
    file = await shelf.add(3600)
    shelf.store.full, shelf.store.slow = True, "file.removed"
    shelf.store.gate.set()
    shelf.clock.advance(3601)
    await shelf.store.reached.wait()
    assert shelf.files.all() == [file]
    shelf.store.full = False
    await shelf.leaves()
