"""One writer: commands run in order, one at a time, and each caller gets an answer."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from moc.kernel.actor import Actor
from moc.kernel.errors import NotFound, QueueFull, Unavailable


@pytest.fixture
async def actor() -> AsyncIterator[Actor]:
    started = Actor("desk", inbox_max=3)
    await started.start()
    yield started
    await started.stop()


class Gate:
    """A command that says when it began and ends when it is let through."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.open = asyncio.Event()
        self.ended = False

    async def __call__(self) -> str:
        self.begun.set()
        await self.open.wait()
        self.ended = True
        return "through"


async def test_commands_run_in_order_one_at_a_time(actor: Actor) -> None:
    log: list[str] = []

    async def command(name: str) -> str:
        log.append(f"{name} begins")
        await asyncio.sleep(0)
        log.append(f"{name} ends")
        return name

    assert await asyncio.gather(*(actor.ask(partial(command, name)) for name in "abc")) == ["a", "b", "c"]
    assert log == ["a begins", "a ends", "b begins", "b ends", "c begins", "c ends"]


async def test_an_error_goes_to_the_one_who_asked(actor: Actor) -> None:
    async def fails() -> None:
        raise NotFound("no such thing")

    async def works() -> int:
        return 1

    with pytest.raises(NotFound, match="no such thing"):
        await actor.ask(fails)
    assert await actor.ask(works) == 1


async def test_a_command_that_is_cancelled_from_inside_does_not_end_the_actor(actor: Actor) -> None:
    async def waits_for_what_was_cancelled() -> None:
        other: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        other.cancel()
        await other

    async def works() -> int:
        return 1

    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await actor.ask(waits_for_what_was_cancelled)
        assert await actor.ask(works) == 1


async def test_a_full_inbox_refuses(actor: Actor) -> None:
    gate = Gate()
    running = asyncio.create_task(actor.ask(gate))
    await gate.begun.wait()
    waiting = [asyncio.create_task(actor.ask(Gate())) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="desk has 3 commands waiting"):
        await actor.ask(Gate())
    for task in waiting:
        task.cancel()
    gate.open.set()
    assert await running == "through"
    assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*waiting, return_exceptions=True))


async def test_a_caller_that_gives_up_before_its_turn_takes_its_command_out(actor: Actor) -> None:
    first, second = Gate(), Gate()
    running = asyncio.create_task(actor.ask(first))
    await first.begun.wait()
    given_up = asyncio.create_task(actor.ask(second))
    await asyncio.sleep(0)
    given_up.cancel()
    first.open.set()
    await running
    await actor.drain()
    assert not second.begun.is_set()
    assert given_up.cancelled()


async def test_a_command_that_began_runs_to_its_end_without_its_caller(actor: Actor) -> None:
    gate = Gate()
    caller = asyncio.create_task(actor.ask(gate))
    await gate.begun.wait()
    caller.cancel()
    gate.open.set()
    await actor.drain()
    assert gate.ended
    assert caller.cancelled()


async def test_stop_cuts_off_the_running_and_refuses_the_waiting(actor: Actor) -> None:
    running, waiting = Gate(), Gate()
    asked = [asyncio.create_task(actor.ask(gate)) for gate in (running, waiting)]
    await running.begun.wait()
    await actor.stop()
    await actor.stop()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable, Unavailable]
    assert not running.ended
    assert not waiting.begun.is_set()
    with pytest.raises(Unavailable, match="not running"):
        await actor.ask(Gate())


async def test_it_can_be_started_again(actor: Actor) -> None:
    await actor.stop()
    await actor.start()
    await actor.start()
    gate = Gate()
    gate.open.set()
    assert await actor.ask(gate) == "through"
