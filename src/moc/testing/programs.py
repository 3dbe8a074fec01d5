"""Programs of jobs that do what the test says, and what else jobs need of others."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moc.kernel.errors import Conflict, MocError
from moc.learning.job import Job, JobSpec, Outcome
from moc.learning.ports import STOPPED_STATUS, Ending, Holding, News, Order, Prepared, Started


@dataclass
class FakeProgram:
    """One that was started by `order`; it runs until `status` is set. `vanished`: nobody saw how it ended."""

    order: Order
    started: Started
    lines: list[Mapping[str, Any]] = field(default_factory=list)
    status: int | None = None
    vanished: bool = False
    claims: int = 0
    interrupts: int = 0
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    log: str = ""

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.status is None and not self.vanished

    def tell(self, **line: Any) -> None:
        """Let it tell something."""
        self.lines.append(line)

    def end(self, status: int, **result: Any) -> None:
        """Let it end, with a result if there is one."""
        if result:
            self.tell(type="result", **result)
        self.status = status

    def vanish(self) -> None:
        """Let it be gone."""
        self.vanished = True


class FakePrograms:
    """Programs that tests move; they outlive whoever started them.

    One that is interrupted ends as asked for if it `obeys`. `error` makes starting fail. `doubled` are jobs that had
    two at once.
    """

    def __init__(self) -> None:
        self.programs: list[FakeProgram] = []
        self.obeys = True
        self.error: Exception | None = None
        self.doubled: set[str] = set()
        self.resident_bytes = 1
        self.began = asyncio.Event()
        self._pid = 1_000_000_000

    async def started(self, count: int = 1) -> FakeProgram:
        """The `count`th that was started, waited for."""
        async with asyncio.timeout(10):
            while len(self.programs) < count:
                self.began.clear()
                await self.began.wait()
        return self.programs[count - 1]

    def running(self) -> list[FakeProgram]:
        """Those that have not ended."""
        return [each for each in self.programs if each.runs]

    async def start(self, order: Order) -> Started:
        """Begin one, or raise `error`."""
        if self.error is not None:
            raise self.error
        self.doubled |= {order.job_id} & {each.order.job_id for each in self.running()}
        self._pid += 1
        started = Started(self._pid, 1.0)
        self.programs.append(FakeProgram(order, started))
        self.began.set()
        return started

    async def find(self, folder: Path) -> Started | None:
        """The one that runs for an attempt."""
        found = self._of(folder)
        return found.started if found is not None and found.runs else None

    async def look(self, folder: Path, process: Started) -> Ending | None:
        """How it ended."""
        found = self._of(folder)
        if found is not None and found.runs:
            return None
        return Ending(None if found is None else found.status, "" if found is None else found.log)

    async def claim(self, folder: Path) -> None:
        """Counted."""
        found = self._of(folder)
        if found is not None:
            found.claims += 1

    async def news(self, folder: Path, after_bytes: int) -> News:
        """Every line counts as one byte."""
        found = self._of(folder)
        lines = [] if found is None else found.lines[after_bytes:]
        return News(tuple(lines), after_bytes + len(lines))

    async def interrupt(self, folder: Path, process: Started) -> None:
        """Counted, and obeyed."""
        found = self._of(folder)
        if found is not None and found.runs:
            found.interrupts += 1
            found.interrupted.set()
            if self.obeys:
                found.status = STOPPED_STATUS

    def halt(self, process: Started) -> None:
        """Nothing: it does nothing anyway."""

    def proceed(self, process: Started) -> None:
        """Nothing."""

    async def kill(self, folder: Path, process: Started) -> None:
        """It is gone."""
        found = self._of(folder)
        if found is not None and found.runs:
            found.status = -9

    def memory_bytes(self, process: Started) -> int:
        """As much as the test says."""
        return self.resident_bytes

    def log(self, folder: Path, *, tail_bytes: int) -> str:
        """What the test set."""
        found = self._of(folder)
        return "" if found is None else found.log[-tail_bytes:]

    def _of(self, folder: Path) -> FakeProgram | None:
        of_folder = (each for each in reversed(self.programs) if _folder(each.order) == folder)
        return next(of_folder, None)


def _folder(order: Order) -> Path:
    return order.folder / "attempts" / str(order.attempt)


class FakeJobMemory:
    """Room for every job while `gate` is set, until `error` is; what is held is in `held`, by lease.

    `evict_in_s` is what is told of a lease that is to be given back; one in `over` is over, for what that says. Jobs in
    `starved` wait for ever.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: MocError | None = None
        self.held: dict[str, Holding] = {}
        self.over: dict[str, Mapping[str, Any]] = {}
        self.starved: set[str] = set()
        self.evict_in_s: float | None = None
        self.learned: list[int] = []
        self._count = 0

    async def acquire(self, job: Job, size: int, *, on_wait: Callable[[str], None]) -> Holding:
        """All that is asked for."""
        if job.id in self.starved:
            on_wait("memory")
            await asyncio.Event().wait()
        if not self.gate.is_set():
            on_wait("memory")
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self._count += 1
        holding = Holding(lease_id=f"lse-{self._count}", token=f"1.{self._count}", device="host", bytes=size)
        self.held[holding.lease_id] = holding
        return holding

    async def renew(self, holding: Holding, pid: int | None) -> Holding:
        """It, with what is told of it; Conflict for one in `over`."""
        if holding.lease_id in self.over:
            raise Conflict(f"lease {holding.lease_id} is over", details=self.over[holding.lease_id])
        return Holding(
            lease_id=holding.lease_id,
            token=holding.token,
            device=holding.device,
            bytes=holding.bytes,
            evict_in_s=self.evict_in_s,
        )

    async def release(self, holding: Holding) -> None:
        """Not held any more."""
        self.held.pop(holding.lease_id, None)

    async def need(self, job: Job, prepared: Prepared) -> int:
        """What was declared."""
        return job.spec.memory_bytes or 1

    async def doubt(self, job: Job, prepared: Prepared) -> str:
        """It is too little if it is but a byte."""
        return "too little" if job.spec.memory_bytes == 1 else ""

    async def learn(self, job: Job, prepared: Prepared | None, *, device: str, peak_bytes: int) -> None:
        """Remembered."""
        self.learned.append(peak_bytes)


