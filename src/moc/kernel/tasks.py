"""Work in the background that nobody awaits: kept from being forgotten, and not let fail in silence."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from moc.kernel.errors import MocError

R = TypeVar("R")


async def to_the_end(work: "Coroutine[Any, Any, R] | asyncio.Task[R]") -> R:
    """What it comes to, waited for however often the caller is cancelled; then that is raised."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


class Tasks:
    """The running ones. `on_fault` is told of an error that is no MocError: a fault of the program."""

    def __init__(self, on_fault: Callable[[BaseException], None]) -> None:
        self._on_fault = on_fault
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, R]) -> "asyncio.Task[R]":
        """Begin it."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def settle(self) -> None:
        """Wait until all that run now have ended."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def cancel(self) -> None:
        """Cancel all, and wait until they have ended."""
        for task in list(self._running):
            task.cancel()
        await self.settle()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, MocError):
            self._on_fault(error)
