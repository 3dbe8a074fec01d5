"""A bounded number at once, a bounded number waiting, first come first served."""

import asyncio

import pytest

from moc.kernel.errors import DeadlineExceeded, QueueFull
from moc.resilience.bulkhead import Bulkhead
from moc.resilience.deadline import NEVER, Deadline


def full(*, max_concurrent: int = 1, max_queue: int = 10) -> Bulkhead:
    bulkhead = Bulkhead("model m", max_concurrent=max_concurrent, max_queue=max_queue)
    for _ in range(max_concurrent):
        assert bulkhead.try_enter()
    return bulkhead


async def queued(bulkhead: Bulkhead, deadline: Deadline = NEVER) -> "asyncio.Task[None]":
    """A task that waits for a place by the time this returns."""
    before = bulkhead.waiting
    task = asyncio.create_task(bulkhead.enter(deadline))
    await asyncio.sleep(0)
    assert bulkhead.waiting == before + 1
    return task


async def test_places_are_bounded_and_given_back() -> None:
    bulkhead = full(max_concurrent=2)
    assert not bulkhead.try_enter()
    bulkhead.leave()
    await bulkhead.enter(NEVER)
    assert (bulkhead.running, bulkhead.waiting) == (2, 0)


async def test_first_come_first_served() -> None:
    bulkhead = full()
    order: list[int] = []

    async def visit(number: int) -> None:
        await bulkhead.enter(NEVER)
        order.append(number)
        await asyncio.sleep(0)
        bulkhead.leave()

    async with asyncio.TaskGroup() as tasks:
        for number in range(10):
            tasks.create_task(visit(number))
        await asyncio.sleep(0)
        assert bulkhead.waiting == 10
        bulkhead.leave()
    assert order == list(range(10))
    assert (bulkhead.running, bulkhead.waiting) == (0, 0)


async def test_nobody_overtakes_one_who_waits() -> None:
    bulkhead = full()
    first = await queued(bulkhead)
    bulkhead.leave()
    assert not bulkhead.try_enter()
    await first
    assert bulkhead.running == 1


async def test_a_full_queue_refuses_at_once() -> None:
    bulkhead = full(max_queue=1)
    first = await queued(bulkhead)
    with pytest.raises(QueueFull, match="model m has 1 requests running and 1 waiting") as refusal:
        await bulkhead.enter(NEVER)
    assert refusal.value.retry_after_s == 1
    bulkhead.leave()
    await first


async def test_a_deadline_ends_the_wait() -> None:
    bulkhead = full()
    with pytest.raises(DeadlineExceeded, match="waiting for a place at model m"):
        await bulkhead.enter(Deadline.after(0.01))
    assert (bulkhead.running, bulkhead.waiting) == (1, 0)


async def test_one_who_gives_up_leaves_the_queue() -> None:
    bulkhead = full()
    first, second = await queued(bulkhead), await queued(bulkhead)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert bulkhead.waiting == 1
    bulkhead.leave()
    await second
    bulkhead.leave()
    assert (bulkhead.running, bulkhead.waiting) == (0, 0)


async def test_a_place_given_to_one_who_just_gave_up_goes_to_the_next() -> None:
    bulkhead = full()
    first, second = await queued(bulkhead), await queued(bulkhead)
    bulkhead.leave()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    async with asyncio.timeout(10):
        await second
    assert (bulkhead.running, bulkhead.waiting) == (1, 0)
