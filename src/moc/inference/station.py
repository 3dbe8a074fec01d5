"""What stands before each worker, a gate and a circuit breaker, and the visits that requests pay it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from moc.inference.admission import Gate
from moc.inference.batching import Batcher
from moc.inference.ports import Link, Links, Meter, Resident
from moc.inference.request import Caller, Terms
from moc.inference.shares import Shares
from moc.kernel.clock import Clock
from moc.kernel.errors import Unavailable, Unimplemented, WorkerLost
from moc.resilience.breaker import Breaker, BreakerLimits, Circuit
from moc.resilience.bulkhead import Bulkhead
from moc.resilience.retry import RetryBudget

FAULTS: Final = frozenset({"worker_lost", "unavailable", "internal"})
"""Codes of an engine that fails; all others are the caller's doing, or say that there is too much to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficLimits:
    """What bounds requests: when they are refused, how many are asked twice, and how many a model takes by default."""

    breaker: BreakerLimits = field(default_factory=BreakerLimits)
    bulkhead: Bulkhead = field(default_factory=Bulkhead)
    retry_budget_pct: float = 10.0


class Station:
    """One worker as requests come to it; `engine` takes those that are inside, and has them go over `link`."""

    __slots__ = ("breaker", "engine", "gate", "link", "resident")

    def __init__(self, resident: Resident, link: Link, engine: Link, gate: Gate, breaker: Breaker) -> None:
        self.resident = resident
        self.link = link
        self.engine = engine
        self.gate = gate
        self.breaker = breaker


class Visit:
    """One request's stay at one resident: a place inside its gate, counted until `end`, which is called once.

    CircuitOpen when no visits are received.
    """

    __slots__ = (
        "_began",
        "_budget",
        "_caller",
        "_entered",
        "_era",
        "_kind",
        "_meter",
        "_station",
        "queue_s",
        "resident",
    )

    def __init__(
        self, resident: Resident, station: Station, budget: RetryBudget, *, caller: Caller, kind: str, meter: Meter
    ) -> None:
        self._era = station.breaker.allow()
        self.resident = resident
        self.queue_s = 0.0
        self._station = station
        self._budget = budget
        self._caller = caller
        self._kind = kind
        self._meter = meter
        self._entered = False
        self._began = time.monotonic()
        resident.enter()

    @property
    def engine(self) -> Link:
        """What to give the request to, once inside."""
        return self._station.engine

    def try_enter(self) -> bool:
        """Go in if there is a free place."""
        self._entered = self._station.gate.try_enter(self._caller)
        return self._entered

    async def enter(self, terms: Terms) -> None:
        """Go in, waiting for a place if need be; see `admission.Gate.enter`."""
        await self._station.gate.enter(self._caller, terms)
        self._entered = True
        now = time.monotonic()
        self.queue_s, self._began = now - self._began, now

    def answered(self) -> None:
        """The engine has begun to answer: a try of it went well, though the answer may take long yet."""
        breaker = self._station.breaker
        if breaker.circuit is not Circuit.CLOSED:  # else what breaks later in answers would never add up
            breaker.succeeded(self._era)

    def end(self, code: str) -> None:
        """Give the place back; `code` is `ok` or that of what went wrong."""
        station, spent_s = self._station, time.monotonic() - self._began
        if self._entered:
            station.gate.leave(self._caller, spent_s)
        else:
            self.queue_s, spent_s = spent_s, 0.0
        self.resident.leave()
        if code == "ok":
            station.breaker.succeeded(self._era)
            self._budget.succeeded()
        elif code in FAULTS:
            station.breaker.failed(self._era)
        else:
            station.breaker.abandoned(self._era)
        self._meter.finished(self.resident.reference, self._kind, code, queue_s=self.queue_s, engine_s=spent_s)


