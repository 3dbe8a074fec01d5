"""Blocking work that stops when its caller does."""

import asyncio
import threading

import pytest

from moc.models.sources.background import Job, Stopped, in_thread


async def test_gives_the_result_and_tells_how_far_it_is() -> None:
    told: list[tuple[int, int | None, int]] = []

    def work(job: Job) -> int:
        job.step(1, None)
        job.step(2, 2)
        return threading.get_ident()

    here = threading.get_ident()
    assert await in_thread(work, lambda done, total: told.append((done, total, threading.get_ident()))) != here
    assert told == [(1, None, here), (2, 2, here)]


async def test_raises_what_the_work_raises() -> None:
    def work(job: Job) -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await in_thread(work)


async def test_a_cancelled_caller_stops_the_work_and_waits_for_it() -> None:
    loop, started, ended = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def work(job: Job) -> None:
        try:
            while True:
                job.step(0, None)
                loop.call_soon_threadsafe(started.set)
        except Stopped:
            ended.set()
            raise

    task = asyncio.create_task(in_thread(work))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_cancelling_twice_still_waits() -> None:
    running, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work(job: Job) -> None:
        loop.call_soon_threadsafe(running.set)
        go_on.wait()

    task = asyncio.create_task(in_thread(work))
    await running.wait()
    for _ in range(2):
        task.cancel()
        await asyncio.wait([task], timeout=0)
        assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_time_limit_works_as_for_any_other_work() -> None:
    def work(job: Job) -> None:
        while True:
            job.step(0, None)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await in_thread(work)
