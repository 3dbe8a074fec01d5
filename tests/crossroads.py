"""A gateway over models whose engines are fakes, with aliases for them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from moc.inference.gateway import Gateway
from moc.inference.observed import Observed
from moc.inference.ports import Links, Meter, Residents
from moc.inference.request import Caller, Info
from moc.inference.routing import Route
from moc.inference.shares import Shares
from moc.inference.station import TrafficLimits
from moc.kernel.clock import Clock, SystemClock
from moc.kernel.errors import MocError
from moc.models.ports import Launch
from moc.models.resident import Resident
from moc.resilience.breaker import Circuit
from moc.resilience.deadline import NEVER, Deadline
from moc.service.traffic import Meters
from moc.testing.workers import INFO, FakeLink, FakeWorkers


class Models:
    """The Residents port: any name is a model of one version, loaded on demand unless it is in `errors`.

    `loads` are the references that were asked for when they were not loaded; `loading` those of which the test says
    that they are, `load_s` how long it says that a load takes.
    """

    def __init__(self, info: Info = INFO, *, max_concurrent: int | None = 64, max_queue: int | None = 256) -> None:
        self.workers = FakeWorkers(info=info)
        self.max_concurrent = max_concurrent
        self.max_queue = max_queue
        self.loads: list[str] = []
        self.loading: set[str] = set()
        self.load_s = 0.0
        self.errors: dict[str, MocError] = {}
        self._residents: dict[str, Resident] = {}

    def find(self, reference: str) -> Resident | None:
        found = self._residents.get(reference)
        return found if found is not None and self.workers.link(found.worker_id) is not None else None

    def is_loading(self, reference: str) -> bool:
        return reference in self.loading

    def load_left_s(self, reference: str) -> float:
        return self.load_s

    async def ensure_ready(self, reference: str, deadline: Deadline) -> Resident:
        self.loads.append(reference)
        if reference in self.errors:
            raise self.errors[reference]
        launch = Launch(model=f"{reference}@1", digest="sha256:0", runtime="python", path="x")
        worker = await self.workers.start_worker(launch, deadline)
        resident = self._residents[reference] = Resident(
            reference=f"{reference}@1",
            digest="sha256:0",
            worker_id=worker.id,
            max_concurrent=self.max_concurrent,
            max_queue=self.max_queue,
            batching=None,
            adopted=False,
        )
        return resident

    async def load(self, *references: str) -> None:
        for reference in references:
            await self.ensure_ready(reference, NEVER)

    def resident(self, reference: str) -> Resident:
        found = self.find(reference)
        assert found is not None
        return found

    def link(self, reference: str) -> FakeLink:
        link = self.workers.link(self.resident(reference).worker_id)
        assert link is not None
        return link

    def crash(self, reference: str) -> None:
        self.workers.crash(self.resident(reference).worker_id)


@dataclass
class Knowledge:
    """The Facts port."""

    costs: dict[str, float] = field(default_factory=dict)
    remotes: set[str] = field(default_factory=set)
    unwell: set[str] = field(default_factory=set)

    def cost(self, reference: str) -> float:
        return self.costs.get(reference, 0.0)

    def is_remote(self, reference: str) -> bool:
        return reference in self.remotes

    def is_well(self, worker_id: str) -> bool:
        return worker_id not in self.unwell


@dataclass
class Journal:
    """The Meter and the TrafficWatcher port: what happened, in order."""

    codes: list[str] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    retries: list[tuple[str, str]] = field(default_factory=list)
    fallbacks: list[tuple[str, str, str]] = field(default_factory=list)
    hedges: list[tuple[str, str]] = field(default_factory=list)
    copies: list[tuple[str, str, str]] = field(default_factory=list)
    circuits: list[tuple[str, Circuit]] = field(default_factory=list)

    def finished(self, reference: str, kind: str, code: str, *, queue_s: float, engine_s: float) -> None:
        self.codes.append(code)
        self.served.append(reference)

    def retried(self, reference: str, code: str) -> None:
        self.retries.append((reference, code))

    def fell_back(self, alias: str, reference: str, code: str) -> None:
        self.fallbacks.append((alias, reference, code))

    def hedged(self, alias: str, reference: str) -> None:
        self.hedges.append((alias, reference))

    def shadowed(self, alias: str, reference: str, code: str) -> None:
        self.copies.append((alias, reference, code))

    def circuit_changed(self, reference: str, worker_id: str, circuit: Circuit) -> None:
        self.circuits.append((reference, circuit))

    def unbatched(self, reference: str, why: str) -> None:
        raise AssertionError(f"{reference}: {why}")


class Bills(Shares):
    """Remembers who was billed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    def bill(self, caller: Caller, seconds: float) -> None:
        self.keys.append(caller.key)
        super().bill(caller, seconds)


class Crossroads:
    """The gateway and all around it; `residents` and `links` are those of `models` unless they are given."""

    def __init__(
        self,
        models: Models | None = None,
        *,
        residents: Residents | None = None,
        links: Links | None = None,
        limits: TrafficLimits | None = None,
        clock: Clock | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self.models = models or Models()
        self.routes: dict[str, Route] = {}
        self.facts = Knowledge()
        self.journal = Journal()
        self.shares = Bills()
        self.observed = Observed(clock=clock)
        meter: Meter = Meters(self.journal, self.observed)
        self.gateway = Gateway(
            residents=residents or self.models,
            links=links or self.models.workers,
            routes=self,
            facts=self.facts,
            shares=self.shares,
            observed=self.observed,
            meter=meter,
            watcher=self.journal,
            limits=limits or TrafficLimits(),
            clock=clock,
        )

    def route(self, name: str) -> Route | None:
        return self.routes.get(name)

    def alias(self, route: Route) -> None:
        """Let there be an alias."""
        self.routes[route.name] = route


async def until(holds: Callable[[], object]) -> None:
    """Wait for something to come true, ten seconds at most."""
    async with asyncio.timeout(10):
        while True:
            if holds():
                return
            await asyncio.sleep(0.001)
