"""All workers, whether they are processes of this host or run elsewhere."""

import asyncio
from collections.abc import Callable

from moc.models.model import REMOTE
from moc.models.ports import Launch, Worker
from moc.resilience.deadline import Deadline
from moc.workers.link import WorkerLink
from moc.workers.local import LocalWorkers
from moc.workers.remote import PREFIX, RemoteLink, RemoteWorkers
from moc.workers.sleepers import Sleepers


class Fleet:
    """Implements `Workers` and `Links` over both kinds, which are told apart by their ids."""

    def __init__(self, *, local: LocalWorkers, remote: RemoteWorkers) -> None:
        self._local = local
        self._remote = remote
        self._sleepers = Sleepers(local)

    async def start(self) -> None:
        """Start both."""
        await self._local.start()
        await self._remote.start()

    async def drain(self) -> None:
        """Drain both."""
        await asyncio.gather(self._local.drain(), self._remote.drain())

    async def stop(self) -> None:
        """Stop both."""
        await asyncio.gather(self._local.stop(), self._remote.stop())

    async def stop_workers(self) -> None:
        """End every process; what runs elsewhere goes on."""
        await self._local.stop_workers()

    async def start_worker(self, launch: Launch, deadline: Deadline) -> Worker:
        """See `Workers.start_worker`."""
        if launch.runtime == REMOTE:
            return await self._remote.start_worker(launch, deadline)
        return await self._sleepers.wake(launch, deadline) or await self._local.start_worker(launch, deadline)

    async def stop_worker(self, worker_id: str, *, reason: str, may_sleep: bool = False) -> None:
        """See `Workers.stop_worker`."""
        if not may_sleep or not await self._sleepers.lay(worker_id):
            await self._of(worker_id).stop_worker(worker_id, reason=reason)

    def sleeping(self) -> list[str]:
        """See `Workers.sleeping`."""
        return self._sleepers.models()

    async def end_sleeping(self, model: str) -> None:
        """See `Workers.end_sleeping`."""
        await self._sleepers.end(model)

    def replace_worker(self, worker_id: str, *, why: str) -> None:
        """See `LocalWorkers.replace_worker`; what runs elsewhere is not ours to replace."""
        self._local.replace_worker(worker_id, why=why)

    async def adopt(self) -> list[Worker]:
        """See `Workers.adopt`; there is nothing of a remote that could be left."""
        return await self._local.adopt()

    def workers(self) -> list[Worker]:
        """Every worker held now that is not asleep; any thread may ask."""
        awake = [worker for worker in self._local.workers() if not self._sleepers.has(worker.id)]
        return [*awake, *self._remote.workers()]

    def on_lost(self, callback: Callable[[Worker, str], None]) -> None:
        """See `Workers.on_lost`; a remote is never lost."""
        self._local.on_lost(callback)

    def memory_bytes(self, worker_id: str) -> int:
        """See `Workers.memory_bytes`; a remote takes none that is known."""
        return self._local.memory_bytes(worker_id)

    def pids(self, worker_id: str) -> frozenset[int]:
        """See `Workers.pids`; a remote has none here."""
        return self._local.pids(worker_id)

    def link(self, worker_id: str) -> WorkerLink | RemoteLink | None:
        """The line to a worker, None when there is none now."""
        return self._of(worker_id).link(worker_id)

    def in_flight(self, worker_id: str) -> int:
        """How many requests the worker has not answered yet."""
        return self._of(worker_id).in_flight(worker_id)

    def _of(self, worker_id: str) -> LocalWorkers | RemoteWorkers:
        return self._remote if worker_id.startswith(f"{PREFIX}-") else self._local
