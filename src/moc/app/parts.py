"""Parts of a coordinator, each made from the configuration alone."""

import socket
from collections.abc import Callable, Iterable
from dataclasses import replace

from moc.cluster.seat import SeatKeeper
from moc.config import Config
from moc.gpu.device import Device
from moc.gpu.ports import DeviceSource
from moc.hardware.declared import DeclaredDevices
from moc.hardware.host import HostMemory
from moc.hardware.nvml import NvmlDevices
from moc.hardware.selected import SelectedDevices
from moc.inference.station import TrafficLimits
from moc.kernel.clock import SystemClock
from moc.models.results import Results
from moc.models.slot import Limits
from moc.models.sources import ArtifactSources, Bounds, address_of, place
from moc.resilience.breaker import BreakerLimits
from moc.resilience.bulkhead import Bulkhead
from moc.service.services import Services
from moc.store.sqlite import SqliteStore
from moc.transports.zmq.server import ZmqServer
from moc.workers.fleet import Fleet
from moc.workers.heartbeat import Patience
from moc.workers.local import LocalWorkers
from moc.workers.remote import RemoteWorkers

SECRETS_FOLDER = "secrets"
SOURCE_LIMIT_BYTES = 1024**4
HANDOVER_S = 30.0
"""How much longer than a job may take to end a load waits for its memory."""


def workers(config: Config, store: SqliteStore, seat: SeatKeeper, sources: ArtifactSources) -> Fleet:
    """Who runs models: processes here, and remotes."""
    settings, host = config.settings.workers, socket.gethostname()
    local = LocalWorkers(
        store=store,
        seat=seat,
        host=host,
        run_dir=config.data_dir / "run",
        orphan_grace_s=settings.orphan_grace_s,
        stop_grace_s=settings.stop_grace_s,
        clock=SystemClock(),
        patience=Patience(unresponsive_after_s=settings.unresponsive_after_s, hung_after_s=settings.hung_after_s),
    )
    remote = RemoteWorkers(
        store=store,
        seat=seat,
        host=host,
        clock=SystemClock(),
        secrets=config.data_dir / SECRETS_FOLDER,
        reach=sources.check_address,
    )
    return Fleet(local=local, remote=remote)


def zmq(config: Config, services: Services) -> ZmqServer:
    """Where ZeroMQ clients come in."""
    settings = config.settings.server
    return ZmqServer(
        services,
        host=settings.host,
        port=settings.zmq_port,
        events_port=settings.events_port,
        curve_folder=config.curve_folder,
        body_limit_bytes=settings.body_limit_bytes,
    )


def traffic_limits(config: Config) -> TrafficLimits:
    """What a worker takes, and how often it may fail."""
    resilience = config.settings.resilience
    return TrafficLimits(
        breaker=breaker_limits(config), bulkhead=bulkhead(config), retry_budget_pct=resilience.retry_budget_pct
    )


def model_limits(config: Config) -> Limits:
    """How patient loads are: a job has to have saved before they can have its memory."""
    limits = Limits(breaker=breaker_limits(config), bulkhead=bulkhead(config))
    wait_s = config.settings.learning.grace_s + HANDOVER_S
    return replace(limits, memory_wait_s=max(limits.memory_wait_s, wait_s))


def bulkhead(config: Config) -> Bulkhead:
    """How many requests a model takes that does not say so."""
    bulkhead = config.settings.resilience.bulkhead
    return Bulkhead(max_concurrent=bulkhead.max_concurrent, max_queue=bulkhead.max_queue)


def breaker_limits(config: Config) -> BreakerLimits:
    """When requests are refused because too many before failed."""
    breaker = config.settings.resilience.circuit_breaker
    return BreakerLimits(failure_threshold=breaker.failure_threshold, reset_timeout_s=breaker.reset_timeout_s)


def bounds(config: Config, vouched: Config) -> Bounds:
    """What may be named over the API; where the file has a model from is as good as allowed."""
    security = config.settings.security
    named = (address_of(spec.source) for spec in vouched.models.values())
    return Bounds(
        roots=[config.path(root) for root in security.allowed_model_roots],
        python_roots=[config.path(root) for root in security.trusted_python_roots],
        commands=frozenset(security.trusted_commands),
        hosts=frozenset((*security.allowed_model_hosts, *(place(host, port) for host, port in named if host))),
        secrets=config.data_dir / SECRETS_FOLDER,
    )


def artifact_sources(config: Config) -> ArtifactSources:
    """Where models come from."""
    return ArtifactSources(
        config.data_dir / "blobs",
        bounds=bounds(config, config),
        base_dir=config.origin.base,
        size_limit_bytes=SOURCE_LIMIT_BYTES,
        results=results(config),
    )


def results(config: Config) -> Results:
    """Where versions are kept that were trained here."""
    return Results(config.data_dir / "results")


def device_sources(config: Config, pids: Callable[[], Iterable[int]]) -> list[DeviceSource]:
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
