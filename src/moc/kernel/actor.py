"""One writer per mutable thing: commands queue in a bounded inbox and run one at a time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from moc.kernel.errors import QueueFull, Unavailable

R = TypeVar("R")
_Command = tuple[Callable[[], Awaitable[Any]], "asyncio.Future[Any]"]


class Actor:
    """Runs the commands it is asked, in order, one at a time, until stopped."""

    def __init__(self, name: str, *, inbox_max: int = 1024) -> None:
        self.name = name
        self._inbox: asyncio.Queue[_Command] = asyncio.Queue(inbox_max)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"actor-{self.name}")

    async def drain(self) -> None:
        """Wait until every command asked so far is done."""
        await self._inbox.join()

    async def stop(self) -> None:
        """Cancel the running command, refuse the waiting ones with Unavailable."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        while not self._inbox.empty():
            _, answer = self._inbox.get_nowait()
            self._inbox.task_done()
            if not answer.done():
                answer.set_exception(Unavailable(f"{self.name} is stopping; ask again shortly"))

    async def ask(self, command: Callable[[], Awaitable[R]]) -> R:
        """Run `command` in turn and return its answer.

        QueueFull when the inbox is full. A caller that is cancelled takes its command out if it has
        not begun; one that has begun runs to its end.
        """
        if self._task is None:
            raise Unavailable(f"{self.name} is not running; ask again shortly")
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        try:
            self._inbox.put_nowait((command, answer))
        except asyncio.QueueFull:
            raise QueueFull(f"{self.name} has {self._inbox.maxsize} commands waiting; ask again shortly") from None
        return await answer

    async def _run(self) -> None:
        while True:
            command, answer = await self._inbox.get()
            try:
                if not answer.done():
                    await self._answer(command, answer)
            finally:
                self._inbox.task_done()

    async def _answer(self, command: Callable[[], Awaitable[Any]], answer: "asyncio.Future[Any]") -> None:
        try:
            result = await command()
        except asyncio.CancelledError:
            # Only `stop` cancels the actor; a command that met a cancelled future of its own ends itself alone.
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                answer.cancel()
                return
            if not answer.done():
                answer.set_exception(Unavailable(f"{self.name} is stopping; ask again shortly"))
            raise
        except Exception as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(result)
