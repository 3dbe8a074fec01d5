"""What a caller may ask about this replica."""

import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

import psutil

from moc.kernel.records import Store
from moc.security.identity import Identity
from moc.security.policy import Operation
from moc.service.checks import Checks, HeldSeat
from moc.service.devices import DevicesService
from moc.service.guard import require, visible
from moc.service.jobs import JobsService
from moc.service.leases import LeasesService
from moc.service.replica import Replica
from moc.service.views import (
    ChargeView,
    EventView,
    MemoryView,
    Page,
    Readiness,
    SeatView,
    SystemView,
    WorkerView,
    event_view,
    rfc3339,
)
from moc.service.workforce import Workforce
from moc.telemetry.metrics import CONTENT_TYPE, DeviceGauges, Metrics

METRICS_CONTENT_TYPE = CONTENT_TYPE


class SystemService:
    """Workers, events, health and metrics of this replica."""

    def __init__(
        self,
        *,
        replica: Replica,
        store: Store,
        seats: Sequence[HeldSeat],
        workforce: Workforce,
        devices: DevicesService,
        leases: LeasesService,
        jobs: JobsService,
        metrics: Metrics,
        checks: Checks,
    ) -> None:
        self._replica = replica
        self._store = store
        self._seats = seats
        self._workforce = workforce
        self._devices = devices
        self._leases = leases
        self._jobs = jobs
        self._metrics = metrics
        self._checks = checks

    async def workers(self, identity: Identity, *, after: str | None, limit: int) -> Page[WorkerView]:
        """The worker processes, oldest first."""
        require(identity, Operation.READ_SYSTEM)
        views = [view for view in self._workforce.views() if after is None or view.id > after]
        return Page(views[:limit], views[limit - 1].id if len(views) > limit else None)

    async def worker(self, identity: Identity, worker_id: str) -> WorkerView:
        """One worker process."""
        require(identity, Operation.READ_SYSTEM)
        return self._workforce.view(worker_id)

    async def status(self, identity: Identity) -> SystemView:
        """This replica, its seats, its workers, its memory."""
        require(identity, Operation.READ_SYSTEM)
        replica = self._replica
        memory = psutil.virtual_memory()
        return SystemView(
            version=replica.version,
            replica=replica.name,
            host=replica.host,
            pid=os.getpid(),
            state=replica.state,
            started_at=rfc3339(replica.started_at),
            uptime_s=round(time.time() - replica.started_at, 3),
            data_dir=replica.data_dir,
            store=replica.store,
            urls=dict(replica.urls),
            seats=[SeatView(name=seat.name, holder=seat.holder, term=seat.term) for seat in await self._store.seats()],
            workers=self._workforce.views(),
            memory=MemoryView(
                total_bytes=memory.total,
                available_bytes=memory.available,
                coordinator_bytes=psutil.Process().memory_info().rss,
            ),
        )

    async def events(self, identity: Identity, *, after: int, limit: int) -> list[EventView]:
        """Events with an id greater than `after`, oldest first."""
        require(identity, Operation.READ_SYSTEM)
        return [event_view(event) for event in await self._store.events(after=after, limit=limit)]

    async def follow(self, identity: Identity, *, after: int) -> AsyncIterator[EventView]:
        """Events with an id greater than `after`, then each as it happens; ends only with the caller's key."""
        require(identity, Operation.READ_SYSTEM)
        async for event in self._store.follow(after=after):
            if identity.quota.ended:
                return
            yield event_view(event)

    async def last_event_id(self, identity: Identity) -> int:
        """The id of the newest event."""
        require(identity, Operation.READ_SYSTEM)
        return await self._store.last_event_id()

    def is_live(self) -> bool:
        """True while the event loop turns; whoever gets this answer has it."""
        return True

    def readiness(self, identity: Identity | None = None) -> Readiness:
        """Whether requests should be sent here; see `service.checks.Checks.readiness`."""
        return self._checks.readiness(identity)

    def is_started(self) -> bool:
        """False until it was ready for the first time."""
        return self._replica.state != "starting"

    @property
    def version(self) -> str:
        """The program's version."""
        return self._replica.version

    def urls(self, identity: Identity) -> dict[str, str]:
        """Where this replica is reached, by protocol."""
        visible(identity, Operation.READ_MODELS)  # also for a key that is limited to some models
        return dict(self._replica.urls)

    def metrics(self, identity: Identity) -> bytes:
        """Every series in Prometheus' text format (METRICS_CONTENT_TYPE)."""
        require(identity, Operation.READ_SYSTEM)
        return self._metrics.text(self._take_stock)

    def _take_stock(self) -> None:
        self._metrics.observe_workers(self._workforce.memory_by_model())
        self._metrics.observe_devices(
            DeviceGauges(
                device=view.id,
                state=view.state,
                capacity_bytes=view.capacity_bytes,
                used_bytes=view.measured_bytes,
                unmanaged_bytes=view.unmanaged_bytes,
                reserved_bytes=_by_kind(view.charges),
            )
            for view in self._devices.views()
        )
        self._metrics.observe_leases(self._leases.count())
        self._metrics.learning.observe_jobs(self._jobs.count())
        for seat in self._seats:
            self._metrics.observe_seat(seat.name, held=seat.held, term=seat.term)


def _by_kind(charges: Iterable[ChargeView]) -> Mapping[str, int]:
    """Bytes by what stands before the colon of each holder's name."""
    found: Counter[str] = Counter()
    for charge in charges:
        found[charge.holder.partition(":")[0]] += charge.bytes
    return found
