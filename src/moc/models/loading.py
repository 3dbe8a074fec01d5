"""How a version gets into memory: its files, the memory it is charged, its worker, what is learnt from it."""

import time
from collections.abc import Sequence

import structlog

from moc.kernel.errors import LoadFailed, MocError, NoCapacity
from moc.kernel.events import Event
from moc.kernel.tasks import Tasks
from moc.models.catalogue import Catalogue, Entry
from moc.models.footprints import Footprints
from moc.models.model import REMOTE, Artifact, ModelSpec, ModelVersion
from moc.models.ports import Grant, Launch, Memory, Progress, Sources, Warm, Worker, Workers
from moc.models.resident import Resident
from moc.models.slot import Limits, Slot
from moc.resilience.deadline import NEVER, Deadline

log = structlog.get_logger(__name__)

MEASURED_WITHIN_S = 6.0
"""A worker's memory has been measured since its first request when that is this long ago."""

IN_PLACE = "file:"
MAIN_MEMORY = "host"
"""The kind of device that what sleeps still takes most of."""


class Loader:
    """The steps of a load; who may take them, and when, is the manager's to say."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        workers: Workers,
        sources: Sources,
        footprints: Footprints,
        memory: Memory,
        limits: Limits,
        warm: Warm | None,
    ) -> None:
        self._catalogue = catalogue
        self._workers = workers
        self._sources = sources
        self._footprints = footprints
        self._memory = memory
        self._limits = limits
        self._warm = warm
        self._tasks = Tasks(lambda error: log.error("a pull could not be told of", exc_info=error))

    def adjust(self, limits: Limits) -> None:
        """Let these count from the next load on."""
        self._limits = limits

    async def stop(self) -> None:
        """Tell no more."""
        await self._tasks.cancel()

    async def has_changed(self, name: str, spec: ModelSpec) -> bool:
        """Whether the newest version is of this spec, and made of a file that is not what it was."""
        versions = self._catalogue.versions(name)
        artifact = versions[-1].version.artifact if versions else None
        if artifact is None or versions[-1].version.spec != spec or not spec.source.startswith(IN_PLACE):
            return False
        try:
            await self._sources.verify(artifact)
        except LoadFailed:
            return True
        return False

    async def pull(self, slot: Slot) -> Artifact:
        """The version's files, as they were hashed; fetched again when the coordinator's copy is gone."""
        await self._sources.verify_adapters(slot.entry.version.spec)
        entry = slot.entry
        if entry.version.artifact is not None:
            try:
                await self._sources.verify(entry.version.artifact)
            except LoadFailed:
                if entry.version.spec.source.startswith(IN_PLACE):
                    raise
            else:
                return entry.version.artifact
        artifact = await self._sources.fetch(entry.version.spec, self._pull_progress(entry))
        await self._catalogue.pulled(entry, artifact)
        return artifact

    def _pull_progress(self, entry: Entry) -> Progress:
        """Tells of a pull in events, one a second."""
        told = time.monotonic()

        def progress(done: int, total: int | None) -> None:
            nonlocal told
            if time.monotonic() - told >= 1.0:
                told = time.monotonic()
                data = {"done_bytes": done, "total_bytes": total}
                self._tasks.spawn(
                    self._catalogue.note(Event(kind="model.pulling", subject=entry.version.reference, data=data))
                )

        return progress

    async def launch(self, slot: Slot, artifact: Artifact) -> Worker:
        """Charge the memory, start the worker and try it; how long that may take is its caller's to say."""
        version = slot.entry.version
        grant = await self._grant(version, artifact)
        slot.evicted, slot.launched_at = grant.evicted, time.monotonic()
        launch = Launch(
            model=version.reference,
            digest=version.digest,
            runtime=version.spec.runtime,
            path=artifact.path,
            options=version.spec.options,
            devices=grant.devices,
            gpus=grant.gpus,
            bytes=grant.bytes,
        )
        worker = await self._workers.start_worker(launch, NEVER)
        if self._warm is not None:
            try:
                await self._warm(version, worker.id)
            except BaseException:
                await self._workers.stop_worker(worker.id, reason="LoadFailed")
                raise
        return worker

    async def _grant(self, version: ModelVersion, artifact: Artifact) -> Grant:
        if version.spec.runtime == REMOTE:
            return Grant(devices=(), bytes=0)
        needs = {
            kind: (await self._footprints.expected(version, artifact, device_kind=kind)).bytes
            for kind in self._memory.kinds(version)
        }
        asleep = [model for model in self._workers.sleeping() if model != version.reference]
        if asleep and MAIN_MEMORY in needs and not self._memory.has_room(version, needs):
            await self._end_sleeping(asleep)  # rather than unload what is awake
        try:
            return await self._memory.reserve(version, needs, Deadline.after(self._limits.memory_wait_s))
        except NoCapacity:
            asleep = self._workers.sleeping()
            if not asleep:
                raise
        await self._end_sleeping(asleep)  # even they keep a little of each device
        return await self._memory.reserve(version, needs, Deadline.after(self._limits.memory_wait_s))

    async def relieve(self) -> None:
        """End what sleeps if memory is short."""
        asleep = self._workers.sleeping()
        if asleep and self._memory.is_short():
            await self._end_sleeping(asleep)

    async def _end_sleeping(self, models: Sequence[str]) -> None:
        for model in models:
            await self._workers.end_sleeping(model)

    async def learn(self, slot: Slot, resident: Resident) -> None:
        """Tell how much it was last measured to hold; the store may be away, loading and unloading go on."""
        worker_id, used = resident.worker_id, resident.in_use_s() > MEASURED_WITHIN_S
        size, pids = self._workers.memory_bytes(worker_id), self._workers.pids(worker_id)
        holding = self._memory.measure(resident.reference, size, pids)
        if holding is None:
            return
        try:
            await self._footprints.learn(slot.entry.version, worker_id, holding, used=used)
        except MocError as error:
            log.warning("a footprint was not recorded", model=resident.reference, error=error.message)
