"""A coordinator: its parts made and joined, started and stopped."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import structlog

from moc import __version__
from moc.app import parts
from moc.app.learning import Learning
from moc.cluster.holder import Holder
from moc.cluster.seat import SeatKeeper
from moc.config import Config
from moc.config.history import History
from moc.config.inventory import Inventory
from moc.config.reconfiguration import Reconfiguration
from moc.gpu.broker import Broker
from moc.gpu.eviction import Order, Policy
from moc.gpu.leases import Leases
from moc.gpu.monitor import DeviceMonitor
from moc.gpu.pressure import Pressure
from moc.hardware.host import HOST
from moc.inference.gateway import Gateway
from moc.inference.observed import Observed
from moc.inference.shares import Shares
from moc.kernel.clock import SystemClock
from moc.kernel.component import Stack
from moc.kernel.errors import MocError
from moc.models.aliases import AliasBook
from moc.models.catalogue import Catalogue
from moc.models.footprints import Footprints
from moc.models.manager import ModelManager
from moc.models.rollouts import Rollouts
from moc.security.audit import AuditLog
from moc.security.authenticator import Authenticator
from moc.security.keyring import KeyRing
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
from moc.store.sqlite import SqliteStore
from moc.telemetry import logs
from moc.telemetry.metrics import Metrics
from moc.transports.grpc.server import GrpcServer
from moc.transports.rest.server import RestServer

log = structlog.get_logger(__name__)

ENDPOINTS_FILE = "endpoints.json"
_STANDARD_ERROR = 2


class Coordinator:
    """One replica: everything made from its configuration, nothing started yet."""

    def __init__(self, config: Config) -> None:
        self.config = config
        settings, data_dir, clock, host = config.settings, config.data_dir, SystemClock(), socket.gethostname()
        self._ended = asyncio.Event()
        self._failure: str | None = None
        self.metrics = Metrics(version=__version__)
        self.observed = Observed(clock=clock)
        self.store = SqliteStore(config.store_path, clock=clock, on_fenced=self.metrics.fenced)
        self.replica = Replica(
            name=f"{host}-{os.getpid()}", host=host, version=__version__, data_dir=str(data_dir), store="sqlite"
        )
        self.seats = [
            SeatKeeper(self.store, name, holder=str(Holder.here()), clock=clock, on_lost=self._seat_lost)
            for name in (f"host/{host}", "cluster")
        ]
        seat = self.seats[0]
        self.sources = parts.artifact_sources(config)
        self.workers = parts.workers(config, self.store, seat, self.sources)
        self.devices = DeviceMonitor(
            parts.device_sources(config, self._charged_pids),
            store=self.store,
            seat=seat,
            clock=clock,
            poll_interval_s=settings.resources.gpu_poll_interval_s,
        )
        self._make_models(seat)
        self._make_gateway()
        self.keys = KeyRing(store=self.store, data_dir=data_dir, clock=clock)
        self.audit = AuditLog(store=self.store, clock=clock)
        self.authenticator = Authenticator(
            keys=self.keys,
            clock=clock,
            require_key=settings.security.require_key,
            failed_logins_per_min=settings.security.failed_logins_per_min,
            on_failed=self.audit.note_failed_login,
        )
        self.learning = Learning(
            config,
            store=self.store,
            seat=self.seats[1],
            catalogue=self.catalogue,
            aliases=self.aliases,
            manager=self.manager,
            leases=self.leases,
            broker=self.broker,
            devices=self.devices,
            keys=self.keys,
            observed=self.observed,
            on_share=self.metrics.learning.observe_share,
            url=lambda: self.rest.url,
        )
        self.configuration = self._reconfiguration()
        self._make_doors(self._services())
        models = (self.catalogue, self.aliases, self.configuration, self.manager, self.health, self.rollouts)
        traffic = (self.traffic, self.gateway)
        features = (self.audit, self.keys, self.workers, self.devices, self.leases, *models, self.pressure, *traffic)
        self._stack = Stack([self.store, *self.seats, *features, self.learning, self.rest, self.grpc, self.zmq])

    def _make_models(self, seat: SeatKeeper) -> None:
        """The models and the memory they are put in, which need each other."""
        settings, clock = self.config.settings, SystemClock()
        self.catalogue = Catalogue(store=self.store, seat=seat, clock=clock)
        self.aliases = AliasBook(store=self.store, seat=seat, clock=clock, catalogue=self.catalogue)
        self.footprints = Footprints(store=self.store, clock=clock)
        self.tenancy = Tenancy(self.devices)
        self.health = Health(self.workers)
        self.manager = ModelManager(
            catalogue=self.catalogue,
            workers=self.workers,
            sources=self.sources,
            footprints=self.footprints,
            memory=self.tenancy,
            limits=parts.model_limits(self.config),
            on_loaded=self.metrics.model_loaded,
            warm=self.health.warm,
        )
        self.health.join(self.manager)
        self.broker = Broker(
            monitor=self.devices,
            tenants=self.tenancy,
            managed=self._managed_pids,
            store=self.store,
            soft_limit_pct=settings.resources.soft_limit_pct,
            policy=Policy(order=Order(settings.resources.eviction)),
            clock=clock,
            on_evicted=self.metrics.evicted,
        )
        self.leases = Leases(
            store=self.store,
            seat=seat,
            broker=self.broker,
            devices=self.devices,
            clock=clock,
            on_waited=self.metrics.lease_waited,
        )
        self.broker.join(self.leases.handover)
        self.pressure = Pressure(
            self.broker,
            interval_s=settings.resources.gpu_poll_interval_s,
            threshold_pct=settings.resources.eviction_threshold_pct,
        )
        self.tenancy.join(broker=self.broker, manager=self.manager)

    def _make_gateway(self) -> None:
        """The way of requests to models, and who moves it."""
        clock = SystemClock()
        self.tally = Tally()
        self.traffic = TrafficJournal(counters=self.metrics.traffic, catalogue=self.catalogue)
        self.gateway = Gateway(
            residents=self.manager,
            links=self.workers,
            routes=AliasRoutes(self.aliases),
            facts=ModelFacts(catalogue=self.catalogue, health=self.health),
            shares=Shares(),
            observed=self.observed,
            meter=Meters(self.tally, self.observed, self.metrics),
            watcher=self.traffic,
            limits=parts.traffic_limits(self.config),
            clock=clock,
        )
        self.rollouts = Rollouts(
            store=self.store,
            seat=self.seats[1],
            clock=clock,
            catalogue=self.catalogue,
            aliases=self.aliases,
            manager=self.manager,
            observations=self.observed,
            circuits=self.gateway.stations,
        )

    def _reconfiguration(self) -> Reconfiguration:
        return Reconfiguration(
            self.config,
            history=History(store=self.store, seat=self.seats[0]),
            inventory=Inventory(
                catalogue=self.catalogue, manager=self.manager, aliases=self.aliases, sources=self.sources
            ),
            take_up=self._take_up,
            clock=SystemClock(),
        )

    def _make_doors(self, services: Services) -> None:
        """Where clients come in."""
        settings = self.config.settings.server
        self.rest = RestServer(
            services,
            host=settings.host,
            port=settings.rest_port,
            body_limit_bytes=settings.body_limit_bytes,
            tls=self.config.tls,
        )
        self.grpc = GrpcServer(
            services,
            host=settings.host,
            port=settings.grpc_port,
            body_limit_bytes=settings.body_limit_bytes,
            tls=self.config.tls,
        )
        self.zmq = parts.zmq(self.config, services)
        self.replica.listeners.update(
            rest=lambda: self.rest.listening, grpc=lambda: self.grpc.listening, zmq=lambda: self.zmq.listening
        )

    def _services(self) -> Services:
        metrics, workforce = self.metrics, Workforce(self.workers)
        devices = DevicesService(monitor=self.devices, broker=self.broker, journal=self.audit)
        leases = LeasesService(leases=self.leases)
        jobs = JobsService(jobs=self.learning.jobs, files=self.learning.files, journal=self.audit)
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
            evaluations=EvaluationsService(jobs=self.learning.jobs, service=jobs),
            files=FilesService(files=self.learning.files, jobs=self.learning.jobs, journal=self.audit),
            keys=KeysService(keys=self.keys, clock=SystemClock(), journal=self.audit),
            audit=AuditService(log=self.audit),
            configuration=ConfigurationService(configuration=self.configuration, journal=self.audit),
            system=SystemService(
                replica=self.replica,
                store=self.store,
                seats=self.seats,
                workforce=workforce,
                devices=devices,
                leases=leases,
                jobs=jobs,
                metrics=metrics,
                checks=self._checks(),
            ),
        )

    def _checks(self) -> Checks:
        return Checks(
            replica=self.replica,
            store=self.store,
            seats=self.seats,
            devices=self.devices,
            catalogue=self.catalogue,
            aliases=self.aliases,
            health=self.health,
            needs_models=self.config.settings.server.ready_needs_models,
        )

    def _managed_pids(self) -> set[int]:
        """The processes whose memory is charged: workers and those of leases, with all they started."""
        pids = set(self._charged_pids())
        host = self.devices.readings().get(HOST)  # it measures every process of their trees
        return pids if host is None else pids | set(host.processes)

    def _charged_pids(self) -> list[int]:
        """Workers, and the processes that were named for leases; any thread may ask."""
        return [*(worker.pid for worker in self.workers.workers() if worker.pid), *self.leases.managed_pids()]

    async def run(self, ready: Callable[["Coordinator"], None], *, stop_workers: bool) -> None:
        """Serve until SIGTERM or SIGINT; a second one ends at once. Raises MocError when it cannot go on.

        SIGHUP has the configuration file read again.
        `ready` is called when requests are answered. Workers stay for the next coordinator to adopt
        unless `stop_workers`.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up, os.isatty(_STANDARD_ERROR))
        await self._stack.start()
        if not self.config.is_loopback and self.config.tls is None:
            host = self.config.settings.server.host
            log.warning("REST and gRPC without TLS: keys and data can be read on the network", host=host)
        try:
            self.replica.urls.update(self._urls())
            self._write_endpoints()
            self.replica.state = "ready"
            ready(self)
            await self._ended.wait()
            self.replica.state = "draining"
            log.info("draining", grace_s=self.config.settings.server.drain_grace_s)
            if self._failure is None:
                await self._stack.drain(self.config.settings.server.drain_grace_s)
                if stop_workers:
                    await self.learning.jobs.stop_programs()
                    await self.workers.stop_workers()
        finally:
            with contextlib.suppress(FileNotFoundError):
                (self.config.data_dir / ENDPOINTS_FILE).unlink()
            await self._stack.stop()
        if self._failure is not None:
            raise MocError(self._failure)

    def _take_up(self, config: Config, vouched: Config) -> None:
        """Give the settings that may change meanwhile to the parts that have them; see `Reconfiguration`."""
        self.config = config
        resources, security = config.settings.resources, config.settings.security
        logs.set_level(config.settings.telemetry.log_level)
        self.gateway.adjust(parts.traffic_limits(config))
        self.manager.adjust(parts.model_limits(config))
        self.devices.adjust(poll_interval_s=resources.gpu_poll_interval_s)
        self.pressure.adjust(interval_s=resources.gpu_poll_interval_s, threshold_pct=resources.eviction_threshold_pct)
        self.broker.adjust(soft_limit_pct=resources.soft_limit_pct, policy=Policy(order=Order(resources.eviction)))
        self.sources.adjust(bounds=parts.bounds(config, vouched))
        self.learning.adjust(config)
        self.authenticator.adjust(
            require_key=security.require_key, failed_logins_per_min=security.failed_logins_per_min
        )

    def _signalled(self) -> None:
        if self._ended.is_set():
            os._exit(1)  # asked twice: whoever asks wants it gone now
        self._ended.set()

    def _hung_up(self, had_terminal: bool) -> None:
        """Read the configuration file again; where it was the terminal that went, end as for SIGTERM."""
        if had_terminal and not os.isatty(_STANDARD_ERROR):
            with Path(os.devnull).open("wb") as nowhere:  # what is logged from now on is for nobody, and no error
                os.dup2(nowhere.fileno(), _STANDARD_ERROR)
            self._signalled()
        else:
            self.configuration.reread_soon()

    def _seat_lost(self, why: str) -> None:
        self._failure = why
        self._ended.set()

    def _urls(self) -> dict[str, str]:
        """Where clients on this machine reach it."""
        urls = {"rest": self.rest.url, "grpc": self.grpc.target, "zmq": self.zmq.url}
        return urls if self.zmq.events_url is None else {**urls, "events": self.zmq.events_url}

    def _write_endpoints(self) -> None:
        path: Path = self.config.data_dir / ENDPOINTS_FILE
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps({**self._urls(), "pid": os.getpid()}))
        aside.replace(path)