class FakeVisitors:
    """Lets everybody in; those who may are in `admitted`."""

    def __init__(self) -> None:
        self.admitted: set[str] = set()

    async def admit(self, job: Job, folder: Path) -> Mapping[str, str]:
        """An address that leads nowhere."""
        self.admitted.add(job.id)
        return {"MOC_URL": "http://127.0.0.1:0"}

    async def dismiss(self, job: Job) -> None:
        """Not any more."""
        self.admitted.discard(job.id)


class FakeKind:
    """Takes every spec; `refusal`, `fault` and `flaw` make checking, preparing and finishing fail.

    While `checking` or `gate` is not set, checking or preparing takes long; `task` is what programs are told. What was
    made is in `made`, by job.
    """

    def __init__(self, *, visits: bool = False) -> None:
        self.visits = visits
        self.refusal: Exception | None = None
        self.fault: Exception | None = None
        self.flaw: Exception | None = None
        self.checking = asyncio.Event()
        self.checking.set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.task: dict[str, Any] = {"what": "nothing"}
        self.made: dict[str, int] = {}

    async def check(self, spec: JobSpec) -> JobSpec:
        """As it is."""
        await self.checking.wait()
        if self.refusal is not None:
            raise self.refusal
        return spec

    async def prepare(self, job: Job, folder: Path) -> Prepared:
        """Nothing to do."""
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return Prepared(task=self.task, visits=self.visits)

    async def finish(self, job: Job, prepared: Prepared, told: Mapping[str, Any], folder: Path) -> Outcome:
        """A model of the job's name, if it has one."""
        if self.flaw is not None:
            raise self.flaw
        self.made[job.id] = self.made.get(job.id, 0) + 1
        model = f"{job.spec.name}@1" if job.spec.name else ""
        return Outcome(model=model, metrics=dict(told.get("metrics", {})), data=dict(told.get("data", {})))
