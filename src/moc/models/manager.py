"""Loading and unloading: asked for the end state, it gets there once for all who ask.

Each version has one `Slot`. Everything runs on one event loop, so a request that finds a resident and enters
it cannot be overtaken by an unload in between.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from moc.kernel.errors import (
    CircuitOpen,
    Conflict,
    DeadlineExceeded,
    LoadFailed,
    MocError,
    NoCapacity,
    NotFound,
    QueueFull,
)
from moc.kernel.tasks import Tasks, to_the_end
from moc.models.catalogue import Catalogue, Entry, Trained
from moc.models.footprints import Footprints
from moc.models.loading import Loader
from moc.models.model import REMOTE, FailReason, ModelSpec, State
from moc.models.ports import Memory, Sources, Warm, Worker, Workers
from moc.models.resident import Resident
from moc.models.roster import Roster
from moc.models.slot import Limits, Slot
from moc.models.states import States
from moc.resilience.deadline import NEVER, Deadline

log = structlog.get_logger(__name__)

SWEEP_INTERVAL_S = 0.5
IDLE = "IdleTimeout"
ASLEEP = "Asleep"


class ModelManager:
    """Which models are loaded, and the only one who changes that."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        workers: Workers,
        sources: Sources,
        footprints: Footprints,
        memory: Memory,
        limits: Limits,
        on_loaded: Callable[[str, float], None],
        warm: Warm | None = None,
    ) -> None:
        self._loader = Loader(
            catalogue=catalogue,
            workers=workers,
            sources=sources,
            footprints=footprints,
            memory=memory,
            limits=limits,
            warm=warm,
        )
        self._catalogue = catalogue
        self._states = States(catalogue)
        self._workers = workers
        self._sources = sources
        self._memory = memory
        self._on_loaded = on_loaded
        self._roster = Roster(catalogue, limits, on_successor=self._succeed_in_background)
        self._tasks = Tasks(lambda error: log.error("a model task failed", exc_info=error))
        self._stopping = True
        workers.on_lost(self._lost)

    # life

    async def start(self) -> None:
        """Adopt the workers an earlier coordinator left, then bring back what was loaded, then preload."""
        self._stopping = False
        for worker in await self._workers.adopt():
            await self._adopt(worker)
        for name in self._catalogue.names():
            for entry in self._catalogue.versions(name):
                await self._settle(entry)
        self._tasks.spawn(self._sweep())

    async def drain(self) -> None:
        """Start no more loads; requests that run are drained by those who serve them."""
        self._stopping = True

    async def stop(self) -> None:
        self._stopping = True
        await self._tasks.cancel()
        await self._loader.stop()
        self._roster.clear()

    async def _adopt(self, worker: Worker) -> None:
        try:
            entry = self._catalogue.entry(worker.model)
        except NotFound:
            entry = None
        if entry is None or entry.version.digest != worker.digest:
            await self._workers.stop_worker(worker.id, reason="Unknown")
            return
        slot = self._roster.slot(entry)
        if slot.resident is not None:
            await self._workers.stop_worker(worker.id, reason="Duplicate")
            return
        if entry.status.state is not State.READY or entry.status.worker_id != worker.id:
            if entry.status.state is not State.LOADING:
                await self._catalogue.move(entry, State.REGISTERED, reason="CoordinatorRestarted")
                await self._catalogue.move(entry, State.LOADING, reason="Adopted")
            await self._catalogue.move(entry, State.READY, reason="Adopted", worker_id=worker.id, info=worker.info)
        self._memory.adopt(entry.version, worker)
        self._publish(slot, worker)

    async def _settle(self, entry: Entry) -> None:
        """Bring the recorded state in line with what is really there, and load what should be."""
        slot = self._roster.slot(entry)
        if slot.resident is not None or slot.loading is not None:
            return
        was = entry.status.state
        if was not in (State.REGISTERED, State.FAILED):
            await self._catalogue.move(entry, State.REGISTERED, reason="CoordinatorRestarted", worker_id="")
        if was in (State.READY, State.LOADING):
            self._load_in_background(slot, "CoordinatorRestarted")
        elif entry.version.spec.preload and self._catalogue.entry(entry.version.name) is entry:
            self._load_in_background(slot, "Preload")

    def adjust(self, limits: Limits) -> None:
        """Let these count from the next failure, the next request and the next load on."""
        self._roster.adjust(limits)
        self._loader.adjust(limits)

    # what requests ask

    def find(self, reference: str) -> Resident | None:
        """The loaded version `reference` stands for now, without waiting."""
        return self._roster.find(reference)

    def serving(self, reference: str) -> Entry:
        """The version that answers requests for `reference`; see `Roster.serving`."""
        return self._roster.serving(reference)

    def is_loading(self, reference: str) -> bool:
        """Whether the version `reference` stands for is being loaded already; NotFound."""
        return self._roster.slot(self.serving(reference)).loading is not None

    def load_left_s(self, reference: str) -> float:
        """How long its load takes from now on at the soonest, going by its last; 0 when that is not known; NotFound."""
        slot = self._roster.slot(self.serving(reference))
        return 0.0 if slot.reference in self._workers.sleeping() else slot.load_left_s

    async def ensure_ready(self, reference: str, deadline: Deadline) -> Resident:
        """Load it unless it is loaded; many callers share one load.

        NotFound, LoadFailed, CircuitOpen without a try after too many failures in a row, QueueFull when more than
        the model's `max_queue` callers wait already, DeadlineExceeded; a load goes on when its caller gives up.
        """
        entry = self.serving(reference)
        try:
            return await self._ensure(entry, deadline)
        except (LoadFailed, NoCapacity, CircuitOpen):
            instead = self.serving(reference)
            if instead is entry:
                raise
        return await self._ensure(instead, deadline)

    async def _ensure(self, entry: Entry, deadline: Deadline) -> Resident:
        slot = self._roster.slot(entry)
        if slot.resident is not None:
            return slot.resident
        if slot.loading is None:
            slot.admit()
        bulkhead = self._roster.limits.bulkhead.but(None, entry.version.spec.max_queue)
        if slot.waiting > bulkhead.max_queue:  # the first of them has its place already
            waits = f"{slot.waiting} requests wait for {slot.reference} to load"
            raise QueueFull(f"{waits}; try again shortly", retry_after_s=1)
        return await self._await_load(slot, deadline, reason="Requested", actor="system")

    def loaded(self) -> list[tuple[Entry, Resident]]:
        """Every version that is loaded now."""
        return [(slot.entry, slot.resident) for slot in self._roster.slots() if slot.resident is not None]

    async def evict(self, reference: str, *, reason: str, message: str) -> None:
        """Unload a version so that another fits; no error when it is not loaded."""
        slot = self._slot(reference)
        await self._unload_in_full(slot, reason=reason, actor="system", message=message, may_sleep=True)

    def hold(self, reference: str) -> None:
        """Unload a version neither for being idle nor for another, until `unhold` was called as often."""
        self._roster.hold(reference)

    def unhold(self, reference: str) -> None:
        """See `hold`."""
        self._roster.unhold(reference)

    def is_held(self, reference: str) -> bool:
        """See `hold`."""
        return self._roster.is_held(reference)

    def lose(self, reference: str, *, why: str) -> None:
        """Begin to end a version's worker, whatever it does; the next request loads it where it can be. Idempotent."""
        slot = self._slot(reference)
        if slot.resident is not None:
            worker_id = slot.resident.worker_id
            self._roster.withdraw(slot)
            self._tasks.spawn(self._end_lost(slot, worker_id, why))

    # what operators ask

    async def add(self, name: str, spec: ModelSpec, *, actor: str, trained: Trained | None = None) -> Entry:
        """Register a version; `name` means the newest one as soon as that is ready.

        It is loaded at once if an older one is. The newest one's spec again is that version again, unless it is made
        of a file that has changed since. One that was `trained` here: see `Catalogue.add`.
        """
        anew = await self._loader.has_changed(name, spec)
        entry = await self._catalogue.add(name, spec, actor=actor, anew=anew, trained=trained)
        self._roster.point(name)
        return entry

    def preload(self, reference: str) -> None:
        """Begin to load it, unless it is loaded."""
        self._load_in_background(self._slot(reference), "Preload")

    async def pull(self, reference: str, deadline: Deadline) -> Entry:
        """Bring a version's files here; returns at once when they are."""
        slot = self._slot(reference)
        try:
            async with asyncio.timeout(deadline.remaining_s()), slot.lock:
                await self._loader.pull(slot)
        except TimeoutError:
            raise DeadlineExceeded(f"{reference} was not pulled in time; pull again to go on from there") from None
        return slot.entry

    async def load(self, reference: str, deadline: Deadline, *, actor: str) -> Entry:
        """Load a version now, whatever failed before."""
        slot = self._slot(reference)
        slot.forgive()
        if slot.resident is None:
            await self._await_load(slot, deadline, reason="Requested", actor=actor)
        return slot.entry

    async def unload(self, reference: str, deadline: Deadline, *, actor: str, reason: str = "Requested") -> Entry:
        """Let its requests finish, end its worker, return when its memory is free; fine if it is not loaded."""
        slot = self._slot(reference)
        if slot.loading is not None:
            slot.loading.cancel()
            await asyncio.wait([slot.loading], timeout=deadline.remaining_s())
        await self._unload_in_full(slot, reason=reason, actor=actor, patience_s=deadline.remaining_s())
        await self._workers.end_sleeping(slot.reference)
        return slot.entry

    async def remove(self, reference: str, *, actor: str) -> None:
        """Unload and forget a version, or every version of a name; its files go when nothing else uses them.

        Conflict, and nothing is unloaded, while an alias names one of them. Who asks for one meanwhile is told so.
        """
        entries = self._catalogue.unused(reference)
        with self._roster.leaving(entries):
            for doomed in entries:
                await self.unload(doomed.version.reference, NEVER, actor=actor, reason="Removed")
                await self._catalogue.remove(doomed, actor=actor)
                self._roster.forget(doomed)
                for path in {*doomed.version.paths} - self._catalogue.paths():
                    await self._sources.discard(path)

    # loading

    def _slot(self, reference: str) -> Slot:
        return self._roster.slot(self._catalogue.entry(reference))

    async def _await_load(self, slot: Slot, deadline: Deadline, *, reason: str, actor: str) -> Resident:
        slot.check_stays()
        if slot.loading is None:
            slot.loading = self._tasks.spawn(self._load(slot, reason=reason, actor=actor))
            slot.loading.add_done_callback(lambda _: self._load_ended(slot))
        task = slot.loading
        slot.waiting += 1
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                return await asyncio.shield(task)
        except TimeoutError:
            raise DeadlineExceeded(f"{slot.reference} was not loaded in time; it goes on loading, ask again") from None
        except asyncio.CancelledError:
            if task.cancelled():
                raise Conflict(f"{slot.reference} was unloaded while it was loading") from None
            raise
        finally:
            slot.waiting -= 1

    def _load_ended(self, slot: Slot) -> None:
        task, slot.loading = slot.loading, None
        slot.give_up()
        if task is not None and not task.cancelled():
            task.exception()  # told to those who waited; nobody may have

    def _load_in_background(self, slot: Slot, reason: str) -> None:
        self._tasks.spawn(self._load_unasked(slot, reason))

    async def _load_unasked(self, slot: Slot, reason: str) -> None:
        if slot.resident is None:
            try:
                await self._await_load(slot, NEVER, reason=reason, actor="system")
            except MocError as error:
                log.warning("load failed", model=slot.reference, error=error.message)

    def _succeed_in_background(self, slot: Slot, predecessor: Slot) -> None:
        if not self._stopping:
            self._tasks.spawn(self._succeed(slot, predecessor))

    async def _succeed(self, slot: Slot, predecessor: Slot) -> None:
        """Load a version nobody has asked for yet, and not at the expense of the one that answers until then."""
        self.hold(predecessor.reference)
        try:
            await self._load_unasked(slot, "Successor")
        finally:
            self.unhold(predecessor.reference)

    async def _load(self, slot: Slot, *, reason: str, actor: str) -> Resident:
        async with slot.lock:
            if slot.resident is not None:
                return slot.resident
            await self._states.catch_up(slot)
            if slot.entry.status.state is not State.LOADING:
                await self._states.move(slot, State.LOADING, reason=reason, actor=actor)
            worker: Worker | None = None
            try:
                artifact = await self._loader.pull(slot)
                async with asyncio.timeout(self._roster.limits.load_timeout_s):
                    worker = await self._loader.launch(slot, artifact)
                load_s = round(time.monotonic() - slot.launched_at, 3)
                how = {"reason": reason, "actor": actor}
                await self._states.move(slot, State.READY, worker_id=worker.id, load_s=load_s, info=worker.info, **how)
                self._on_loaded(slot.reference, load_s)
                return self._publish(slot, worker)
            except BaseException as error:
                raise await to_the_end(self._not_loaded(slot, worker, error)) from None

    async def _not_loaded(self, slot: Slot, worker: Worker | None, error: BaseException) -> BaseException:
        """End what a load that failed or was cancelled has started, and record that; the error to tell."""
        if worker is not None:
            await self._workers.stop_worker(worker.id, reason="LoadFailed")
        if isinstance(error, Exception):
            return await self._failed(slot, error)
        self._memory.release(slot.reference)
        if not self._stopping:  # else it stays as it is, and the next coordinator loads it
            await self._states.move(slot, State.REGISTERED, reason="Cancelled", worker_id="")
        return error

    async def _failed(self, slot: Slot, error: Exception) -> MocError:
        """Record why it could not be loaded and bring back what made room for it; the error to tell."""
        self._memory.release(slot.reference)
        evicted, slot.evicted = slot.evicted, ()
        if isinstance(error, NoCapacity):
            failure: MocError = error  # tried again at the next request: memory comes and goes
            reason = FailReason.OUT_OF_MEMORY
            evicted = error.details.get("evicted", ())
        else:
            failure = told = slot.fail(error)
            reason = FailReason(told.reason)
        if slot.entry.status.state is not State.FAILED:
            await self._states.move(slot, State.FAILED, reason=reason, message=failure.message, worker_id="")
        for reference in evicted:
            self._load_in_background(self._slot(reference), "Restored")
        return failure

    def _publish(self, slot: Slot, worker: Worker) -> Resident:
        version = slot.entry.version
        resident = Resident(
            reference=version.reference,
            digest=version.digest,
            worker_id=worker.id,
            max_concurrent=version.spec.max_concurrent,
            max_queue=version.spec.max_queue,
            batching=version.spec.batching,
            adopted=worker.adopted,
        )
        self._roster.publish(slot, resident)
        if all(held.id != worker.id for held in self._workers.workers()):
            self._lost(worker, "ended right after it was ready")  # before anybody could be told
        return resident

    # unloading, and being bereaved

    async def _unload_in_full(self, slot: Slot, **how: Any) -> None:
        """Once begun it is done, though the caller is cancelled meanwhile."""
        await asyncio.shield(self._tasks.spawn(self._unload(slot, **how)))

    async def _unload(
        self,
        slot: Slot,
        *,
        reason: str,
        actor: str,
        patience_s: float | None = None,
        message: str = "",
        may_sleep: bool = False,
    ) -> None:
        async with slot.lock:
            resident = slot.resident
            if resident is None or (reason == IDLE and not self._is_idle(slot, resident)):
                return
            slot.forgive()
            self._roster.withdraw(slot)
            await self._states.pass_through(slot, State.DRAINING, reason=reason, actor=actor)
            limit = self._roster.limits.drain_timeout_s
            await resident.idle(limit if patience_s is None else min(limit, patience_s))
            await self._states.pass_through(slot, State.UNLOADING, reason=reason, actor=actor)
            await self._loader.learn(slot, resident)
            await self._workers.stop_worker(resident.worker_id, reason=reason, may_sleep=may_sleep)
            self._memory.release(slot.reference)
            if slot.reference in self._workers.sleeping():
                reason = ASLEEP
            await self._states.move(slot, State.REGISTERED, reason=reason, actor=actor, worker_id="", message=message)

    def _lost(self, worker: Worker, why: str) -> None:
        for slot in self._roster.slots():
            if slot.resident is not None and slot.resident.worker_id == worker.id:
                self._roster.withdraw(slot)
                if not self._stopping:
                    self._tasks.spawn(self._recover(slot, why))
                return

    async def _recover(self, slot: Slot, why: str) -> None:
        """Start a crashed worker again, unless it keeps crashing."""
        async with slot.lock:
            if slot.resident is not None or slot.entry.status.state is not State.READY:
                return
            self._memory.release(slot.reference)
            down = slot.crash(why)
            if down is not None:
                await self._failed(slot, down)
                return
            message = f"the worker of {slot.reference} died: {why}"
            await self._states.move(slot, State.LOADING, reason="WorkerLost", message=message, worker_id="")
        self._load_in_background(slot, "WorkerLost")

    async def _end_lost(self, slot: Slot, worker_id: str, why: str) -> None:
        async with slot.lock:
            await self._workers.stop_worker(worker_id, reason="DeviceLost")
            self._memory.release(slot.reference)
            message = f"{slot.reference} was ended: {why}; the next request loads it again where it can be"
            await self._states.move(
                slot, State.FAILED, reason=FailReason.RUNTIME_UNHEALTHY, message=message, worker_id=""
            )

    async def _catch_up(self, slot: Slot) -> None:
        async with slot.lock:
            await self._states.catch_up(slot)

    async def _sweep(self) -> None:
        """Unload what has been idle for its ttl; learn what those that are loaded take."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            try:
                await self._loader.relieve()
                for slot in self._roster.slots():
                    await self._look_after(slot)
            except MocError as error:
                log.warning("not every model could be looked after", error=error.message)

    async def _look_after(self, slot: Slot) -> None:
        resident = slot.resident
        if resident is None:
            if slot.behind and not slot.lock.locked():
                self._tasks.spawn(self._catch_up(slot))
            return
        await self._loader.learn(slot, resident)
        if self._is_idle(slot, resident):
            self._tasks.spawn(self._unload(slot, reason=IDLE, actor="system", may_sleep=True))

    def _is_idle(self, slot: Slot, resident: Resident) -> bool:
        """Whether it has had nothing to do for so long that it may go."""
        spec = slot.entry.version.spec
        kept = spec.pin or not spec.ttl_s or spec.runtime == REMOTE or self.is_held(slot.reference)
        return not kept and resident.idle_s() >= spec.ttl_s
