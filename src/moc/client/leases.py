"""Leases of device memory, as calls and as blocks that keep one alive."""

import asyncio
import contextlib
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self

from moc.client import calls
from moc.client.connection import AsyncConnection, Connection
from moc.client.views import LeaseView, Page
from moc.kernel.errors import Conflict, MocError, NotFound

Wish = Mapping[str, Any]
BEATS = 3
"""How often a lease is renewed within its ttl, and asked after within its grace."""

OVER = (Conflict, NotFound)
"""What a renewal raises once a lease is over; anything else may pass."""


def beat_s(ttl_s: float, grace_s: float) -> float:
    """How often to renew a lease so that it does not expire and a preemption is seen in time."""
    return max(0.1, min(ttl_s, max(grace_s, 1.0)) / BEATS)


class AsyncLeases:
    """Memory of devices that processes outside the coordinator have."""

    def __init__(self, line: AsyncConnection) -> None:
        self._line = line

    async def list(self, *, ended: bool = False, after: str | None = None, limit: int = 100) -> Page[LeaseView]:
        """The leases there are, oldest first; with `ended` also the last ones that are over."""
        return await self._line.send(calls.list_leases(ended, after, limit))

    async def show(self, lease_id: str) -> LeaseView:
        """One lease; NotFound when there is none."""
        return await self._line.send(calls.show_lease(lease_id))

    async def acquire(self, memory: str | int, **wish: Any) -> LeaseView:
        """A lease, granted; NoCapacity when that is not possible within `wait_s`, saying why.

        `wish` is `device` (`auto`, a kind or an id), `priority` (1 to 10), `ttl_s`, `wait_s`, `min_runtime_s`,
        `grace_s`, and `pid`, the process that uses it if it is on the coordinator's machine.
        """
        return await self._line.send(calls.acquire_lease({"memory": memory, **wish}))

    async def renew(self, lease_id: str, token: str, *, pid: int | None = None) -> LeaseView:
        """Keep it for another `ttl_s`, and say which process uses it; Conflict when it is over."""
        return await self._line.send(calls.renew_lease(lease_id, token, pid))

    async def release(self, lease_id: str, token: str) -> LeaseView:
        """Give it back; doing so again changes nothing."""
        return await self._line.send(calls.release_lease(lease_id, token))


class Leases:
    """Memory of devices that processes outside the coordinator have."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def list(self, *, ended: bool = False, after: str | None = None, limit: int = 100) -> Page[LeaseView]:
        """The leases there are, oldest first; with `ended` also the last ones that are over."""
        return self._line.send(calls.list_leases(ended, after, limit))

    def show(self, lease_id: str) -> LeaseView:
        """One lease; NotFound when there is none."""
        return self._line.send(calls.show_lease(lease_id))

    def acquire(self, memory: str | int, **wish: Any) -> LeaseView:
        """A lease, granted; NoCapacity when that is not possible within `wait_s`, saying why.

        `wish` is `device` (`auto`, a kind or an id), `priority` (1 to 10), `ttl_s`, `wait_s`, `min_runtime_s`,
        `grace_s`, and `pid`, the process that uses it if it is on the coordinator's machine.
        """
        return self._line.send(calls.acquire_lease({"memory": memory, **wish}))

    def renew(self, lease_id: str, token: str, *, pid: int | None = None) -> LeaseView:
        """Keep it for another `ttl_s`, and say which process uses it; Conflict when it is over."""
        return self._line.send(calls.renew_lease(lease_id, token, pid))

    def release(self, lease_id: str, token: str) -> LeaseView:
        """Give it back; doing so again changes nothing."""
        return self._line.send(calls.release_lease(lease_id, token))


class _Block:
    """What both blocks have in common: the lease as it was last told of, and whether it was taken away."""

    view: LeaseView
    """As the coordinator last told."""

    def __init__(self) -> None:
        self.taken = False

    @property
    def id(self) -> str:
        return self.view["id"]

    @property
    def token(self) -> str:
        """Proves the lease; it grows with every grant."""
        return self.view["token"] or ""

    @property
    def device(self) -> str:
        """Where the memory is, such as `cuda:0`."""
        return self.view["device"]

    def _beat_s(self) -> float:
        return beat_s(self.view["ttl_s"], self.view["grace_s"])

    def _learned(self, news: LeaseView | MocError) -> bool:
        """Whether the news is that the lease is being taken away, or is over, for the first time."""
        if isinstance(news, MocError):
            if not isinstance(news, OVER):
                return False
            self.view = {**self.view, "state": str(news.details.get("state", "expired")), "evict_in_s": 0.0}
        else:
            self.view = news
        before, self.taken = self.taken, self.view["state"] != "admitted"
        return self.taken and not before


def _for_this_process(wish: Wish, *, is_local: bool) -> Wish:
    return {**wish, "pid": os.getpid()} if wish.get("pid") is None and is_local else wish


class AsyncHeldLease(_Block):
    """A lease as an `async with` block. `taken` becomes true when it is preempted or over."""

    def __init__(self, line: AsyncConnection, wish: Wish, on_preempt: "AsyncNotice | None") -> None:
        super().__init__()
        self._line = line
        self._wish = wish
        self._on_preempt = on_preempt
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        wish = _for_this_process(self._wish, is_local=self._line.target.is_local)
        self.view = await self._line.send(calls.acquire_lease(wish))
        self._beating = asyncio.create_task(self._beat(), name=f"lease-{self.id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        with contextlib.suppress(MocError):  # it expires by itself
            self.view = await self._line.send(calls.release_lease(self.id, self.token))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._beat_s())
            try:
                news: LeaseView | MocError = await AsyncLeases(self._line).renew(self.id, self.token)
            except MocError as error:
                news = error
            if self._learned(news) and self._on_preempt is not None:
                told = self._on_preempt(self)
                if inspect.isawaitable(told):
                    await told
            if isinstance(news, OVER):
                return


class HeldLease(_Block):
    """A lease as a `with` block. `taken` becomes true when it is preempted or over."""

    def __init__(self, line: Connection, wish: Wish, on_preempt: "Notice | None") -> None:
        super().__init__()
        self._line = line
        self._wish = wish
        self._on_preempt = on_preempt
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        wish = _for_this_process(self._wish, is_local=self._line.target.is_local)
        self.view = self._line.send(calls.acquire_lease(wish))
        self._ended.clear()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{self.id}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(MocError):  # it expires by itself
            self.view = self._line.send(calls.release_lease(self.id, self.token))

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s()):
            try:
                news: LeaseView | MocError = Leases(self._line).renew(self.id, self.token)
            except MocError as error:
                news = error
            if self._learned(news) and self._on_preempt is not None:
                self._on_preempt(self)
            if isinstance(news, OVER):
                return


AsyncNotice = Callable[[AsyncHeldLease], Awaitable[None] | None]
Notice = Callable[[HeldLease], None]
"""What is called when a lease is being taken away."""
