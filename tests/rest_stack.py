"""The REST server on a free loopback port, over the real services, with workers that are fakes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from moc.config import Config, load
from moc.config.history import History
from moc.config.inventory import Inventory
from moc.config.reconfiguration import Reconfiguration
from moc.gpu.broker import Broker
from moc.gpu.eviction import Policy
from moc.gpu.leases import Leases
from moc.gpu.monitor import DeviceMonitor
from moc.inference.gateway import Gateway
from moc.inference.observed import Observed
from moc.inference.request import Info, Reply, Request, Tensor, TensorSpec
from moc.inference.shares import Shares
from moc.inference.station import TrafficLimits
from moc.kernel.clock import SystemClock
from moc.kernel.component import Stack
from moc.learning.disk import DiskQuota
from moc.learning.evaluation import Evaluation
from moc.learning.files import Files
from moc.learning.job import JobType
from moc.learning.jobs import Jobs
from moc.learning.watch import Limits as JobLimits
from moc.models.aliases import AliasBook
from moc.models.catalogue import Catalogue
from moc.models.footprints import Footprints
from moc.models.manager import ModelManager
from moc.models.model import ModelSpec
from moc.models.ports import Launch, Worker
from moc.models.rollouts import Rollouts
from moc.models.slot import Limits as ManagerLimits
from moc.resilience.deadline import NEVER, Deadline
from moc.security.audit import AuditLog
from moc.security.authenticator import Authenticator
from moc.security.keyring import ADMIN_KEY_FILE, KeyRing
from moc.service.aliases import AliasesService
from moc.service.audit import AuditService
from moc.service.checks import Checks
from moc.service.configuration import ConfigurationService
from moc.service.devices import DevicesService
from moc.service.evaluations import EvaluationsService
from moc.service.files import FilesService
from moc.service.health import Health
from moc.service.inference import InferenceService, Tally
from moc.service.jobs import JobsService
from moc.service.keys import KeysService
from moc.service.leases import LeasesService
from moc.service.models import ModelsService
from moc.service.replica import Replica
from moc.service.rollouts import RolloutsService
from moc.service.routes import AliasRoutes
from moc.service.services import Services
from moc.service.system import SystemService
from moc.service.tenancy import Tenancy
from moc.service.traffic import Meters, ModelFacts, TrafficJournal
from moc.service.workforce import Workforce
from moc.store.memory import MemoryStore
from moc.telemetry.metrics import Metrics
from moc.testing.devices import FakeDevices, fake_reading
from moc.testing.programs import FakeJobMemory, FakeKind, FakePrograms, FakeVisitors
from moc.testing.seat import FakeSeat
from moc.testing.workers import FakeLink, FakeMemory, FakeSources, FakeWorkers
from moc.transports.rest.limits import Limits
from moc.transports.rest.server import RestServer

INFO = Info(
    kinds=("tensors", "chat", "completion"),
    engine="echo",
    inputs=(TensorSpec("INPUT0", "FP32", (-1, 8)),),
    outputs=(TensorSpec("OUTPUT0", "FP32", (-1, 8)),),
    concurrency=2,
)


class EchoLink(FakeLink):
    """Gives tensors back under the names of outputs, and JSON bodies as they came.

    `began` is set by the first request it works on; `fault` is raised instead of an answer; `piece` is the
    first piece of a stream.
    """

    def __init__(self, info: Info) -> None:
        super().__init__(info)
        self.began = asyncio.Event()
        self.fault: Exception | None = None
        self.piece = b'{"choices":[{"text":"one"}]}'
        self._idle = asyncio.Condition()

    async def idle(self) -> None:
        """Wait until it works on nothing."""
        async with asyncio.timeout(10), self._idle:
            await self._idle.wait_for(lambda: self.running == 0)

    async def infer(self, request: Request) -> Reply:
        if self.fault is not None:
            raise self.fault
        self.began.set()
        try:
            reply = await super().infer(request)
        finally:
            await self._ended()
        outputs = tuple(
            Tensor(tensor.name.replace("INPUT", "OUTPUT"), tensor.datatype, tensor.shape, tensor.size)
            for tensor in request.inputs
        )
        return Reply(reply.body, outputs)

    async def stream(self, request: Request) -> AsyncIterator[list[bytes]]:
        """Three pieces; the second waits for `gate`, before the third `error` is raised if there is one."""
        self.given.append(request)
        self.running += 1
        self.began.set()
        try:
            yield [self.piece]
            await self.gate.wait()
            yield [b'{"choices":\n[{"text":" two"}]}']
            if self.error is not None:
                raise self.error
            yield [b'{"choices":[{"text":" three"}]}']
        finally:
            self.running -= 1
            await self._ended()

    async def _ended(self) -> None:
        async with self._idle:
            self._idle.notify_all()


class Crew(FakeWorkers):
    """Fails to list its workers while `fault` is set; `asked` is set by a start that `gate` holds back."""

    def __init__(self, *, info: Info) -> None:
        super().__init__(info=info)
        self.fault: Exception | None = None
        self.asked = asyncio.Event()

    async def start_worker(self, launch: Launch, deadline: Deadline) -> Worker:
        if not self.gate.is_set():
            self.asked.set()
        return await super().start_worker(launch, deadline)

    def workers(self) -> list[Worker]:
        if self.fault is not None:
            raise self.fault
        return super().workers()


class RestStack:
    """Everything behind one REST port; the model `echo` is registered."""

    def __init__(self, data_dir: Path, limits: Limits, *, ready_needs_models: bool = False) -> None:
        clock = SystemClock()
        self.data_dir = data_dir
        self._ready_needs_models = ready_needs_models
        self.store = MemoryStore()
        self.keys = KeyRing(store=self.store, data_dir=data_dir, clock=clock)
        self.audit = AuditLog(store=self.store, clock=clock)
        self.seat = FakeSeat(self.store)
        self.workers = Crew(info=INFO)
        self.sources = FakeSources()
        self.metrics = Metrics(version="test")
        self.replica = Replica(name="test", host="test", version="1.2.3", data_dir="data", store="memory")
        self._make_models(clock)
        self.device = FakeDevices(fake_reading(used_bytes=2**20))
        self.devices = DeviceMonitor([self.device], store=self.store, seat=self.seat, clock=clock, poll_interval_s=60)
        self.broker, self.tenancy = self._memory()
        self.leases = Leases(
            store=self.store,
            seat=self.seat,
            broker=self.broker,
            devices=self.devices,
            clock=clock,
            on_waited=self.metrics.lease_waited,
        )
        self._make_jobs(clock)
        self.authenticator = Authenticator(keys=self.keys, clock=clock, on_failed=self.audit.note_failed_login)
        self.taken_up: list[Config] = []
        self.configuration = self._configuration()
        self._make_gateway(clock)
        self.services = self._services()
        self.rest = RestServer(self.services, host="127.0.0.1", port=0, limits=limits)
        features = (
            self.audit,
            self.keys,
            self.devices,
            self.leases,
            self.files,
            self.jobs,
            self.catalogue,
            self.aliases,
            self.configuration,
            self.manager,
            self.health,
            self.rollouts,
            self.traffic,
            self.gateway,
        )
        self.stack = Stack([self.store, self.seat, *features, self.rest])

    def _make_models(self, clock: SystemClock) -> None:
        self.catalogue = Catalogue(store=self.store, seat=self.seat, clock=clock)
        self.aliases = AliasBook(store=self.store, seat=self.seat, clock=clock, catalogue=self.catalogue)
        self.observed = Observed(clock=clock)
        self.footprints = Footprints(store=self.store, clock=clock)
        self.health = Health(self.workers)
        self.manager = ModelManager(
            catalogue=self.catalogue,
            workers=self.workers,
            sources=self.sources,
            footprints=self.footprints,
            memory=FakeMemory(),
            limits=ManagerLimits(),
            on_loaded=self.metrics.model_loaded,
            warm=self.health.warm,
        )
        self.health.join(self.manager)

    def _make_jobs(self, clock: SystemClock) -> None:
        """Jobs of every type, whose programs do what the test says."""
        self.disk = DiskQuota([self.data_dir / "jobs", self.data_dir / "files"], limit_bytes=2**30)
        self.files = Files(store=self.store, folder=self.data_dir / "files", clock=clock, take=self.disk.take)
        self.programs, self.kind = FakePrograms(), FakeKind()
        self.jobs = Jobs(
            store=self.store,
            seat=self.seat,
            clock=clock,
            host="test",
            folder=self.data_dir / "jobs",
            kinds=dict.fromkeys(JobType, self.kind) | {JobType.EVALUATE: self._evaluation()},
            programs=self.programs,
            memory=FakeJobMemory(),
            visitors=FakeVisitors(),
            disk=self.disk,
            limits=JobLimits(places=2, attempts=3, grace_s=5),
        )

    def _evaluation(self) -> Evaluation:
        """What evaluations really are, of the models there are."""

        def answerers(name: str) -> dict[str, str]:
            found = self.catalogue.entry(name).version
            return {found.reference: found.digest}

        return Evaluation(files=self.files, answerers=answerers)

    def _make_gateway(self, clock: SystemClock) -> None:
        self.tally = Tally()
        self.traffic = TrafficJournal(counters=self.metrics.traffic, catalogue=self.catalogue)
        self.gateway = Gateway(
            residents=self.manager,
            links=self.workers,
            routes=AliasRoutes(self.aliases),
            facts=ModelFacts(catalogue=self.catalogue, health=self.health),
            shares=Shares(),
            observed=self.observed,
            meter=Meters(self.tally, self.observed),
            watcher=self.traffic,
            limits=TrafficLimits(),
            clock=clock,
        )
        self.rollouts = Rollouts(
            store=self.store,
            seat=self.seat,
            clock=clock,
            catalogue=self.catalogue,
            aliases=self.aliases,
            manager=self.manager,
            observations=self.observed,
            circuits=self.gateway.stations,
        )

    def _configuration(self) -> Reconfiguration:
        """As `data_dir` says; what settings are given out is in `taken_up`."""
        return Reconfiguration(
            load(data_dir=self.data_dir, file=None, ports={}),
            history=History(store=self.store, seat=self.seat),
            inventory=Inventory(
                catalogue=self.catalogue, manager=self.manager, aliases=self.aliases, sources=self.sources
            ),
            take_up=lambda config, vouched: self.taken_up.append(config),
            clock=SystemClock(),
        )

    def _services(self) -> Services:
        workforce = Workforce(self.workers)
        jobs = JobsService(jobs=self.jobs, files=self.files, journal=self.audit)
        leases = LeasesService(leases=self.leases)
        devices = DevicesService(monitor=self.devices, broker=self.broker, journal=self.audit)
        return Services(
            authenticator=self.authenticator,
            inference=InferenceService(
                gateway=self.gateway,
                catalogue=self.catalogue,
                aliases=self.aliases,
                manager=self.manager,
                health=self.health,
                tally=self.tally,
            ),
            models=ModelsService(
                catalogue=self.catalogue,
                manager=self.manager,
                sources=self.sources,
                footprints=self.footprints,
                tenancy=self.tenancy,
                workforce=workforce,
                health=self.health,
                stations=self.gateway.stations,
                journal=self.audit,
            ),
            aliases=AliasesService(
                aliases=self.aliases, manager=self.manager, observations=self.observed, journal=self.audit
            ),
            rollouts=RolloutsService(rollouts=self.rollouts, journal=self.audit),
            devices=devices,
            leases=leases,
            jobs=jobs,
            evaluations=EvaluationsService(jobs=self.jobs, service=jobs),
            files=FilesService(files=self.files, jobs=self.jobs, journal=self.audit),
            keys=KeysService(keys=self.keys, clock=SystemClock(), journal=self.audit),
            audit=AuditService(log=self.audit),
            configuration=ConfigurationService(configuration=self.configuration, journal=self.audit),
            system=SystemService(
                replica=self.replica,
                store=self.store,
                seats=[self.seat],
                workforce=workforce,
                devices=devices,
                leases=leases,
                jobs=jobs,
                metrics=self.metrics,
                checks=Checks(
                    replica=self.replica,
                    store=self.store,
                    seats=[self.seat],
                    devices=self.devices,
                    catalogue=self.catalogue,
                    aliases=self.aliases,
                    health=self.health,
                    needs_models=self._ready_needs_models,
                ),
            ),
        )

    @property
    def key(self) -> str:
        """The admin key."""
        return (self.data_dir / ADMIN_KEY_FILE).read_text().strip()

    def _memory(self) -> tuple[Broker, Tenancy]:
        tenancy = Tenancy(self.devices)
        broker = Broker(
            monitor=self.devices,
            tenants=tenancy,
            managed=lambda: [worker.pid for worker in self.workers.workers()],
            store=self.store,
            soft_limit_pct=90,
            policy=Policy(),
            clock=SystemClock(),
            on_evicted=self.metrics.evicted,
        )
        tenancy.join(broker=broker, manager=self.manager)
        return broker, tenancy

    async def load(self, name: str = "echo") -> EchoLink:
        """Register and load a model whose worker echoes."""
        await self.manager.add(name, ModelSpec(runtime="python", source="file:echo.py", ttl_s=0), actor="test")
        resident = await self.manager.ensure_ready(name, NEVER)
        link = self.workers.links[resident.worker_id] = EchoLink(INFO)
        return link


@asynccontextmanager
async def running(
    data_dir: Path, limits: Limits | None = None, *, ready_needs_models: bool = False
) -> AsyncIterator[RestStack]:
    """A stack that is started and ready, and stopped at the end."""
    stack = RestStack(data_dir, limits or Limits(watch_after_s=0.001), ready_needs_models=ready_needs_models)
    await stack.stack.start()
    stack.replica.state = "ready"
    try:
        yield stack
    finally:
        await stack.stack.stop()


def client(stack: RestStack) -> httpx.AsyncClient:
    """A client that has the admin key."""
    headers = {"authorization": f"Bearer {stack.key}"}
    return httpx.AsyncClient(base_url=stack.rest.url, headers=headers, timeout=10)
