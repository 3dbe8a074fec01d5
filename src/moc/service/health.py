"""Whether loaded models answer: their workers' signs of life, and canaries, which are requests asked now and then."""

import asyncio
import math
import re
import time
from typing import Protocol, cast

import msgspec
import structlog

from moc.inference.ports import Link, Links
from moc.inference.request import Kind, Request, Tensor, TensorSpec
from moc.kernel.errors import LoadFailed, MocError, WorkerLost
from moc.kernel.tasks import Tasks
from moc.models.catalogue import Entry
from moc.models.model import Canary, FailReason, ModelVersion
from moc.models.resident import Resident

log = structlog.get_logger(__name__)

LOOK_S = 0.25
AGAIN_S = 1.0
"""How soon a canary that failed is asked again, unless its interval is shorter."""

FAILURES_MAX = 3
"""After so many failures of its canary in a row a worker is replaced."""


class Crew(Links, Protocol):
    """The workers, and the lines to them."""

    def replace_worker(self, worker_id: str, *, why: str) -> None:
        """Kill a worker, so that another takes its place."""
        ...


class Loaded(Protocol):
    """Knows which versions are loaded."""

    def loaded(self) -> list[tuple[Entry, Resident]]: ...


class _Watched:
    """The canary of one worker: when it is due, and how often in a row it failed."""

    __slots__ = ("asking", "due", "failures", "problem")

    def __init__(self, due: float) -> None:
        self.due = due
        self.asking = False
        self.failures = 0
        self.problem = ""


class Health:
    """What is wrong with a loaded model, if anything is.

    Every loaded model that has a canary is asked it; that counts neither as use nor in any figure. One whose canary
    fails has a `problem` until it passes; after `FAILURES_MAX` failures its worker is replaced. A canary that had no
    turn beside other requests says nothing.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._models: Loaded | None = None
        self._watched: dict[str, _Watched] = {}
        self._tasks = Tasks(lambda error: log.error("canaries are asked no more", exc_info=error))

    def join(self, models: Loaded) -> None:
        """Say who knows which versions are loaded; once, before `start`."""
        self._models = models

    async def start(self) -> None:
        if self._models is not None:
            self._tasks.spawn(self._look(self._models))

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        await self._tasks.cancel()

    def problem(self, worker_id: str) -> str:
        """Why the model in a worker does not answer now; empty when it does."""
        link = self._crew.link(worker_id)
        if link is None or not link.alive:
            return "its worker is gone"
        if not link.responsive:
            return "its worker gives no sign of life"
        watched = self._watched.get(worker_id)
        return "" if watched is None else watched.problem

    async def warm(self, version: ModelVersion, worker_id: str) -> None:
        """Ask a worker that was just loaded, if its model has a canary: LoadFailed when that fails."""
        canary, link = version.spec.canary, self._crew.link(worker_id)
        if canary is None or link is None:
            return
        try:
            problem = await _ask(canary, link)
        except TimeoutError:
            problem = _late(canary)
        if problem:
            raise LoadFailed(f"{version.reference}: {problem}", reason=FailReason.RUNTIME_UNHEALTHY)

    async def _look(self, models: Loaded) -> None:
        while True:
            now, seen = time.monotonic(), {}
            for entry, resident in models.loaded():
                canary = entry.version.spec.canary
                if canary is None:
                    continue
                watched = self._watched.get(resident.worker_id) or _Watched(now + canary.interval_s)
                seen[resident.worker_id] = watched
                if now >= watched.due and not watched.asking:
                    watched.asking = True
                    self._tasks.spawn(self._try(canary, resident, watched))
            self._watched = seen
            await asyncio.sleep(LOOK_S)

    async def _try(self, canary: Canary, resident: Resident, watched: _Watched) -> None:
        link = self._crew.link(resident.worker_id)
        try:
            if link is None or not link.responsive:
                return  # that is told already
            places = link.info.concurrency
            crowded = resident.users >= places
            try:
                problem = await _ask(canary, link)
            except TimeoutError:
                if crowded or resident.users >= places:
                    return
                problem = _late(canary)
            self._judge(resident, watched, problem)
        except WorkerLost:
            return
        finally:
            watched.asking = False
            again_s = min(canary.interval_s, AGAIN_S) if watched.problem else canary.interval_s
            watched.due = time.monotonic() + again_s

    def _judge(self, resident: Resident, watched: _Watched, problem: str) -> None:
        if problem != watched.problem:
            log.warning("a canary's answer changed", model=resident.reference, problem=problem)
        watched.problem, watched.failures = problem, watched.failures + 1 if problem else 0
        if watched.failures >= FAILURES_MAX:
            self._crew.replace_worker(resident.worker_id, why=problem)


async def _ask(canary: Canary, link: Link) -> str:
    """What is wrong with the answer, empty when it is right; TimeoutError, and WorkerLost when nobody is there."""
    request = Request(cast(Kind, canary.kind), msgspec.json.encode(canary.body))
    if canary.kind == "tensors":
        request = _zeros(link.info.inputs)
    try:
        async with asyncio.timeout(canary.timeout_s):
            await link.infer(request)
    except WorkerLost:
        raise
    except MocError as error:
        return f"its canary failed: {error.message}"
    return ""


def _late(canary: Canary) -> str:
    return f"its canary had no answer within {canary.timeout_s:g} s"


def _zeros(specs: tuple[TensorSpec, ...]) -> Request:
    """One row of zeros, or of empty texts, for each of these tensors."""
    tensors = []
    for spec in specs:
        shape = tuple(1 if size == -1 else size for size in spec.shape)
        tensors.append(Tensor(spec.name, spec.datatype, shape, math.prod(shape) * _width(spec.datatype)))
    return Request("tensors", bytes(sum(tensor.size for tensor in tensors)), tuple(tensors))


def _width(datatype: str) -> int:
    """Bytes of an element; an empty text is its length, a u32."""
    bits = re.search(r"\d+", datatype)
    if bits is not None:
        return int(bits[0]) // 8
    return 4 if datatype == "BYTES" else 1
