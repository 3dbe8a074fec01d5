"""Noticing that a client has left while its request is worked on, at next to no cost to those that stay."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


class Watch:
    """Within it, the task that entered is cancelled when `left` returns.

    It begins to look once the watchman comes by: most requests are over by then.
    """

    __slots__ = ("_left", "_task", "_watcher", "_watchman")

    def __init__(self, watchman: "Watchman", left: Callable[[], Awaitable[None]]) -> None:
        self._watchman = watchman
        self._left = left
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._watchman.add(self)

    def __exit__(self, *_: object) -> None:
        self._watchman.remove(self)
        if self._watcher is not None:
            self._watcher.cancel()

    def begin(self) -> None:
        """Look from now on."""
        self._watcher = asyncio.get_running_loop().create_task(self._wait(), name="disconnect-watch")

    async def _wait(self) -> None:
        await self._left()
        if self._task is not None:
            self._task.cancel()


class Watchman:
    """Makes watches begin when they are `after_s` to twice that old: one timer for all, none when there are none."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._new: set[Watch] = set()
        self._old: set[Watch] = set()
        self._armed = False

    def add(self, watch: Watch) -> None:
        """Let it begin when its time has come."""
        self._new.add(watch)
        if not self._armed:
            self._arm()

    def remove(self, watch: Watch) -> None:
        """It is not needed any more."""
        self._new.discard(watch)
        self._old.discard(watch)

    def _arm(self) -> None:
        self._armed = True
        asyncio.get_running_loop().call_later(self._after_s, self._come_by)

    def _come_by(self) -> None:
        for watch in self._old:
            watch.begin()
        self._old, self._new = self._new, set()
        self._armed = False
        if self._old:
            self._arm()
