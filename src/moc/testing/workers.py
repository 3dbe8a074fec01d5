"""Workers without processes: what they do is set by the test, when they do it too."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

from moc.inference.request import Info, Reply, Request
from moc.kernel.errors import InvalidRequest, LoadFailed, MocError, WorkerLost
from moc.kernel.ids import new_id
from moc.models.model import Artifact, ModelSpec, ModelVersion, adapters_of
from moc.models.ports import Grant, Holding, Launch, Progress, Worker
from moc.resilience.deadline import Deadline

INFO = Info(kinds=("tensors", "chat"), engine="fake", concurrency=2)


class FakeLink:
    """Answers with the request's own body once `gate` is open; counts what it was given and what was cancelled."""

    def __init__(self, info: Info) -> None:
        self.info = info
        self.alive = True
        self.responsive = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.given: list[Request] = []
        self.cancelled = 0
        self.running = 0
        self.most_running = 0
        self.error: Exception | None = None
        self.script: list[bytes | MocError] = []
        self.lost = asyncio.Event()

    async def infer(self, request: Request) -> Reply:
        """The body back, `error` if set, WorkerLost when the worker dies meanwhile."""
        if not self.alive:
            raise WorkerLost("the fake worker is dead", sent=False)
        self.given.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        opened, died = asyncio.create_task(self.gate.wait()), asyncio.create_task(self.lost.wait())
        try:
            await asyncio.wait({opened, died}, return_when=asyncio.FIRST_COMPLETED)
            if self.lost.is_set():
                raise WorkerLost("the fake worker died", sent=True)
            if self.error is not None:
                raise self.error
            return Reply(request.body)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            opened.cancel()
            died.cancel()
            self.running -= 1

    async def stream(self, request: Request) -> AsyncIterator[list[bytes]]:
        """What `script` says, or each byte of the body as a chunk."""
        self.given.append(request)
        self.running += 1
        try:
            for piece in self.script or [bytes([byte]) for byte in bytes(request.body)]:
                await self.gate.wait()
                if self.error is not None:
                    raise self.error
                if isinstance(piece, MocError):
                    raise piece
                yield [piece]
        except GeneratorExit:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


class FakeWorkers:
    """The Workers and Links ports in memory. `gate` holds starts back; `error` makes them fail.

    The link of a worker that starts answers with `link_error` if that is set.
    """

    def __init__(self, *, info: Info = INFO) -> None:
        self.info = info
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: MocError | None = None
        self.link_error: MocError | None = None
        self.starts = 0
        self.launched: list[Launch] = []
        self.stopped: list[tuple[str, str]] = []
        self.asleep: list[str] = []
        self.left: list[Worker] = []
        self.resident_bytes = 2**20
        self.trees: dict[str, frozenset[int]] = {}
        self.links: dict[str, FakeLink] = {}
        self._workers: dict[str, Worker] = {}
        self._callbacks: list[Callable[[Worker, str], None]] = []

    async def start_worker(self, launch: Launch, deadline: Deadline) -> Worker:
        """A worker at once, or when `gate` opens."""
        self.starts += 1
        self.launched.append(launch)
        await self.end_sleeping(launch.model)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        worker = Worker(
            id=new_id("wrk"),
            host="fake",
            pid=0,
            process_started_at=0.0,
            folder="",
            socket="",
            model=launch.model,
            digest=launch.digest,
            runtime=launch.runtime,
            state="ready",
            term=1,
            started_at=0.0,
            devices=launch.devices,
            bytes=launch.bytes,
            info={"kinds": list(self.info.kinds), "engine": self.info.engine},
        )
        self._hold(worker)
        return worker

    async def stop_worker(self, worker_id: str, *, reason: str, may_sleep: bool = False) -> None:
        """Gone, and remembered in `stopped`; or in `asleep`, if it may and can."""
        worker = self._workers.pop(worker_id, None)
        if worker is not None and may_sleep and self.info.sleeps:
            self.asleep.append(worker.model)
            return
        self.stopped.append((worker_id, reason))
        link = self.links.pop(worker_id, None)
        if link is not None:
            link.alive = False

    def sleeping(self) -> list[str]:
        """Those in `asleep`."""
        return list(self.asleep)

    async def end_sleeping(self, model: str) -> None:
        """Not in `asleep` any more."""
        if model in self.asleep:
            self.asleep.remove(model)

    async def adopt(self) -> list[Worker]:
        """Those in `left`."""
        for worker in self.left:
            self._hold(worker)
        return list(self.left)

    def replace_worker(self, worker_id: str, *, why: str) -> None:
        """Like `crash`."""
        self.crash(worker_id, why)

    def workers(self) -> list[Worker]:
        """Those held."""
        return list(self._workers.values())

    def on_lost(self, callback: Callable[[Worker, str], None]) -> None:
        """Called by `crash`."""
        self._callbacks.append(callback)

    def memory_bytes(self, worker_id: str) -> int:
        """`resident_bytes` each."""
        return self.resident_bytes if worker_id in self._workers else 0

    def pids(self, worker_id: str) -> frozenset[int]:
        """What the test set in `trees`."""
        return self.trees.get(worker_id, frozenset())

    def in_flight(self, worker_id: str) -> int:
        """Requests its link works on."""
        link = self.links.get(worker_id)
        return 0 if link is None else link.running

    def link(self, worker_id: str) -> FakeLink | None:
        """The line to a worker."""
        return self.links.get(worker_id)

    def crash(self, worker_id: str, why: str = "killed by signal 9") -> None:
        """Let a worker die unasked."""
        link = self.links.pop(worker_id)
        link.alive = False
        link.lost.set()
        worker = self._workers.pop(worker_id)
        for callback in self._callbacks:
            callback(worker, why)

    def _hold(self, worker: Worker) -> None:
        self._workers[worker.id] = worker
        link = self.links[worker.id] = FakeLink(self.info)
        link.error = self.link_error


