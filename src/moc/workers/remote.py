"""Engines that run elsewhere, as workers without a process: nothing to start, to charge or to adopt."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from moc.inference.request import Info, Reply, Request
from moc.kernel.clock import Clock
from moc.kernel.errors import DeadlineExceeded, LoadFailed, MocError, WorkerLost
from moc.kernel.events import Event
from moc.kernel.ids import new_id
from moc.kernel.records import Store
from moc.kernel.tasks import Tasks
from moc.models.model import FailReason
from moc.models.ports import HostSeat, Launch, Worker
from moc.resilience.deadline import Deadline

if TYPE_CHECKING:
    from moc.workers.upstream import Upstream

log = structlog.get_logger(__name__)

PREFIX = "rem"
"""What the ids of these workers begin with."""

FAILURES_MAX = 2
"""It is not sent requests any more when it was not well so many times in a row."""

RETRY_S = 1.0
"""How soon one that was not well is asked again, if it is not asked more often anyway."""


class RemoteLink:
    """The line to an upstream; implements the `Link` of inference."""

    def __init__(self, upstream: "Upstream", info: Info) -> None:
        self.info = info
        self.alive = True
        self.responsive = True
        self.in_flight = 0
        self._upstream = upstream

    async def infer(self, request: Request) -> Reply:
        """See `Upstream.infer`."""
        self._check()
        self.in_flight += 1
        try:
            return await self._upstream.infer(request)
        finally:
            self.in_flight -= 1

    async def stream(self, request: Request) -> AsyncGenerator[list[bytes], None]:
        """See `Upstream.stream`."""
        self._check()
        self.in_flight += 1
        try:
            async with contextlib.aclosing(self._upstream.stream(request)) as bunches:
                async for bunch in bunches:
                    yield bunch
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        """Requests under way end with WorkerLost."""
        self.alive = False
        await self._upstream.close()

    def _check(self) -> None:
        if not self.alive:
            raise WorkerLost("the remote was unloaded; try again", sent=False)


@dataclass(slots=True)
class _Held:
    worker: Worker
    link: RemoteLink
    watching: "asyncio.Task[None]"


class RemoteWorkers:
    """Implements `Workers` and `Links` with one HTTP client for each model; there are no records.

    A remote is never lost: one that is not well is not `responsive`, its worker `unresponsive`, until it is well
    again. `secrets` is where relative paths of keys start; `reach` decides whether an address may be connected to.
    """

    def __init__(
        self,
        *,
        store: Store,
        seat: HostSeat,
        host: str,
        clock: Clock,
        secrets: Path,
        reach: Callable[[str, int, str], None],
    ) -> None:
        self._store = store
        self._seat = seat
        self._host = host
        self._clock = clock
        self._secrets = secrets
        self._reach = reach
        self._held: dict[str, _Held] = {}
        self._tasks = Tasks(lambda error: log.error("watching a remote failed", exc_info=error))

    # life

    async def start(self) -> None:
        return

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        """Drop every connection."""
        await self._tasks.cancel()
        held, self._held = self._held, {}
        await asyncio.gather(*(each.link.close() for each in held.values()))

    # what models ask

    async def start_worker(self, launch: Launch, deadline: Deadline) -> Worker:
        """Find out whether the upstream is well, and what it can do; see `Workers.start_worker`."""
        from moc.workers.remote_options import remote_options
        from moc.workers.upstream import Upstream  # brings an HTTP client, which only those pay for who need it

        options = remote_options(launch, secrets=self._secrets, reach=self._reach)
        upstream = Upstream(options.upstream)
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                await upstream.start()
                await upstream.probe()
                info = await upstream.info()
            worker = self._worker(launch, info)
            await self._tell(worker, "worker.ready")
        except BaseException as error:
            await upstream.close()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(f"{launch.model} was not reached in time; allow more time") from None
            if isinstance(error, MocError) and not isinstance(error, LoadFailed):
                raise LoadFailed(error.message, reason=FailReason.LOAD_FAILED) from None
            raise
        watching = self._tasks.spawn(self._watch(worker.id, upstream, options.health_interval_s))
        self._held[worker.id] = _Held(worker, RemoteLink(upstream, info), watching)
        return worker

    async def stop_worker(self, worker_id: str, *, reason: str) -> None:
        """Drop its connections; see `Workers.stop_worker`."""
        held = self._held.pop(worker_id, None)
        if held is None:
            return
        held.watching.cancel()
        await held.link.close()
        await self._tell(held.worker, "worker.gone", reason=reason)

    def workers(self) -> list[Worker]:
        """Every remote held now, oldest first; their processes are none of ours: `pid` is 0."""
        return [held.worker for held in list(self._held.values())]

    # what inference asks

    def link(self, worker_id: str) -> RemoteLink | None:
        """The line to a remote, None when there is none now."""
        held = self._held.get(worker_id)
        return None if held is None else held.link

    def in_flight(self, worker_id: str) -> int:
        """How many requests it has not answered yet."""
        held = self._held.get(worker_id)
        return 0 if held is None else held.link.in_flight

    # watching

    def _worker(self, launch: Launch, info: Info) -> Worker:
        return Worker(
            id=new_id(PREFIX),
            host=self._host,
            pid=0,
            process_started_at=0.0,
            folder="",
            socket="",
            model=launch.model,
            digest=launch.digest,
            runtime=launch.runtime,
            state="ready",
            term=self._seat.term,
            started_at=self._clock.wall(),
            info=msgspec.to_builtins(info),
        )

    async def _watch(self, worker_id: str, upstream: "Upstream", interval_s: float) -> None:
        failures = 0
        while True:
            await asyncio.sleep(min(interval_s, RETRY_S) if failures else interval_s)
            held = self._held[worker_id]
            try:
                await upstream.probe()
            except MocError as error:
                failures += 1
                if failures == FAILURES_MAX:
                    held.link.responsive, held.worker = False, replace(held.worker, state="unresponsive")
                    await self._tell(held.worker, "worker.unresponsive", reason="NotWell", why=error.message)
            else:
                if failures >= FAILURES_MAX:
                    held.link.responsive, held.worker = True, replace(held.worker, state="ready")
                    await self._tell(held.worker, "worker.responsive")
                failures = 0

    async def _tell(self, worker: Worker, kind: str, *, reason: str = "", **data: str) -> None:
        """Nothing depends on these events, so that a store that is away holds nothing up."""
        upstream = worker.info["details"]["upstream"]
        event = Event(
            kind=kind, subject=worker.id, reason=reason, data={"model": worker.model, "upstream": upstream, **data}
        )
        try:
            await self._store.commit([], [event])
        except MocError as error:
            log.warning("an event of a remote was not recorded", event=kind, error=error.message)
