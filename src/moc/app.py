"""The composition root: the one place where the parts are made and joined."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from moc import __version__
from moc.cluster.holder import Holder
from moc.cluster.seat import SeatKeeper
from moc.config import Config
from moc.gpu.broker import Broker
from moc.gpu.device import Device
from moc.gpu.eviction import Order, Policy
from moc.gpu.leases import Leases
from moc.gpu.monitor import DeviceMonitor
from moc.gpu.ports import DeviceSource
from moc.gpu.pressure import Pressure
from moc.hardware.declared import DeclaredDevices
from moc.hardware.host import HOST, HostMemory
from moc.hardware.nvml import NvmlDevices
from moc.hardware.selected import SelectedDevices
from moc.inference.gateway import Gateway
from moc.kernel.clock import SystemClock
from moc.kernel.component import Stack
from moc.kernel.errors import MocError
from moc.models.catalogue import Catalogue
from moc.models.footprints import Footprints
from moc.models.manager import ModelManager
from moc.models.model import ModelSpec
from moc.models.slot import Limits
from moc.models.sources import ArtifactSources, Bounds, host_of
from moc.security.audit import AuditLog
from moc.security.authenticator import Authenticator
from moc.security.keyring import KeyRing
from moc.service.audit import AuditService
from moc.service.devices import DevicesService
from moc.service.inference import InferenceService, Tally
from moc.service.keys import KeysService
from moc.service.leases import LeasesService
from moc.service.models import ModelsService
from moc.service.services import Services
from moc.service.system import Replica, SystemService
from moc.service.tenancy import Tenancy
from moc.service.workforce import Workforce
from moc.store.sqlite import SqliteStore
from moc.telemetry.metrics import Metrics
from moc.transports.grpc.server import GrpcServer
from moc.transports.rest.server import RestServer
from moc.transports.zmq.server import ZmqServer
from moc.workers.local import LocalWorkers

log = structlog.get_logger(__name__)

ENDPOINTS_FILE = "endpoints.json"
SOURCE_LIMIT_BYTES = 1024**4


class _Meters:
    """Tells several meters about each request."""

    def __init__(self, tally: Tally, metrics: Metrics) -> None:
        self._tally = tally
        self._metrics = metrics

    def finished(self, reference: str, kind: str, code: str, *, queue_s: float, engine_s: float) -> None:
        self._tally.finished(reference, kind, code, queue_s=queue_s, engine_s=engine_s)
        self._metrics.finished(reference, kind, code, queue_s=queue_s, engine_s=engine_s)


class Coordinator:
    """One replica: everything made from its configuration, nothing started yet."""

    def __init__(self, config: Config) -> None:
        self.config = config
        settings, data_dir, clock, host = config.settings, config.data_dir, SystemClock(), socket.gethostname()
        self._ended = asyncio.Event()
        self._failure: str | None = None
        self.metrics = Metrics(version=__version__)
        self.store = SqliteStore(config.store_path, clock=clock, on_fenced=self.metrics.fenced)
        self.replica = Replica(
            name=f"{host}-{os.getpid()}", host=host, version=__version__, data_dir=str(data_dir), store="sqlite"
        )
        self.seats = [
            SeatKeeper(self.store, name, holder=str(Holder.here()), clock=clock, on_lost=self._seat_lost)
            for name in (f"host/{host}", "cluster")
        ]
        seat = self.seats[0]
        self.workers = _workers(config, self.store, seat, host)
        self.devices = DeviceMonitor(
            _device_sources(config, self._charged_pids),
            store=self.store,
            seat=seat,
            clock=clock,
            poll_interval_s=settings.resources.gpu_poll_interval_s,
        )
        self.sources = _artifact_sources(config)
        self._make_models(seat)
        self.keys = KeyRing(store=self.store, data_dir=data_dir, clock=clock)
        self.audit = AuditLog(store=self.store, clock=clock)
        self.authenticator = Authenticator(
            keys=self.keys,
            clock=clock,
            require_key=settings.security.require_key,
            failed_logins_per_min=settings.security.failed_logins_per_min,
            on_failed=self.audit.note_failed_login,
        )
        services = self._services()
        self.rest = RestServer(
            services,
            host=settings.server.host,
            port=settings.server.rest_port,
            body_limit_bytes=settings.server.body_limit_bytes,
            tls=config.tls,
        )
        self.grpc = GrpcServer(
            services,
            host=settings.server.host,
            port=settings.server.grpc_port,
            body_limit_bytes=settings.server.body_limit_bytes,
            tls=config.tls,
        )
        self.zmq = _zmq(config, services)
        pressure = Pressure(
            self.broker,
            interval_s=settings.resources.gpu_poll_interval_s,
            threshold_pct=settings.resources.eviction_threshold_pct,
        )
        models = (self.catalogue, _Configured(self), self.manager)
        features = (self.audit, self.keys, self.workers, self.devices, self.leases, *models, pressure)
        self._stack = Stack([self.store, *self.seats, *features, self.rest, self.grpc, self.zmq])

    def _make_models(self, seat: SeatKeeper) -> None:
        """The models and the memory they are put in, which need each other."""
        settings, clock = self.config.settings, SystemClock()
        self.catalogue = Catalogue(store=self.store, seat=seat, clock=clock)
        self.footprints = Footprints(store=self.store, clock=clock)
        self.tenancy = Tenancy(self.devices)
        self.manager = ModelManager(
            catalogue=self.catalogue,
            workers=self.workers,
            sources=self.sources,
            footprints=self.footprints,
            memory=self.tenancy,
            limits=Limits(),
            on_loaded=self.metrics.model_loaded,
        )
        self.broker = Broker(
            monitor=self.devices,
            tenants=self.tenancy,
            managed=self._managed_pids,
            store=self.store,
            soft_limit_pct=settings.resources.soft_limit_pct,
            policy=Policy(order=Order(settings.resources.eviction)),
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
        self.tenancy.join(broker=self.broker, manager=self.manager)

    def _services(self) -> Services:
        metrics, tally, workforce = self.metrics, Tally(), Workforce(self.workers)
        gateway = Gateway(residents=self.manager, links=self.workers, meter=_Meters(tally, metrics))
        devices = DevicesService(monitor=self.devices, broker=self.broker, journal=self.audit)
        leases = LeasesService(leases=self.leases)
        return Services(
            authenticator=self.authenticator,
            inference=InferenceService(gateway=gateway, catalogue=self.catalogue, manager=self.manager, tally=tally),
            models=ModelsService(
                catalogue=self.catalogue,
                manager=self.manager,
                sources=self.sources,
                footprints=self.footprints,
                tenancy=self.tenancy,
                workforce=workforce,
                journal=self.audit,
            ),
            devices=devices,
            leases=leases,
            keys=KeysService(keys=self.keys, clock=SystemClock(), journal=self.audit),
            audit=AuditService(log=self.audit),
            system=SystemService(
                replica=self.replica,
                store=self.store,
                seats=self.seats,
                workforce=workforce,
                devices=devices,
                leases=leases,
                metrics=metrics,
            ),
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

        `ready` is called when requests are answered. Workers stay for the next coordinator to adopt
        unless `stop_workers`.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
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
                    await self.workers.stop_workers()
        finally:
            with contextlib.suppress(FileNotFoundError):
                (self.config.data_dir / ENDPOINTS_FILE).unlink()
            await self._stack.stop()
        if self._failure is not None:
            raise MocError(self._failure)

    async def configure(self) -> None:
        """Register what the configuration names; the same spec again is the same version."""
        for name, spec in self.config.models.items():
            await self.register(name, spec)

    async def register(self, name: str, spec: ModelSpec) -> None:
        """Register one model on the operator's word."""
        self.sources.check(spec, trusted=True)
        await self.manager.add(name, spec, actor="config")

    def _signalled(self) -> None:
        if self._ended.is_set():
            os._exit(1)  # asked twice: whoever asks wants it gone now
        self._ended.set()

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


