"""The composition root: the one place where the parts are made and joined."""

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
from moc.cluster.holder import Holder
from moc.cluster.seat import SeatKeeper
from moc.config import Config
from moc.inference.gateway import Gateway
from moc.kernel.clock import SystemClock
from moc.kernel.component import Stack
from moc.kernel.errors import MocError
from moc.models.catalogue import Catalogue
from moc.models.manager import Limits, ModelManager
from moc.models.model import ModelSpec
from moc.models.sources import ArtifactSources
from moc.security.identity import Authenticator
from moc.service.inference import InferenceService, Tally
from moc.service.models import ModelsService
from moc.service.services import Services
from moc.service.system import Replica, SystemService
from moc.service.workforce import Workforce
from moc.store.sqlite import SqliteStore
from moc.telemetry.metrics import Metrics
from moc.transports.rest.server import RestServer
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
        self.store = SqliteStore(config.store_path, clock=clock)
        self.replica = Replica(
            name=f"{host}-{os.getpid()}", host=host, version=__version__, data_dir=str(data_dir), store="sqlite"
        )
        self.seats = [
            SeatKeeper(self.store, name, holder=str(Holder.here()), clock=clock, on_lost=self._seat_lost)
            for name in (f"host/{host}", "cluster")
        ]
        self.workers = LocalWorkers(
            store=self.store,
            seat=self.seats[0],
            host=host,
            run_dir=data_dir / "run",
            orphan_grace_s=settings.workers.orphan_grace_s,
            stop_grace_s=settings.workers.stop_grace_s,
            clock=clock,
        )
        self.sources = ArtifactSources(
            data_dir / "blobs",
            allowed_roots=[config.path(root) for root in settings.security.allowed_model_roots],
            base_dir=config.source_base,
            size_limit_bytes=SOURCE_LIMIT_BYTES,
        )
        self.catalogue = Catalogue(store=self.store, seat=self.seats[0], clock=clock)
        self.manager = ModelManager(
            catalogue=self.catalogue, workers=self.workers, sources=self.sources, limits=Limits()
        )
        self.authenticator = Authenticator(
            store=self.store, data_dir=data_dir, clock=clock, require_key=settings.security.require_key
        )
        self.rest = RestServer(
            self._services(),
            host=settings.server.host,
            port=settings.server.rest_port,
            body_limit_bytes=settings.server.body_limit_bytes,
        )
        features = (self.authenticator, self.workers, self.catalogue, _Configured(self), self.manager)
        self._stack = Stack([self.store, *self.seats, *features, self.rest])

    def _services(self) -> Services:
        metrics, tally, workforce = Metrics(version=__version__), Tally(), Workforce(self.workers)
        gateway = Gateway(residents=self.manager, links=self.workers, meter=_Meters(tally, metrics))
        return Services(
            authenticator=self.authenticator,
            inference=InferenceService(gateway=gateway, catalogue=self.catalogue, manager=self.manager, tally=tally),
            models=ModelsService(
                catalogue=self.catalogue, manager=self.manager, sources=self.sources, workforce=workforce
            ),
            system=SystemService(
                replica=self.replica, store=self.store, seats=self.seats, workforce=workforce, metrics=metrics
            ),
        )

    async def run(self, ready: Callable[["Coordinator"], None], *, stop_workers: bool) -> None:
        """Serve until SIGTERM or SIGINT; a second one ends at once. Raises MocError when it cannot go on.

        `ready` is called when requests are answered. Workers stay for the next coordinator to adopt
        unless `stop_workers`.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        await self._stack.start()
        try:
            self.replica.urls["rest"] = self.rest.url
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
        self.sources.check(spec.source, trusted=True)
        await self.manager.add(name, spec, actor="config")

    def _signalled(self) -> None:
        if self._ended.is_set():
            os._exit(1)  # asked twice: whoever asks wants it gone now
        self._ended.set()

    def _seat_lost(self, why: str) -> None:
        self._failure = why
        self._ended.set()

    def _write_endpoints(self) -> None:
        path: Path = self.config.data_dir / ENDPOINTS_FILE
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps({"rest": self.rest.url, "pid": os.getpid()}))
        aside.replace(path)


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
