"""The parts that jobs are made of, joined."""

import contextlib
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from moc.app import parts
from moc.cluster.seat import SeatKeeper
from moc.config import Config
from moc.gpu.broker import Broker
from moc.gpu.leases import Leases
from moc.gpu.monitor import DeviceMonitor
from moc.inference.observed import Observed
from moc.kernel.clock import SystemClock
from moc.kernel.component import Stack
from moc.kernel.errors import NotFound
from moc.kernel.units import Bytes
from moc.learning.disk import DiskQuota
from moc.learning.evaluation import Evaluation
from moc.learning.expiry import Expiry
from moc.learning.files import Files
from moc.learning.governor import Governor
from moc.learning.job import TRAINING, JobType
from moc.learning.jobs import Jobs
from moc.learning.ports import Kind
from moc.learning.script import Script
from moc.learning.training import Training
from moc.learning.tuning import Tuning
from moc.learning.watch import Limits
from moc.models.aliases import AliasBook
from moc.models.catalogue import Catalogue
from moc.models.manager import ModelManager
from moc.models.model import REMOTE
from moc.security.keyring import KeyRing
from moc.service.job_memory import JobMemory
from moc.service.registry import ModelRegistry
from moc.service.throttle import Throttle
from moc.service.visitors import JobVisitors
from moc.store.sqlite import SqliteStore
from moc.workers.trainers.programs import LocalPrograms


class Learning:
    """Jobs and files, and what they need of the rest. `url` is where REST is reached on this machine."""

    def __init__(
        self,
        config: Config,
        *,
        store: SqliteStore,
        seat: SeatKeeper,
        catalogue: Catalogue,
        aliases: AliasBook,
        manager: ModelManager,
        leases: Leases,
        broker: Broker,
        devices: DeviceMonitor,
        keys: KeyRing,
        observed: Observed,
        on_share: Callable[[float], None],
        url: Callable[[], str],
    ) -> None:
        settings, clock, data_dir = config.settings.learning, SystemClock(), config.data_dir
        jobs, files = data_dir / "jobs", data_dir / "files"
        self._catalogue, self._aliases, self._manager = catalogue, aliases, manager
        self._disk = DiskQuota([jobs, files], limit_bytes=_quota(config))
        self._memory = JobMemory(
            leases=leases,
            broker=broker,
            devices=devices,
            store=store,
            grace_s=settings.grace_s,
            min_runtime_s=settings.min_runtime_s,
        )
        self._programs = LocalPrograms(
            orphan_grace_s=config.settings.workers.orphan_grace_s, grace_s=settings.grace_s, threads=settings.threads
        )
        self.files = Files(store=store, folder=files, clock=clock, take=self._disk.take)
        results = parts.results(config)
        self.registry = ModelRegistry(catalogue=catalogue, aliases=aliases, manager=manager, results=results)
        self.jobs = Jobs(
            store=store,
            seat=seat,
            clock=clock,
            host=host_of(data_dir),
            folder=jobs,
            kinds=self._kinds(config),
            programs=self._programs,
            memory=self._memory,
            visitors=JobVisitors(keys=keys, clock=clock, url=url, authority=data_dir / "certs" / "ca.pem"),
            disk=self._disk,
            limits=_limits(config),
        )
        self.registry.join(self.jobs.all)
        self._throttle = Throttle(
            programs=self._programs,
            running=self.jobs.processes,
            serving=self._serving,
            observed=observed,
            governor=Governor(max_ratio=settings.max_serving_p95_ratio),
            clock=clock,
            on_share=on_share,
        )
        expiry = Expiry(files=self.files, jobs=self.jobs, seat=seat, clock=clock)
        self._stack = Stack([self.files, self.jobs, expiry, self._throttle])

    async def start(self) -> None:
        """Begin with what was not over."""
        await self._stack.start()

    async def drain(self) -> None:
        """Start no more."""
        await self.jobs.drain()

    async def stop(self) -> None:
        """Leave the programs that run to whoever starts next."""
        await self._stack.stop()

    def adjust(self, config: Config) -> None:
        """Go on with these settings; see `config.settings.LIVE` for those that wait for a restart."""
        settings = config.settings.learning
        self.jobs.adjust(_limits(config))
        self._programs.adjust(grace_s=settings.grace_s)
        self._disk.adjust(limit_bytes=_quota(config))
        self._throttle.adjust(max_ratio=settings.max_serving_p95_ratio)
        self._memory.adjust(grace_s=settings.grace_s, min_runtime_s=settings.min_runtime_s)
        self._script.adjust(commands=frozenset(config.settings.security.trusted_commands))

    def _kinds(self, config: Config) -> dict[JobType, Kind]:
        settings, files = config.settings.learning, self.files
        cache = config.data_dir / "cache" / "bases"
        trainings = {
            each: Training(type=each, files=files, registry=self.registry, cache=cache, kept=settings.checkpoints_kept)
            for each in TRAINING
        }

        async def publish(job_id: str, name: str) -> str:
            job = self.jobs.show(job_id)
            return await trainings[job.spec.type].publish(job, self.jobs.folder(job_id), name)

        self._script = Script(files=files, commands=frozenset(config.settings.security.trusted_commands))
        triable: dict[JobType, Kind] = {**trainings, JobType.SCRIPT: self._script}
        return {
            **triable,
            JobType.EVALUATE: Evaluation(files=files, answerers=self._answerers),
            JobType.TUNE: Tuning(kinds=triable, enabled=settings.enable_auto_tune, publish=publish),
        }

    def _serving(self) -> Mapping[str, int]:
        """The requests that each model answers that computes here."""
        loaded = self._manager.loaded()
        return {each.reference: each.users for entry, each in loaded if entry.version.spec.runtime != REMOTE}

    def _answerers(self, reference: str) -> dict[str, str]:
        """The versions that may answer for a model or an alias, each with its digest; none when there is neither."""
        alias = self._aliases.find(reference)
        try:
            found = [self._catalogue.entry(name).version for name in (alias.answerers if alias else (reference,))]
        except NotFound:
            return {}
        return {version.reference: version.digest for version in found}


def host_of(data_dir: Path) -> str:
    """The name of the host whose jobs are in this folder: what it was called first, for containers change names."""
    kept = data_dir / "host"
    with contextlib.suppress(OSError):
        if name := kept.read_text().strip():
            return name
    name = socket.gethostname()
    kept.write_text(f"{name}\n")
    return name


def _limits(config: Config) -> Limits:
    settings = config.settings.learning
    return Limits(places=settings.max_parallel_jobs, attempts=settings.max_attempts, grace_s=settings.grace_s)


def _quota(config: Config) -> int:
    return int(Bytes.parse(config.settings.learning.disk_quota))
