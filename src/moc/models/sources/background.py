"""Blocking work in a thread, that stops when its caller does."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from moc.models.ports import Progress

T = TypeVar("T")


class Stopped(Exception):
    """The caller was cancelled: leave everything as it is."""


class Job:
    """What blocking work is given to report to its caller and to hear from it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, progress: Progress | None) -> None:
        self._loop = loop
        self._progress = progress
        self._stopping = threading.Event()

    def step(self, done_bytes: int, total_bytes: int | None) -> None:
        """Say how far the work is; raises Stopped once nobody wants it any more."""
        if self._stopping.is_set():
            raise Stopped
        if self._progress is not None:
            self._loop.call_soon_threadsafe(self._progress, done_bytes, total_bytes)

    def stop(self) -> None:
        """Have the next `step` raise Stopped."""
        self._stopping.set()


async def in_thread(work: Callable[[Job], T], progress: Progress | None = None) -> T:
    """Run `work` in a thread and return what it returns.

    Cancelling stops the work at its next step and takes effect when it has stopped, so that nothing goes
    on behind the back of whoever comes next.
    """
    loop = asyncio.get_running_loop()
    job = Job(loop, progress)
    thread = loop.run_in_executor(None, work, job)
    cancelled: asyncio.CancelledError | None = None
    while not thread.done():
        try:
            await asyncio.wait([thread])
        except asyncio.CancelledError as error:
            job.stop()
            cancelled = error
    if cancelled is not None:
        thread.exception()  # the caller's own end goes first
        raise cancelled
    return thread.result()
