"""A host with real worker processes, for tests; what is left of it at the end is a failure."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from moc.inference.request import Buffer, Reply, Request, Tensor
from moc.kernel.clock import SystemClock
from moc.kernel.records import Store
from moc.models.ports import Launch, Worker
from moc.resilience.deadline import Deadline
from moc.store.memory import MemoryStore
from moc.testing.seat import FakeSeat
from moc.workers.heartbeat import Patience
from moc.workers.link import WorkerLink
from moc.workers.local import LocalWorkers
from moc.workers.tensors import DTYPES, decode, encode
from tests.models import EXAMPLES

SOON = 30.0


class Host:
    """One machine: a store, and coordinators that come and go."""

    def __init__(self, store: Store, run_dir: Path) -> None:
        self.store = store
        self.run_dir = run_dir
        self.orphan_grace_s = 60.0
        self.stop_grace_s = 5.0
        self.patience = Patience()
        self.coordinators: list[LocalWorkers] = []

    async def coordinator(self, host: str = "here") -> LocalWorkers:
        """A new coordinator of `host`, with a higher term than all before it."""
        seat = FakeSeat(self.store, f"host/{host}")
        await seat.start()
        workers = LocalWorkers(
            store=self.store,
            seat=seat,
            host=host,
            run_dir=self.run_dir,
            orphan_grace_s=self.orphan_grace_s,
            stop_grace_s=self.stop_grace_s,
            clock=SystemClock(),
            patience=self.patience,
        )
        await workers.start()
        self.coordinators.append(workers)
        return workers


@asynccontextmanager
async def host(run_dir: Path) -> AsyncIterator[Host]:
    """A host whose workers are ended at the end; fails when a process or folder is left."""
    store = MemoryStore()
    await store.start()
    it = Host(store, run_dir)
    try:
        yield it
    finally:
        for workers in it.coordinators:
            await workers.stop()
        last = await it.coordinator()
        await last.adopt()
        await last.stop_workers()
        await last.stop()
        await store.stop()
    assert processes_of(run_dir) == []
    assert folders_in(run_dir) == []


def processes_of(run_dir: Path) -> list[int]:
    """Worker processes whose folder lies in `run_dir`."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(part.startswith(str(run_dir)) for part in command):
            found.append(process.pid)
    return found


def folders_in(run_dir: Path) -> list[Path]:
    """The workers' folders there are."""
    return list(run_dir.iterdir()) if run_dir.exists() else []


async def eventually(condition: Callable[[], bool], timeout_s: float = SOON) -> None:
    """Wait until something outside this process is true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        await asyncio.sleep(0.01)


async def start(workers: LocalWorkers, launch: Launch) -> Worker:
    """Start a worker, patiently."""
    return await workers.start_worker(launch, Deadline.after(SOON))


def python(path: Path, **options: Any) -> Launch:
    """A model in a Python file."""
    return Launch(model=f"{path.stem}@1", digest="sha256:0", runtime="python", path=str(path), options=options)


def example(name: str) -> Launch:
    """One of the models in `examples/models`."""
    return python(EXAMPLES / f"{name}.py")


def written(folder: Path, source: str, name: str = "written") -> Launch:
    """A model of a few lines."""
    path = folder / f"{name}.py"
    path.write_text(source)
    return python(path)


def tensors(**arrays: Any) -> Request:
    """A request that carries arrays; what numpy has no name for becomes BYTES."""
    described: list[Tensor] = []
    pieces: list[Buffer] = []
    for name, value in arrays.items():
        array = np.asarray(value)
        datatype = next((n for n, dtype in DTYPES.items() if dtype == array.dtype), "BYTES")
        tensor, data = encode(name, array, datatype)
        described.append(tensor)
        pieces.append(data)
    return Request("tensors", b"".join(pieces), tuple(described))


def arrays(reply: Reply) -> dict[str, Any]:
    """The arrays a reply carries."""
    found, at = {}, 0
    for tensor in reply.outputs:
        found[tensor.name] = decode(tensor, bytes(reply.body[at : at + tensor.size]))
        at += tensor.size
    return found


def link_to(workers: LocalWorkers, worker: Worker) -> WorkerLink:
    link = workers.link(worker.id)
    assert link is not None
    return link


def noting(tmp_path: Path, source: str) -> tuple[Launch, Path]:
    """A model that writes down what happens to it."""
    notes = tmp_path / "notes"
    launch = written(tmp_path, source)
    launch.options["notes"] = str(notes)
    return launch, notes


def reads(notes: Path, text: str) -> bool:
    return notes.exists() and notes.read_text() == text


def is_there(worker: Worker) -> bool:
    """Whether anything is left of its folder."""
    return os.path.exists(worker.folder)


async def kinds(here: Host) -> list[str]:
    return [event.kind for event in await here.store.events()]


def lost_workers(workers: LocalWorkers) -> "asyncio.Queue[tuple[Worker, str]]":
    lost: asyncio.Queue[tuple[Worker, str]] = asyncio.Queue()
    workers.on_lost(lambda worker, why: lost.put_nowait((worker, why)))
    return lost
