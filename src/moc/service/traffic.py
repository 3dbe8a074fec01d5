"""What the gateway asks of models, and what it tells of their traffic."""

import structlog

from moc.inference.ports import Meter
from moc.kernel.events import Event
from moc.kernel.tasks import Tasks
from moc.models.catalogue import Catalogue
from moc.models.model import REMOTE
from moc.resilience.breaker import Circuit
from moc.service.health import Health
from moc.telemetry.traffic import TrafficCounters

log = structlog.get_logger(__name__)


class Meters:
    """Tells several meters about each request."""

    def __init__(self, *meters: Meter) -> None:
        self._meters = meters

    def finished(self, reference: str, kind: str, code: str, *, queue_s: float, engine_s: float) -> None:
        """See `inference.ports.Meter`."""
        for meter in self._meters:
            meter.finished(reference, kind, code, queue_s=queue_s, engine_s=engine_s)


class ModelFacts:
    """Implements `inference.ports.Facts` by what is registered and how it is doing."""

    def __init__(self, *, catalogue: Catalogue, health: Health) -> None:
        self._catalogue = catalogue
        self._health = health

    def cost(self, reference: str) -> float:
        """What the operator said a request costs."""
        return self._catalogue.entry(reference).version.spec.cost

    def is_remote(self, reference: str) -> bool:
        """Whether somebody else runs it, elsewhere."""
        return self._catalogue.entry(reference).version.spec.runtime == REMOTE

    def is_well(self, worker_id: str) -> bool:
        """Whether a worker gives signs of life and its canary passes."""
        return not self._health.problem(worker_id)


class TrafficJournal:
    """Implements `inference.gateway.TrafficWatcher`: counts everything, and records which circuits open and close."""

    def __init__(self, *, counters: TrafficCounters, catalogue: Catalogue) -> None:
        self._counters = counters
        self._catalogue = catalogue
        self._tasks = Tasks(lambda error: log.error("an event was not recorded", exc_info=error))

    async def start(self) -> None:
        return

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        """Wait until what happened is recorded."""
        await self._tasks.settle()

    def retried(self, reference: str, code: str) -> None:
        """A request that failed so is sent to the same model again."""
        self._counters.retried(reference, code)

    def fell_back(self, alias: str, reference: str, code: str) -> None:
        """A target failed, and the next one is tried."""
        self._counters.fell_back(alias, reference, code)

    def hedged(self, alias: str, reference: str) -> None:
        """A target takes long, and the next one is asked too."""
        self._counters.hedged(alias, reference)

    def shadowed(self, alias: str, reference: str, code: str) -> None:
        """A copy of a request ended, or was dropped."""
        self._counters.shadowed(alias, reference, code)

    def circuit_changed(self, reference: str, worker_id: str, circuit: Circuit) -> None:
        """Requests for a worker are refused from now on, or let through again, or one is to try it."""
        self._counters.circuit_changed(reference, circuit)
        if circuit is not Circuit.HALF_OPEN:
            kind = "worker.circuit_opened" if circuit is Circuit.OPEN else "worker.circuit_closed"
            log.warning("a circuit changed", model=reference, worker=worker_id, circuit=circuit)
            event = Event(kind=kind, subject=worker_id, data={"model": reference})
            self._tasks.spawn(self._catalogue.note(event))

    def unbatched(self, reference: str, why: str) -> None:
        """A model's requests are to be gathered into batches, and cannot be."""
        log.warning("a model's requests go one by one", model=reference, why=why)
        event = Event(kind="model.unbatched", subject=reference, reason="NotRows", data={"message": why})
        self._tasks.spawn(self._catalogue.note(event))
