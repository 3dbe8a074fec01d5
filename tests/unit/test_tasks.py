"""Background work: kept, settled, cancelled, and heard of when it fails."""

import asyncio

import pytest

from moc.kernel.errors import Conflict
from moc.kernel.tasks import Tasks, to_the_end


async def test_what_runs_is_waited_for() -> None:
    done: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        done.append(number)

    tasks = Tasks(lambda error: None)
    for number in range(3):
        tasks.spawn(work(number))
    await tasks.settle()
    assert sorted(done) == [0, 1, 2]


async def test_what_runs_can_be_ended() -> None:
    tasks = Tasks(lambda error: None)
    endless = tasks.spawn(asyncio.Event().wait())
    await tasks.cancel()
    assert endless.cancelled()


async def test_a_fault_is_told_and_a_refusal_is_not() -> None:
    faults: list[BaseException] = []

    async def fail(error: Exception) -> None:
        raise error

    tasks = Tasks(faults.append)
    fault = ValueError("a mistake in the program")
    for error in (fault, Conflict("not now")):
        tasks.spawn(fail(error))
    await tasks.settle()
    assert faults == [fault]


async def test_what_goes_to_its_end_does_though_its_caller_is_cancelled_again_and_again() -> None:
    go, done = asyncio.Event(), []

    async def work() -> None:
        await go.wait()
        done.append(True)

    caller = asyncio.create_task(to_the_end(work()))
    for _ in range(2):
        await asyncio.sleep(0)
        caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done
