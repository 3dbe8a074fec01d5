"""Work that goes on from start to stop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger(__name__)


class Routine:
    """Runs `work` in a task of its own, which is not to end by itself: if it does, that is a fault, and told."""

    def __init__(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._name = name
        self._work = work
        self._task: asyncio.Task[None] | None = None

    @property
    def runs(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._task is not None

    def start(self) -> None:
        """Begin; does nothing while it runs."""
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name=self._name)
            self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Cancel it, and wait until it has ended; does nothing while it does not run."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            log.error("what should go on has ended", routine=self._name, exc_info=task.exception())