def _workers(config: Config, store: SqliteStore, seat: SeatKeeper, host: str) -> LocalWorkers:
    settings = config.settings.workers
    return LocalWorkers(
        store=store,
        seat=seat,
        host=host,
        run_dir=config.data_dir / "run",
        orphan_grace_s=settings.orphan_grace_s,
        stop_grace_s=settings.stop_grace_s,
        clock=SystemClock(),
    )


def _zmq(config: Config, services: Services) -> ZmqServer:
    settings = config.settings.server
    return ZmqServer(
        services,
        host=settings.host,
        port=settings.zmq_port,
        events_port=settings.events_port,
        curve_folder=config.curve_folder,
        body_limit_bytes=settings.body_limit_bytes,
    )


def _artifact_sources(config: Config) -> ArtifactSources:
    security = config.settings.security
    named = (host_of(spec.source) for spec in config.models.values())
    bounds = Bounds(
        roots=[config.path(root) for root in security.allowed_model_roots],
        python_roots=[config.path(root) for root in security.trusted_python_roots],
        hosts=frozenset((*security.allowed_model_hosts, *filter(None, named))),
    )
    return ArtifactSources(
        config.data_dir / "blobs",
        bounds=bounds,
        base_dir=config.source_base,
        size_limit_bytes=SOURCE_LIMIT_BYTES,
    )


def _device_sources(config: Config, pids: Callable[[], Iterable[int]]) -> list[DeviceSource]:
    """All that reads devices: everything there is, or what the configuration chose."""
    found: tuple[DeviceSource, ...] = (NvmlDevices(), HostMemory(pids))
    if config.devices is None:
        return [*found]
    limits = {choice.id: choice.memory_bytes for choice in config.devices}
    kinds = {choice.kind for choice in config.devices}
    declared = [
        Device(id=choice.id, kind=choice.kind, name="declared", capacity_bytes=choice.memory_bytes or 0)
        for choice in config.devices
        if choice.kind == DeclaredDevices.kind
    ]
    return [*(SelectedDevices(source, limits) for source in found if source.kind in kinds), DeclaredDevices(declared)]


class _Configured:
    """Registers the configured models once the catalogue is read."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def start(self) -> None:
        await self._coordinator.configure()

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        return
