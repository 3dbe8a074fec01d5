"""Requests to an external server, and an eye on whether it still answers."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncGenerator

import msgspec

from moc.inference.request import Info, Reply, Request
from moc.kernel.errors import LoadFailed, MocError
from moc.workers.runtimes.served.plan import Hook, Plan
from moc.workers.runtimes.served.server import Server
from moc.workers.upstream import Upstream

PAUSE_S = 0.05
PAUSE_MAX_S = 1.0
PAUSE_GROWTH = 1.5
FAILURES_MAX = 3


class Engine:
    """A server that is being started, or is ready. Its death ends this process; see the log for the reason."""

    info: Info

    def __init__(self, server: Server, upstream: Upstream, plan: Plan) -> None:
        self._server = server
        self._upstream = upstream
        self._plan = plan
        self._answered = False
        self._asleep = False
        self._ended: asyncio.Future[None]
        self._watching: asyncio.Task[None]

    async def ready(self, port: int) -> None:
        """Wait until it is healthy, then keep watching it; LoadFailed when it ends or takes too long."""
        self._ended = asyncio.ensure_future(asyncio.to_thread(self._server.wait))
        await self._upstream.start()
        await self._until_healthy()
        info = await self._upstream.info()
        self.info = msgspec.structs.replace(
            info,
            engine=self._server.name,
            details={**info.details, "pid": self._server.pid, "port": port},
            sleeps=self._plan.sleep is not None,
        )
        self._watching = asyncio.create_task(self._watch())

    async def infer(self, request: Request) -> Reply:
        """The server's answer."""
        reply = await self._upstream.infer(request)
        self._answered = True
        return reply

    async def stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The server's chunks."""
        async with contextlib.aclosing(self._upstream.stream(request)) as bunches:
            async for bunch in bunches:
                self._answered = True
                for chunk in bunch:
                    yield chunk

    async def sleep(self) -> None:
        """Have the server give the memory of its devices back; how it is, it is not asked meanwhile."""
        self._asleep = True
        await self._post(self._plan.sleep)

    async def wake(self) -> None:
        """Have it take the memory again."""
        await self._post(self._plan.wake)
        await self._until_healthy()
        self._asleep = False

    async def close(self) -> None:
        """Tell the server to end, and wait until it has."""
        self._watching.cancel()
        self._server.stop(self._plan.stop_signal)
        await self._ended

    async def _post(self, hook: Hook | None) -> None:
        if hook is not None:
            await self._upstream.post(hook.path, hook.body)

    async def _until_healthy(self) -> None:
        name, limit_s, pause_s = self._server.name, self._plan.start_timeout_s, PAUSE_S
        latest = time.monotonic() + limit_s
        while (trouble := await self._trouble()) and not self._ended.done():
            if time.monotonic() > latest:
                raise LoadFailed(f"{name} was not ready within {limit_s:g} s: {trouble}", reason="load_failed")
            await asyncio.wait([self._ended], timeout=pause_s)
            pause_s = min(PAUSE_MAX_S, pause_s * PAUSE_GROWTH)
        if self._ended.done():  # what answers then is somebody else at its port
            raise LoadFailed(f"{name} {self._server.how_it_ended()} before it was ready", reason="load_failed")

    async def _watch(self) -> None:
        name, failures, trouble = self._server.name, 0, ""
        while failures < FAILURES_MAX:
            self._answered = False
            await asyncio.wait([self._ended], timeout=self._plan.health_interval_s)
            if self._ended.done():
                _end(f"{name} {self._server.how_it_ended()}")
            trouble = "" if self._asleep else await self._trouble()
            failures = failures + 1 if trouble and not self._answered else 0
        _end(f"{name} was not well {failures} times in a row: {trouble}")

    async def _trouble(self) -> str:
        """What is wrong with it, empty when it is well."""
        try:
            await self._upstream.probe()
        except MocError as error:
            return error.message
        return ""


def _end(why: str) -> None:
    """End this process: the coordinator is to start another. What is left of the server goes with it."""
    print(why, file=sys.stderr, flush=True)
    os._exit(1)
