"""Parts are started in order and stopped in reverse, whatever fails."""

import asyncio

import pytest

from moc.kernel.component import Stack


class Part:
    """A component that writes down what is done to it, and fails where it is told to."""

    def __init__(self, name: str, log: list[str], *, fails_at: str = "") -> None:
        self.name = name
        self.log = log
        self.fails_at = fails_at

    async def start(self) -> None:
        self.act("start")

    async def drain(self) -> None:
        self.act("drain")
        if self.fails_at == "never drains":
            await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        self.act("stop")

    def act(self, what: str) -> None:
        self.log.append(f"{what} {self.name}")
        if what == self.fails_at:
            raise RuntimeError(f"{self.name} cannot {what}")


async def test_start_in_order_drain_and_stop_in_reverse() -> None:
    log: list[str] = []
    stack = Stack([Part("a", log), Part("b", log)])
    await stack.start()
    await stack.start()
    await stack.drain(10)
    await stack.stop()
    await stack.stop()
    assert log == ["start a", "start b", "drain b", "drain a", "stop b", "stop a"]


async def test_a_failed_start_stops_those_that_started() -> None:
    log: list[str] = []
    stack = Stack([Part("a", log), Part("b", log), Part("c", log, fails_at="start"), Part("d", log)])
    with pytest.raises(RuntimeError, match="c cannot start"):
        await stack.start()
    assert log == ["start a", "start b", "start c", "stop b", "stop a"]


async def test_draining_ends_with_its_grace() -> None:
    log: list[str] = []
    stack = Stack([Part("a", log), Part("b", log, fails_at="never drains")])
    await stack.start()
    await stack.drain(0.01)
    await stack.stop()
    assert log == ["start a", "start b", "drain b", "stop b", "stop a"]


async def test_every_part_is_stopped_and_the_first_error_raised() -> None:
    log: list[str] = []
    stack = Stack([Part("a", log), Part("b", log, fails_at="stop"), Part("c", log, fails_at="stop")])
    await stack.start()
    with pytest.raises(RuntimeError, match="c cannot stop"):
        await stack.stop()
    assert log[3:] == ["stop c", "stop b", "stop a"]