class FakeSources:
    """Every source is a file of one byte that is here already; `error` makes fetching fail, `changed` verifying.

    Those in `refused` are for who is trusted.
    """

    def __init__(self) -> None:
        self.error: MocError | None = None
        self.changed: set[str] = set()
        self.refused: set[str] = set()
        self.fetched: list[str] = []
        self.discarded: list[str] = []

    def check(self, spec: ModelSpec, *, trusted: bool) -> None:
        """InvalidRequest for a source in `refused`, unless `trusted`."""
        if spec.source in self.refused and not trusted:
            raise InvalidRequest(f"{spec.source} is not for everybody")

    async def fetch(self, spec: ModelSpec, progress: Progress) -> Artifact:
        """An artifact named after its source."""
        if self.error is not None:
            raise self.error
        self.fetched.append(spec.source)
        self.changed.discard(spec.source)
        return Artifact(path=spec.source, sha256=f"{hash(spec.source):x}", size_bytes=1, modified_at=0.0)

    async def verify(self, artifact: Artifact) -> None:
        """LoadFailed for a path in `changed`."""
        if artifact.path in self.changed:
            raise LoadFailed(f"{artifact.path} is gone or changed", reason="load_failed")

    async def verify_adapters(self, spec: ModelSpec) -> None:
        """LoadFailed for one in `changed`."""
        for adapter in adapters_of(spec.options):
            if adapter.path in self.changed:
                raise LoadFailed(f"{adapter.path} is gone or changed", reason="load_failed")

    async def discard(self, path: str) -> None:
        """Remembered."""
        self.discarded.append(path)


class FakeMemory:
    """Room for every version, while `gate` is set, until `error` is; `held` is charged, `evicting` makes room."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: MocError | None = None
        self.evicting: tuple[str, ...] = ()
        self.short = self.full = False
        self.held: dict[str, int] = {}

    def kinds(self, version: ModelVersion) -> Sequence[str]:
        """Main memory."""
        return ["host"]

    async def reserve(self, version: ModelVersion, needs: Mapping[str, int], deadline: Deadline) -> Grant:
        """A grant for all that is asked."""
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.held[version.reference] = needs["host"]
        return Grant(devices=("host",), bytes=needs["host"], evicted=self.evicting)

    def adopt(self, version: ModelVersion, worker: Worker) -> None:
        """Held from now on."""
        self.held[worker.model] = worker.bytes

    def measure(self, reference: str, resident_bytes: int, pids: Collection[int]) -> Holding | None:
        """All that is resident."""
        return Holding(kind="host", bytes=resident_bytes)

    def has_room(self, version: ModelVersion, needs: Mapping[str, int]) -> bool:
        """Unless it is `full`."""
        return not self.full

    def is_short(self) -> bool:
        """What the test says."""
        return self.short

    def release(self, reference: str) -> None:
        """Not held any more."""
        self.held.pop(reference, None)
