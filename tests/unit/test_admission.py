"""A bounded number inside, a bounded number in line, fairly between keys, and in time."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moc.inference.admission import SAMPLES_MIN, Gate, Outlook
from moc.inference.lines import PATIENCE, Line, Place, before, foremost, hindmost
from moc.inference.request import Caller, Terms
from moc.inference.shares import HALF_LIFE_S, Shares
from moc.kernel.errors import DeadlineExceeded, DeadlineUnreachable, QueueFull
from moc.resilience.deadline import Deadline

SERVICE_S = 0.5
A, B = Caller("a"), Caller("b")


class Time:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def a_gate(*, max_concurrent: int = 1, max_queue: int = 10, shares: Shares | None = None) -> Gate:
    return Gate("m@1", max_concurrent=max_concurrent, max_queue=max_queue, shares=shares or Shares())


def full(*, max_concurrent: int = 1, max_queue: int = 10, shares: Shares | None = None) -> Gate:
    """A gate with `a` in every place."""
    gate = a_gate(max_concurrent=max_concurrent, max_queue=max_queue, shares=shares)
    for _ in range(max_concurrent):
        assert gate.try_enter(A)
    return gate


def known(gate: Gate) -> Gate:
    """A gate that has seen requests of `SERVICE_S`, without a bill for anybody in its test."""
    for _ in range(10 * SAMPLES_MIN):
        assert gate.try_enter(Caller("earlier"))
        gate.leave(Caller("earlier"), SERVICE_S)
    return gate


async def queued(gate: Gate, caller: Caller = A, terms: Terms | None = None) -> "asyncio.Task[None]":
    """A task that waits for a place by the time this returns."""
    waiting = gate.waiting
    task = asyncio.create_task(gate.enter(caller, terms or Terms()))
    await asyncio.sleep(0)
    assert gate.waiting == waiting + 1
    return task


async def ended(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_places_are_bounded_and_given_back() -> None:
    gate = full(max_concurrent=2)
    assert not gate.try_enter(B)
    gate.leave(A, 0.01)
    await gate.enter(B, Terms())
    assert (gate.running, gate.waiting) == (2, 0)


async def test_more_places_are_given_at_once_to_those_who_wait() -> None:
    gate = full()
    first, second, third = [await queued(gate) for _ in range(3)]
    gate.adjust(max_concurrent=3, max_queue=8)
    await asyncio.gather(first, second)
    assert (gate.running, gate.waiting) == (3, 1)
    await ended(third)


async def test_nobody_overtakes_those_who_wait() -> None:
    gate = full()
    first = await queued(gate)
    gate.leave(A, 0.0)
    assert not gate.try_enter(B)
    await first
    assert (gate.running, gate.waiting) == (1, 0)


async def test_inside_a_key_priority_goes_first_and_then_who_came_first() -> None:
    gate, order = full(), []

    async def visit(name: str, priority: int) -> None:
        await gate.enter(A, Terms(priority=priority))
        order.append(name)
        gate.leave(A, 0.0)

    tasks = []
    for name, priority in (("low", 9), ("first", 5), ("second", 5), ("urgent", 1)):
        tasks.append(asyncio.create_task(visit(name, priority)))
        await asyncio.sleep(0)
    gate.leave(A, 0.0)
    await asyncio.gather(*tasks)
    assert order == ["urgent", "first", "second", "low"]
    assert (gate.running, gate.waiting) == (0, 0)


async def test_the_key_that_had_least_goes_first() -> None:
    shares = Shares()
    gate = full(shares=shares)
    shares.bill(B, 30.0)
    heavy, light = await queued(gate, B), await queued(gate, Caller("c"))
    gate.leave(A, 0.0)
    await light
    assert not heavy.done()
    await ended(heavy)


async def test_a_key_has_what_it_has_inside() -> None:
    """Before anything was billed: two of one key are not let in while another waits for its first."""
    gate = full(max_concurrent=2)
    of_a, of_b = await queued(gate, A), await queued(gate, B)
    gate.leave(A, 0.0)
    await of_b
    assert not of_a.done()
    await ended(of_a)


async def test_a_swap_is_billed_to_the_key_that_caused_it() -> None:
    shares = Shares()
    gate = full(shares=shares)
    shares.bill(A, 10.0)
    of_a, of_b = await queued(gate, A), await queued(gate, B)
    gate.leave(A, 0.0)
    await of_b
    assert not of_a.done()
    await ended(of_a)


async def test_who_comes_anew_does_not_go_before_others_for_what_they_had_before() -> None:
    shares = Shares()
    gate = full(shares=shares)
    gate.leave(A, 10.0)
    assert gate.try_enter(A)  # it has had ten seconds by now
    of_b = [await queued(gate, B) for _ in range(2)]
    of_a = await queued(gate, A)
    gate.leave(A, 0.1)
    await of_b[0]
    gate.leave(B, 0.3)
    await of_a
    assert not of_b[1].done()
    await ended(of_b[1])


async def test_a_queue_that_is_full_refuses_and_says_when_to_ask_again() -> None:
    gate = full(max_queue=1)
    first = await queued(gate)
    with pytest.raises(QueueFull, match="1 requests running and 1 waiting") as caught:
        await gate.enter(A, Terms())
    assert caught.value.details == {"position": 2, "waiting": 1, "running": 1}
    assert caught.value.retry_after_s == 1.0
    await ended(first)
    nobody_may_wait = known(a_gate(max_queue=0))
    assert nobody_may_wait.try_enter(A)
    with pytest.raises(QueueFull) as caught:
        await nobody_may_wait.enter(B, Terms())
    assert caught.value.retry_after_s == pytest.approx(SERVICE_S, rel=0.1)


async def test_a_lighter_key_takes_the_place_of_the_newest_of_the_heaviest() -> None:
    gate = full(max_queue=3)
    greedy = [await queued(gate, A) for _ in range(3)]
    light = asyncio.create_task(gate.enter(B, Terms()))
    with pytest.raises(QueueFull):
        await greedy[2]
    assert gate.waiting == 3
    gate.leave(A, 0.1)
    await light
    assert [task.done() for task in greedy] == [False, False, True]
    await ended(*greedy)


async def test_an_equal_key_takes_nobodys_place() -> None:
    gate = full(max_queue=2)
    gate.leave(A, 0.0)
    assert gate.try_enter(Caller("c"))
    first, second = await queued(gate, A), await queued(gate, B)
    with pytest.raises(QueueFull):
        await gate.enter(A, Terms())
    assert [task.done() for task in (first, second)] == [False, False]
    await ended(first, second)


async def test_a_deadline_ends_the_wait_and_tells_the_position() -> None:
    gate = full()
    other = await queued(gate)
    with pytest.raises(DeadlineExceeded, match="waiting for a place at m@1, as number 2 in line") as caught:
        await gate.enter(A, Terms(Deadline.after(0.01)))
    assert caught.value.details == {"position": 2, "waiting": 2, "running": 1}
    assert (gate.running, gate.waiting) == (1, 1)
    await ended(other)


async def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    gate = known(a_gate())
    assert gate.try_enter(A)
    others = [await queued(gate) for _ in range(4)]
    with pytest.raises(DeadlineUnreachable, match="at the soonest") as caught:
        await gate.enter(A, Terms(Deadline.after(3 * SERVICE_S)))
    assert caught.value.details == {"position": 5, "waiting": 5, "running": 1}
    assert caught.value.retry_after_s == pytest.approx(2 * SERVICE_S, rel=0.2)
    assert (gate.running, gate.waiting) == (1, 4)
    may = await queued(gate, A, Terms(Deadline.after(6 * SERVICE_S)))
    urgent = await queued(gate, A, Terms(Deadline.after(1.5 * SERVICE_S), priority=1))
    light = await queued(gate, B, Terms(Deadline.after(1.5 * SERVICE_S)))
    await ended(*others, may, urgent, light)


async def test_a_service_that_just_began_counts() -> None:
    gate = known(a_gate())
    assert gate.try_enter(A)
    with pytest.raises(DeadlineUnreachable):
        await gate.enter(B, Terms(Deadline.after(SERVICE_S / 5)))


async def test_nothing_is_refused_on_too_few_requests() -> None:
    gate = a_gate()
    for _ in range(SAMPLES_MIN - 1):
        assert gate.try_enter(A)
        gate.leave(A, 60.0)
    assert gate.try_enter(A)
    with pytest.raises(DeadlineExceeded):
        await gate.enter(A, Terms(Deadline.after(0.01)))


async def test_those_who_will_be_gone_by_their_turn_are_not_waited_for() -> None:
    gate = known(a_gate(max_concurrent=1))
    assert gate.try_enter(A)
    impatient = [await queued(gate, A, Terms(Deadline.after(1.2 * SERVICE_S), priority=1))]
    impatient += [await queued(gate, A, Terms(priority=5)) for _ in range(3)]
    with pytest.raises(DeadlineUnreachable):
        await gate.enter(A, Terms(Deadline.after(2.5 * SERVICE_S)))
    assert Outlook(1, 0.0, 0.0, 1.0).served([place(at, 0.5) for at in range(9)], 0.0) == 1
    assert Outlook(1, 0.0, 0.0, 1.0).served([place(at, 2.5) for at in range(9)], 0.0) == 3
    assert Outlook(1, 0.0, 0.0, 1.0).served([place(at) for at in range(9)], 0.0) == 9
    await ended(*impatient)


async def test_whoever_gives_up_leaves_the_line() -> None:
    gate = full()
    first, second = await queued(gate), await queued(gate)
    await ended(first)
    assert gate.waiting == 1
    gate.leave(A, 0.0)
    await second
    gate.leave(A, 0.0)
    assert (gate.running, gate.waiting) == (0, 0)


async def test_a_place_just_given_to_someone_who_left_goes_on() -> None:
    gate = full()
    first, second = await queued(gate), await queued(gate)
    gate.leave(A, 0.0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert (gate.running, gate.waiting) == (1, 0)


async def test_a_place_is_not_given_to_someone_who_is_leaving() -> None:
    gate = full()
    first, second = await queued(gate), await queued(gate)
    first.cancel()
    gate.leave(A, 0.0)
    await second
    assert (gate.running, gate.waiting) == (1, 0)


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from(["arrive", "leave", "cancel"]), st.integers(0, 3), st.integers(1, 10))),
)
def test_no_place_is_ever_lost(places: int, steps: Sequence[tuple[str, int, int]]) -> None:
    asyncio.run(_no_place_is_ever_lost(places, steps))


async def _no_place_is_ever_lost(places: int, steps: Sequence[tuple[str, int, int]]) -> None:
    """Whatever comes and goes: as many inside as may be while anybody waits, and all of it ends empty."""
    gate = a_gate(max_concurrent=places, max_queue=5)
    inside: list[Caller] = []
    tasks: list[asyncio.Task[None]] = []

    async def visit(caller: Caller, priority: int) -> None:
        await gate.enter(caller, Terms(priority=priority))
        inside.append(caller)

    async def settle() -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(inside) == gate.running <= places
        assert gate.waiting == sum(not task.done() for task in tasks) <= 5
        assert not gate.waiting or gate.running == places

    for step, number, priority in steps:
        if step == "arrive":
            tasks.append(asyncio.create_task(visit(Caller(f"key-{number}"), priority)))
        elif step == "leave" and inside:
            gate.leave(inside.pop(number % len(inside)), 0.01)
        elif step == "cancel" and tasks:
            tasks[number % len(tasks)].cancel()
        await settle()
    while inside:
        gate.leave(inside.pop(), 0.01)
        await settle()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None or isinstance(result, QueueFull | asyncio.CancelledError) for result in results)
    assert (gate.running, gate.waiting) == (0, 0)


def place(number: int, deadline_at: float | None = None, priority: int = 5) -> Place:
    return Place(priority, number, deadline_at)


@st.composite
def some_lines(draw: st.DrawFn) -> list[Line]:
    """Lines of several keys, whose places were taken in turns."""
    lines = []
    for at in range(draw(st.integers(1, 5))):
        line = Line(f"key-{at}", 1.0, draw(st.integers(0, 10)), draw(st.integers(1, 4)))
        for number, priority in enumerate(draw(st.lists(st.integers(1, 10), min_size=1, max_size=6))):
            line.add(place(10 * number + at, priority=priority))
        lines.append(line)
    return lines


def drained(lines: list[Line], *, turn: int = 1) -> list[Place]:
    """Everybody in the order they are served, each of them adding a step to what their key has had."""
    order = []
    while lines:
        line, first = foremost(lines, turn)
        order.append(first)
        line.remove(first)
        line.burden += line.step
        lines = [line for line in lines if line.places]
    return order


@given(some_lines())
def test_the_least_used_key_is_next_with_the_first_of_its_line(lines: list[Line]) -> None:
    line, first = foremost(lines, 1)
    assert line.burden == min(line.burden for line in lines)
    assert first == min(line.places)


@given(some_lines())
def test_everybody_is_served_as_foretold(lines: list[Line]) -> None:
    foretold = {first: before(lines, line, first) for line in lines for first in line.places}
    due = {first: line.burden + at * line.step for line in lines for at, first in enumerate(line.places)}
    last = hindmost(lines)[1]
    order = drained(lines)
    assert [due[first] for first in order] == sorted(due.values())
    assert due[last] == due[order[-1]]
    for at, first in enumerate(order):
        assert [due[other] for other in foretold[first]] == sorted(due[other] for other in foretold[first])
        assert set(foretold[first]) <= set(order[:at])
        assert all(due[other] == due[first] for other in set(order[:at]) - set(foretold[first]))


@given(some_lines(), st.integers(1, 1000))
def test_nobody_starves(lines: list[Line], turn: int) -> None:
    """Whatever a key had, who waits longest goes in within so many turns, though others keep coming."""
    starved = min(lines, key=lambda line: min(place.number for place in line.places))
    longest = min(starved.places, key=lambda place: place.number)
    starved.burden = 1e9
    for passed in range(PATIENCE):
        line, first = foremost(lines, turn + passed)
        if first == longest:
            return
        line.remove(first)
        line.add(place(1000 + passed, priority=1))
    raise AssertionError("passed over")


@given(st.floats(0.2, 5), st.integers(1, 3))
def test_weights_divide_the_service(weight: float, backlog: int) -> None:
    """With everybody waiting, a key of twice the weight gets twice the service."""
    time, served = Time(), Counter[str]()
    shares = Shares(clock=time)
    callers = {"one": Caller("one"), "other": Caller("other", weight)}
    for number in range(2000):
        lines = [Line(key, caller.weight, shares.used(key), 1.0, [place(number)]) for key, caller in callers.items()]
        line, _ = foremost(lines, 1)
        shares.bill(callers[line.key], 0.01)
        served[line.key] += 1
        time.now += 0.01
    assert served["other"] / served["one"] == pytest.approx(weight, rel=0.05)


def had_s(shares: Shares, key: str) -> float:
    """What a key has had, in seconds as of now."""
    return shares.used(key) / shares.units_per_s()


def test_what_was_had_is_forgotten_by_half() -> None:
    time = Time()
    shares = Shares(clock=time)
    shares.bill(A, 8.0)
    time.now += HALF_LIFE_S
    shares.bill(Caller("b", 2.0), 8.0)
    assert [had_s(shares, "a"), had_s(shares, "b")] == pytest.approx([4.0, 4.0])
    time.now += 3 * HALF_LIFE_S
    assert had_s(shares, "a") == pytest.approx(0.5)
    assert shares.used("nobody") == 0.0


def test_the_unit_is_renewed_and_who_has_nothing_left_is_forgotten() -> None:
    time = Time()
    shares = Shares(clock=time)
    for number in range(100):
        shares.bill(Caller(f"key-{number}"), 1.0)
        time.now += HALF_LIFE_S
    assert shares.units_per_s() < 2.0**21
    assert [shares.used("key-0"), had_s(shares, "key-99")] == pytest.approx([0.0, 0.5])
