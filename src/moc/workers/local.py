"""Workers as processes of this host: started, adopted, watched, ended."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import structlog

from moc.inference.request import Info
from moc.kernel.clock import Clock
from moc.kernel.errors import (
    DeadlineExceeded,
    Internal,
    LoadFailed,
    MocError,
    NotLeader,
    Unavailable,
    WorkerLost,
)
from moc.kernel.events import Event
from moc.kernel.ids import new_id
from moc.kernel.records import ABSENT, Store, Table
from moc.kernel.tasks import Tasks, to_the_end
from moc.models.ports import HostSeat, Launch, Worker
from moc.resilience.deadline import Deadline
from moc.workers.diagnosis import explained, telling
from moc.workers.folder import Folder
from moc.workers.heartbeat import INTERVAL_S, Patience, Vigil
from moc.workers.link import WorkerLink
from moc.workers.process import Process, kill_left_behind
from moc.workers.wire import Hello

log = structlog.get_logger(__name__)

CLAIM_TIMEOUT_S = 5.0
DEATH_TIMEOUT_S = 0.5
"""How long after its connection a worker's process may still be seen alive before it is asked again."""

MEASURE_INTERVAL_S = 3.0
TERM_GRACE_S = 2.0
THREADS = 16


@dataclass(slots=True)
class _Held:
    """A worker of ours. `ending` is there from the moment it is to end, and done when it has."""

    worker: Worker
    folder: Folder
    vigil: Vigil
    revision: int | None = ABSENT
    token: str = ""
    process: Process | None = None
    link: WorkerLink | None = None
    ending: "asyncio.Task[None] | None" = None
    memory_bytes: int = 0
    responsive: bool = True


