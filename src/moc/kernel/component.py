"""Things that are started, drained and stopped, and the stack that does it in order."""

import asyncio
from collections.abc import Sequence
from typing import Protocol


class Component(Protocol):
    """A part with a life. All three are idempotent; a constructor does no I/O."""

    async def start(self) -> None:
        """Become ready; raises when it cannot, having released what it took."""
        ...

    async def drain(self) -> None:
        """Take no new work and let what runs finish."""
        ...

    async def stop(self) -> None:
        """Release everything; never raises for work that was cut off."""
        ...


class Stack:
    """Components started in order, drained and stopped in reverse."""

    def __init__(self, components: Sequence[Component]) -> None:
        self._components = tuple(components)
        self._started: list[Component] = []

    async def start(self) -> None:
        """Start each in turn; if one fails, stop those already started and raise its error."""
        for component in self._components:
            if component in self._started:
                continue
            try:
                await component.start()
            except BaseException:
                await self.stop()
                raise
            self._started.append(component)

    async def drain(self, grace_s: float) -> None:
        """Drain all in reverse order, together no longer than `grace_s` seconds."""
        try:
            async with asyncio.timeout(grace_s):
                for component in reversed(self._started):
                    await component.drain()
        except TimeoutError:
            return

    async def stop(self) -> None:
        """Stop all in reverse order; every one gets its turn, the first error is raised at the end."""
        first: BaseException | None = None
        while self._started:
            try:
                await self._started.pop().stop()
            except BaseException as error:
                first = first or error
        if first is not None:
            raise first
