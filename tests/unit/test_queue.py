"""The order in which leases are waited for, and how much of a long queue is looked at."""

import random

import pytest

from moc.gpu.lease import Lease, LeaseState, LeaseTerms
from moc.gpu.queue import AGEING_S, Waiter, WaitQueue
from moc.kernel.errors import QueueFull


def waiter(name: str, *, devices: str = "auto", priority: int = 5, asked_at: float = 0.0) -> Waiter:
    lease = Lease(
        id=name,
        terms=LeaseTerms(bytes=1, devices=devices, priority=priority),
        holder="key",
        holder_name="test",
        state=LeaseState.PENDING,
        created_at=0.0,
    )
    return Waiter(lease, asked_at=asked_at, until=60.0)


def queue(*waiters: Waiter, limit: int = 100_000) -> WaitQueue:
    made = WaitQueue(limit=limit)
    for each in waiters:
        made.add(each)
    return made


def turns(made: WaitQueue, closed: tuple[str, ...] = ()) -> list[str]:
    return [each.lease.id for each in made.turns(closed)]


async def test_the_next_one_of_all_lines_comes_first() -> None:
    made = queue(
        waiter("late", priority=1, asked_at=5 * AGEING_S),
        waiter("low", devices="cuda:0", priority=9),
        waiter("high", devices="cuda:1", priority=1),
        waiter("same", devices="cuda:0"),
        waiter("again", devices="cuda:1"),
    )
    assert turns(made) == ["high", "same", "again", "late", "low"]
    assert turns(made, closed=("cuda:0",)) == ["high", "again", "late"]


async def test_any_order_of_arrival_gives_one_order_of_turns() -> None:
    dice = random.Random(7)
    waiters = [
        waiter(str(n), devices=dice.choice("abc"), priority=dice.randint(1, 10), asked_at=dice.uniform(0, 300))
        for n in range(200)
    ]
    ranked = [each.lease.id for each in sorted(waiters, key=lambda each: each.rank)]
    dice.shuffle(waiters)
    made = queue(*waiters)
    assert turns(made) == ranked
    for each in waiters[:100]:
        assert made.remove(each)
        assert not made.remove(each)
    assert turns(made) == [name for name in ranked if made.find(name) is not None]
    assert len(made) == len(list(made)) == 100


async def test_of_a_line_that_is_closed_nobody_else_is_looked_at() -> None:
    made = queue(*(waiter(str(n), devices=f"cuda:{n % 8}") for n in range(10_000)))
    closed: set[str] = set()
    looked_at = 0
    for each in made.turns(closed):
        looked_at += 1
        closed.add(each.line)
    assert looked_at == 8


async def test_who_goes_or_moves_meanwhile_is_passed_over() -> None:
    first, second, third, other = (waiter(name) for name in ("first", "second", "third", "other"))
    made = queue(first, second, third, other)
    seen = []
    for each in made.turns(()):
        seen.append(each.lease.id)
        if each is first:
            made.remove(first)
            made.remove(second)
            made.pin(third, "cuda:0")
    assert seen == ["first", "other"]
    assert turns(made) == ["third", "other"]
    assert turns(made, closed=("cuda:0",)) == ["other"]


async def test_only_so_many_may_wait() -> None:
    one = waiter("one")
    made = queue(one, limit=1)
    with pytest.raises(QueueFull):
        made.add(waiter("two"))
    made.remove(one)
    made.add(waiter("two"))