class Stations:
    """The stations of all workers, made when the first request comes to one, gone with the worker.

    `on_circuit(reference, worker id, circuit)` is called when a circuit changes, `on_unbatched(reference, why)` when a
    model that was to be batched cannot be.
    """

    def __init__(
        self,
        *,
        links: Links,
        shares: Shares,
        limits: TrafficLimits,
        clock: Clock,
        on_circuit: Callable[[str, str, Circuit], None],
        on_unbatched: Callable[[str, str], None],
    ) -> None:
        self._links = links
        self._shares = shares
        self._limits = limits
        self._clock = clock
        self._on_circuit = on_circuit
        self._on_unbatched = on_unbatched
        self._stations: dict[str, Station] = {}

    def of(self, resident: Resident, kind: str) -> Station:
        """Where requests of this kind go to; WorkerLost, Unavailable or Unimplemented when they cannot."""
        link = self._links.link(resident.worker_id)
        if link is None or not link.alive:
            raise WorkerLost(f"the worker of {resident.reference} is gone; try again shortly", sent=False)
        if not link.responsive:
            message = f"the worker of {resident.reference} does not respond; try again shortly"
            raise Unavailable(message, retry_after_s=1.0)
        if kind not in link.info.kinds:
            can = ", ".join(link.info.kinds)
            raise Unimplemented(f"{resident.reference} cannot do {kind}; it can do {can}")
        station = self._stations.get(resident.worker_id) or self._new(resident, link)
        if station.link is not link:  # the old one broke, and the worker lives
            station.link, station.engine = link, self._engine(resident, link)
            self._bound(station)
        return station

    def is_gone(self, resident: Resident) -> bool:
        """Whether its worker is."""
        link = self._links.link(resident.worker_id)
        return link is None or not link.alive

    def waiting(self, worker_id: str) -> int:
        """How many requests wait for a place at a worker."""
        station = self._stations.get(worker_id)
        return 0 if station is None else station.gate.waiting

    def circuit(self, worker_id: str) -> Circuit:
        """Whether a worker's circuit is closed."""
        station = self._stations.get(worker_id)
        return Circuit.CLOSED if station is None else station.breaker.circuit

    def retry_after_s(self, worker_id: str) -> float:
        """For how long requests for a worker are refused; 0 = they are not."""
        station = self._stations.get(worker_id)
        return 0.0 if station is None else station.breaker.retry_after_s

    @property
    def bulkhead(self) -> Bulkhead:
        """How many requests a model takes that has no bounds of its own."""
        return self._limits.bulkhead

    def adjust(self, limits: TrafficLimits) -> None:
        """Go by other limits from now on."""
        self._limits = limits
        for station in self._stations.values():
            station.breaker.limits = limits.breaker
            self._bound(station)

    def _new(self, resident: Resident, link: Link) -> Station:
        for gone in [worker_id for worker_id in self._stations if self._links.link(worker_id) is None]:
            del self._stations[gone]
        reference, worker_id = resident.reference, resident.worker_id
        bounds = self._bounds(resident, link)
        gate = Gate(reference, max_concurrent=bounds.max_concurrent, max_queue=bounds.max_queue, shares=self._shares)
        breaker = Breaker(
            reference,
            limits=self._limits.breaker,
            clock=self._clock,
            on_change=lambda circuit: self._on_circuit(reference, worker_id, circuit),
        )
        station = self._stations[worker_id] = Station(resident, link, self._engine(resident, link), gate, breaker)
        return station

    def _bound(self, station: Station) -> None:
        """Have its gate let in what may come in now."""
        bounds = self._bounds(station.resident, station.link)
        station.gate.adjust(max_concurrent=bounds.max_concurrent, max_queue=bounds.max_queue)

    def _engine(self, resident: Resident, link: Link) -> Link:
        batching = resident.batching
        if batching is None:
            return link
        return Batcher(
            link,
            max_batch=batching.max_batch,
            max_delay_s=batching.max_delay_ms / 1000,
            on_off=lambda why: self._on_unbatched(resident.reference, why),
        )

    def _bounds(self, resident: Resident, link: Link) -> Bulkhead:
        """How many go in and how many wait: never more at once than the engine works on."""
        own = self.bulkhead.but(resident.max_concurrent, resident.max_queue)
        batch = 1 if resident.batching is None else resident.batching.max_batch
        return own.but(max(1, min(own.max_concurrent, link.info.concurrency * batch)), None)
