"""Workers that sleep: they keep their process, and have given the memory of their devices back."""

import asyncio

import structlog

from moc.kernel.errors import MocError
from moc.models.ports import Launch, Worker
from moc.resilience.deadline import Deadline
from moc.workers.local import LocalWorkers

log = structlog.get_logger(__name__)

SLEEP_TIMEOUT_S = 60.0


class Sleepers:
    """Which local workers sleep, by the model they hold. They are charged nothing: what they keep is measured.

    A later coordinator does not adopt them, for they could not answer; it ends them.
    """

    def __init__(self, local: LocalWorkers) -> None:
        self._local = local
        self._asleep: dict[str, Worker] = {}
        local.on_lost(lambda worker, _: self._lost(worker))

    def models(self) -> list[str]:
        """The models (`name@version`) whose workers sleep."""
        return list(self._asleep)

    def has(self, worker_id: str) -> bool:
        """Whether this worker sleeps; one that is falling asleep or waking does not, for its memory is charged."""
        return any(worker.id == worker_id for worker in list(self._asleep.values()))

    async def lay(self, worker_id: str) -> bool:
        """Put a worker to sleep, if it can; whether it sleeps now."""
        link = self._local.link(worker_id)
        if link is None or not link.info.sleeps:
            return False
        try:
            async with asyncio.timeout(SLEEP_TIMEOUT_S):
                worker = await self._local.note(worker_id, state="asleep")  # first: it is not to be adopted from now on
                await link.sleep(True)
        except (MocError, TimeoutError) as error:
            log.warning("a worker does not fall asleep; ending it", worker=worker_id, error=str(error))
            return False
        self._asleep[worker.model] = worker
        return True

    async def wake(self, launch: Launch, deadline: Deadline) -> Worker | None:
        """The worker that slept with this model, awake on these devices; None when another has to be started."""
        worker = self._asleep.pop(launch.model, None)
        if worker is None:
            return None
        link = self._local.link(worker.id)
        try:
            if link is not None and (worker.digest, worker.devices) == (launch.digest, launch.devices):
                async with asyncio.timeout(deadline.remaining_s()):
                    await link.sleep(False)
                    return await self._local.note(worker.id, state="ready", size=launch.bytes)
        except (MocError, TimeoutError) as error:
            log.warning("a worker does not wake up; starting another", worker=worker.id, error=str(error))
        except asyncio.CancelledError:
            await self._local.stop_worker(worker.id, reason="Cancelled")
            raise
        await self._local.stop_worker(worker.id, reason="NotWoken")
        return None

    def _lost(self, worker: Worker) -> None:
        if self.has(worker.id):
            del self._asleep[worker.model]

    async def end(self, model: str) -> None:
        """End the worker that sleeps with this model; no error when there is none."""
        worker = self._asleep.pop(model, None)
        if worker is not None:
            await self._local.stop_worker(worker.id, reason="Asleep")