class LocalWorkers:
    """Implements `Workers` and `Links` with one process for each model. Records: `workers/<id>`.

    `run_dir` holds the private folders; a worker nobody claims for `orphan_grace_s` ends by itself; one
    that is told to end has `stop_grace_s` to do it; one that is silent for longer than `patience` allows is
    killed, and lost. Stopping this leaves the workers alive for adoption, unless `stop_workers` was called before.
    """

    def __init__(
        self,
        *,
        store: Store,
        seat: HostSeat,
        host: str,
        run_dir: Path,
        orphan_grace_s: float,
        stop_grace_s: float,
        clock: Clock,
        patience: Patience,
    ) -> None:
        self._store = store
        self._seat = seat
        self._host = host
        self._run_dir = run_dir
        self._orphan_grace_s = orphan_grace_s
        self._stop_grace_s = stop_grace_s
        self._clock = clock
        self._patience = patience
        self._holder = new_id("hld")
        self._table: Table[Worker] = Table(store, "workers/", Worker)
        self._held: dict[str, _Held] = {}
        self._callbacks: list[Callable[[Worker, str], None]] = []
        self._tasks = Tasks(lambda error: log.error("a worker task failed", exc_info=error))
        self._threads: ThreadPoolExecutor | None = None
        self._watching: list[asyncio.Task[None]] = []

    # life

    async def start(self) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, "workers")
            self._watching = [asyncio.create_task(self._measure()), asyncio.create_task(self._listen())]

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        """Let go of every worker, leaving it to be adopted; those that are starting are ended."""
        watching, self._watching = self._watching, []
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        for held in list(self._held.values()):
            if held.worker.state == "starting":
                await asyncio.wait([self._begin_end(held, reason="Shutdown", politely=False)])
            elif held.link is not None and held.ending is None:
                held.link.close()
        await self._tasks.settle()
        self._held.clear()
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=True)

    async def stop_workers(self) -> None:
        """End every worker."""
        await asyncio.gather(*(self.stop_worker(worker_id, reason="Shutdown") for worker_id in list(self._held)))

    # what models ask

    async def start_worker(self, launch: Launch, deadline: Deadline) -> Worker:
        """Spawn a worker and wait until its model is loaded; see `Workers.start_worker`."""
        worker_id = new_id("wrk")
        folder = Folder.place(self._run_dir, worker_id)
        held = _Held(
            Worker(
                id=worker_id,
                host=self._host,
                pid=0,
                process_started_at=0.0,
                folder=str(folder.path),
                socket=folder.socket_path,
                model=launch.model,
                digest=launch.digest,
                runtime=launch.runtime,
                state="starting",
                term=self._seat.term,
                started_at=self._clock.wall(),
                devices=launch.devices,
                bytes=launch.bytes,
            ),
            folder,
            Vigil(self._patience),
        )
        self._held[worker_id] = held
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                await self._record(held, Event(kind="worker.starting", subject=worker_id, data={"model": launch.model}))
                await self._bring_up(held, launch)
        except BaseException as error:
            reason = "Cancelled" if isinstance(error, asyncio.CancelledError) else "LoadFailed"
            try:
                failure = await self._explain(held, launch, error)
            finally:
                await self._to_the_end(held, reason=reason, politely=False)
            raise failure from None
        return held.worker

    async def stop_worker(self, worker_id: str, *, reason: str) -> None:
        """End a worker and all its children; see `Workers.stop_worker`."""
        held = self._held.get(worker_id)
        if held is not None:
            await self._to_the_end(held, reason=reason, politely=True)

    async def note(self, worker_id: str, *, state: str, size: int | None = None) -> Worker:
        """Record that a worker is `asleep`, or `ready` again and charged `size`; WorkerLost when it is gone."""
        held = self._held.get(worker_id)
        if held is not None and held.ending is None:
            held.worker = replace(held.worker, state=state, bytes=held.worker.bytes if size is None else size)
            await self._record(held, self._event(held, f"worker.{state}"))
            if self.link(worker_id) is not None:
                return held.worker
        raise WorkerLost(f"worker {worker_id} is gone", sent=False)

    async def adopt(self) -> list[Worker]:
        """Claim what an earlier coordinator left here, clear up what is dead; see `Workers.adopt`."""
        records = await self._table.list()
        ours = [
            (worker, revision)
            for key, worker, revision in records
            if worker.host == self._host and key not in self._held
        ]
        adopted = await asyncio.gather(*(self._adopt(worker, revision) for worker, revision in ours))
        await self._in_thread(self._clear_strays, {key for key, _, _ in records} | set(self._held))
        return [worker for worker in adopted if worker is not None]

    def replace_worker(self, worker_id: str, *, why: str) -> None:
        """Kill a worker and have it told as lost, so that another takes its place; no error when it is gone already."""
        held = self._held.get(worker_id)
        if held is not None and held.process is not None and held.ending is None:
            held.ending = self._tasks.spawn(self._bury(held, held.process, why))

    def workers(self) -> list[Worker]:
        """Every worker held now, oldest first."""
        return [held.worker for held in list(self._held.values())]  # one step: other threads look, too

    def on_lost(self, callback: Callable[[Worker, str], None]) -> None:
        """Have `callback(worker, why)` called on the event loop when a worker dies unasked."""
        self._callbacks.append(callback)

    def memory_bytes(self, worker_id: str) -> int:
        """Memory of the worker's process tree as measured some seconds ago, 0 when unknown."""
        held = self._held.get(worker_id)
        return 0 if held is None else held.memory_bytes

    def pids(self, worker_id: str) -> frozenset[int]:
        """The worker's process tree as seen some seconds ago, empty when unknown."""
        held = self._held.get(worker_id)
        return frozenset() if held is None or held.process is None else held.process.tree()

    # what inference asks

    def link(self, worker_id: str) -> WorkerLink | None:
        """The line to a worker, None when there is none now."""
        held = self._held.get(worker_id)
        if held is None or held.link is None or not held.link.alive:
            return None
        return held.link

    def in_flight(self, worker_id: str) -> int:
        """How many requests the worker has not answered yet."""
        link = self.link(worker_id)
        return 0 if link is None else link.in_flight

    # starting

    async def _bring_up(self, held: _Held, launch: Launch) -> None:
        description = {
            "model": launch.model,
            "runtime": launch.runtime,
            "path": launch.path,
            "options": launch.options,
            "orphan_grace_s": self._orphan_grace_s,
        }
        held.token, listener = held.folder.create(description)
        with listener:
            held.process = Process.spawn(
                held.folder.path, held.folder.log, listener=listener.fileno(), gpus=launch.gpus
            )
        held.worker = replace(held.worker, pid=held.process.pid, process_started_at=held.process.started_at)
        held.link = await self._connect(held)
        info = await held.link.loaded()
        held.worker = replace(held.worker, state="ready", info=_builtins(info))
        held.memory_bytes = await self._in_thread(held.process.memory_bytes)
        await self._record(held, self._event(held, "worker.ready"))
        if not held.link.alive:
            raise WorkerLost(f"worker {held.worker.id} died as soon as it was ready", sent=False)

    async def _connect(self, held: _Held) -> WorkerLink:
        hello = Hello(held.token, self._seat.term, self._holder)
        return await WorkerLink.connect(
            held.worker.id, held.folder.socket_path, hello, lambda link: self._lost(held, link)
        )

    async def _explain(self, held: _Held, launch: Launch, error: BaseException) -> BaseException:
        """The error `start_worker` ends with."""
        model = held.worker.model
        if isinstance(error, TimeoutError):
            return DeadlineExceeded(f"{model} was not loaded in time; allow more time")
        if isinstance(error, OSError):
            return LoadFailed(f"no worker can be started for {model}: {error.strerror or error}", reason="load_failed")
        if isinstance(error, WorkerLost) and held.process is not None:
            await self._in_thread(held.process.wait, DEATH_TIMEOUT_S)
            error = LoadFailed(
                f"the worker of {model} {held.process.how_it_ended()} while it was loading", reason="load_failed"
            )
        if not isinstance(error, LoadFailed):
            return error
        return explained(error, held.folder, launch)

    # adopting

    async def _adopt(self, worker: Worker, revision: int) -> Worker | None:
        folder = Folder(Path(worker.folder))
        held = _Held(worker, folder, Vigil(self._patience), revision, token=folder.token() or "")
        pid = worker.pid or folder.pid()
        held.process = await self._in_thread(_process_of, folder, pid)
        self._held[worker.id] = held
        try:
            async with asyncio.timeout(CLAIM_TIMEOUT_S):
                if held.process is not None and worker.state == "ready":
                    held.link = await self._connect(held)
        except NotLeader:
            del self._held[worker.id]
            raise
        except (MocError, TimeoutError) as error:
            log.warning("a worker could not be adopted", worker=worker.id, error=str(error))
        if held.link is None or not held.link.is_loaded:
            if held.process is None and pid is not None:
                await self._in_thread(kill_left_behind, pid, worker.process_started_at or None)
            await self._to_the_end(held, reason="NotAdopted", politely=False)
            return None
        held.worker = replace(worker, state="ready", adopted=True, term=self._seat.term, info=_builtins(held.link.info))
        try:
            await self._record(held, self._event(held, "worker.adopted"))
        except BaseException:
            held.link.close()
            del self._held[worker.id]
            raise
        if held.process is not None:
            held.memory_bytes = await self._in_thread(held.process.memory_bytes)
        return held.worker

    def _clear_strays(self, known: set[str]) -> None:
        """End and delete what has a folder but no record."""
        if not self._run_dir.is_dir():
            return
        for path in self._run_dir.iterdir():
            if path.name in known or not path.name.startswith("wrk-"):
                continue
            folder = Folder(path)
            process = _process_of(folder, folder.pid())
            if process is not None:
                process.kill_tree()
            folder.remove()

    # ending

    async def _to_the_end(self, held: _Held, *, reason: str, politely: bool) -> None:
        """End a worker, whoever else asks for it and however often the caller is cancelled."""
        await to_the_end(self._begin_end(held, reason=reason, politely=politely))

    def _begin_end(self, held: _Held, *, reason: str, politely: bool) -> "asyncio.Task[None]":
        if held.ending is None:
            held.ending = self._tasks.spawn(self._end(held, reason=reason, politely=politely))
        return held.ending

    async def _end(self, held: _Held, *, reason: str, politely: bool) -> None:
        try:
            if politely:
                await self._record_draining(held)
                await self._ask_to_end(held)
            if held.link is not None:
                held.link.close()
            if held.process is not None:
                await self._kill(held.process)
            await self._in_thread(held.folder.remove)
            await self._forget(held, self._event(held, "worker.gone", reason=reason))
        except NotLeader:
            # the newer coordinator has the record, and the worker
            if held.link is not None:
                held.link.close()
            raise
        finally:
            self._held.pop(held.worker.id, None)

    async def _record_draining(self, held: _Held) -> None:
        """Nothing but a newer coordinator keeps a worker from being ended."""
        held.worker = replace(held.worker, state="draining")
        try:
            await self._record(held)
        except NotLeader:
            raise
        except MocError as error:
            log.warning("a worker ends unrecorded", worker=held.worker.id, error=error.message)

    async def _ask_to_end(self, held: _Held) -> None:
        if held.process is None:
            return
        await self._in_thread(held.process.note_offspring)
        if held.link is not None and held.link.alive:
            held.link.stop()
            if await self._in_thread(held.process.wait, self._stop_grace_s):
                return
        held.process.terminate()
        await self._in_thread(held.process.wait, TERM_GRACE_S)

    async def _kill(self, process: Process) -> None:
        while not await self._in_thread(process.kill_tree):
            log.error("a worker process does not die; waiting for it", pid=process.pid)

    # being bereaved

    def _lost(self, held: _Held, link: WorkerLink) -> None:
        if held.link is link and held.ending is None and held.worker.state in ("ready", "asleep"):
            self._tasks.spawn(self._recover(held))

    async def _recover(self, held: _Held) -> None:
        """The line broke: draw a new one if the worker lives, else say that it is dead."""
        process = held.process
        if process is None:
            return
        if not await self._in_thread(process.wait, DEATH_TIMEOUT_S):
            try:
                async with asyncio.timeout(CLAIM_TIMEOUT_S):
                    held.link = await self._connect(held)
                return
            except NotLeader:
                self._held.pop(held.worker.id, None)
                self._tell_lost(held.worker, "was claimed by a newer coordinator")
                return
            except (MocError, TimeoutError):
                log.warning("a worker does not answer; ending it", worker=held.worker.id, pid=process.pid)
        if held.ending is None:
            held.ending = self._tasks.spawn(self._bury(held, process, "stopped answering"))

    async def _bury(self, held: _Held, process: Process, why: str) -> None:
        """Say that it is lost: of one that still lives, `why` and not before it is dead, for it has its memory."""
        if process.is_alive():
            await self._kill(process)
        else:
            why = process.how_it_ended()
        if told := telling(held.folder.log_tail()[-5:]):
            why = f"{why}: {told}"
        self._held.pop(held.worker.id, None)
        self._tell_lost(held.worker, why)
        await self._kill(process)
        await self._in_thread(held.folder.remove)
        await self._forget(held, self._event(held, "worker.lost", reason="WorkerLost", why=why))

    def _tell_lost(self, worker: Worker, why: str) -> None:
        for callback in self._callbacks:
            callback(worker, why)

    # the record

    async def _record(self, held: _Held, *events: Event) -> None:
        put = self._table.put(held.worker.id, held.worker, expect=held.revision)
        held.revision = None  # until it is known whether this one was made
        held.revision = await self._store.commit([self._seat.fence(), put], events)

    async def _note(self, event: Event) -> None:
        await self._store.commit([self._seat.fence()], [event])

    async def _forget(self, held: _Held, event: Event) -> None:
        """Delete the record of a dead worker; one that cannot be now is when workers are adopted."""
        try:
            await self._store.commit([self._seat.fence(), self._table.delete(held.worker.id, expect=None)], [event])
        except MocError as error:
            log.warning("the record of a dead worker stays for now", worker=held.worker.id, error=error.message)

    def _event(self, held: _Held, kind: str, *, reason: str = "", **data: Any) -> Event:
        worker = held.worker
        return Event(
            kind=kind, subject=worker.id, reason=reason, data={"model": worker.model, "pid": worker.pid, **data}
        )

    # watching

    async def _listen(self) -> None:
        """Ask every worker for signs of life; a pause of this process itself is not counted as their silence."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(INTERVAL_S)
            passed_s = min(loop.time() - began, 2 * INTERVAL_S)
            for held in list(self._held.values()):
                link, process = held.link, held.process
                if link is None or process is None or held.ending is not None or not link.is_loaded:
                    continue
                link.beat(passed_s, unresponsive_after_s=self._patience.unresponsive_after_s)
                if link.responsive is not held.responsive:
                    held.responsive = link.responsive
                    kind = "worker.responsive" if link.responsive else "worker.unresponsive"
                    self._tasks.spawn(self._note(self._event(held, kind)))
                if held.vigil.is_hung(link.silent_s, passed_s, process.activity):
                    log.warning("a worker is hung; replacing it", worker=held.worker.id, pid=process.pid)
                    self.replace_worker(held.worker.id, why="gave no sign of life")

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(MEASURE_INTERVAL_S)
            for held in list(self._held.values()):
                if held.process is not None:
                    held.memory_bytes = await self._in_thread(held.process.memory_bytes)

    def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Awaitable[Any]:
        if self._threads is None:
            raise Unavailable("the workers of this host are not managed yet, or no longer; ask again shortly")
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def _process_of(folder: Folder, pid: int | None) -> Process | None:
    return Process.search(folder.path) if pid is None else Process.find(pid, folder.path)


def _builtins(info: Info) -> dict[str, Any]:
    built = msgspec.to_builtins(info)
    if not isinstance(built, dict):
        raise Internal("an engine's description is not a mapping")
    return built
