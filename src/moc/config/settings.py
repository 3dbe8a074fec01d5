"""Every key there is, section by section: its meaning, unit, range and default."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from moc.config.document import PREFIX
from moc.kernel.errors import InvalidRequest
from moc.kernel.units import Bytes

LIVE = (
    "aliases",
    "learning.disk_quota",
    "learning.grace_s",
    "learning.max_attempts",
    "learning.max_parallel_jobs",
    "learning.max_serving_p95_ratio",
    "learning.min_runtime_s",
    "models",
    "resilience",
    "resources",
    "security",
    "server.drain_grace_s",
    "telemetry.log_level",
)
"""The sections and keys that take effect while the coordinator runs; all others do at its next start."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Tls(_Section):
    """TLS of REST and gRPC, as PEM files; files that change are taken up within a second or two."""

    certificate: str | None = None
    """The certificate, with the chain up to its authority; no TLS without one. `{data_dir}` is understood."""
    key: str | None = None
    """The certificate's private key."""
    client_ca: str | None = None
    """The authority of clients' certificates, each of which stands for the API key whose id is its common name."""

    @model_validator(mode="after")
    def _both_or_none(self) -> "Tls":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("`certificate` and `key` go together")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("`client_ca` needs `certificate` and `key`")
        return self


class Server(_Section):
    """Where clients reach the coordinator."""

    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback needs `security.require_key`."""
    rest_port: int = Field(default=8008, ge=0, le=65535)
    """Port of REST; 0 = any free one."""
    grpc_port: int = Field(default=7212, ge=0, le=65535)
    """Port of gRPC; 0 = any free one."""
    zmq_port: int = Field(default=7211, ge=0, le=65535)
    """Port of ZeroMQ; 0 = any free one."""
    zmq_curve: Literal["auto", "on", "off"] = "auto"
    """Whether ZeroMQ connections are encrypted and need a CURVE key that is bound to an API key; `auto`: beyond
    loopback."""
    events_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of the ZeroMQ socket that publishes events, on loopback to any local program; null = none, 0 = any free one.
    Beyond loopback it needs CURVE."""
    tls: Tls = Tls()
    """Certificates; `moc certs init` makes some for trying out."""
    body_limit_bytes: int = Field(default=64 * 1024**2, ge=1024)
    """Largest request body."""
    drain_grace_s: float = Field(default=30.0, ge=0)
    """How long running requests may go on after SIGTERM."""
    ready_needs_models: bool = False
    """Whether `/readyz` says no while a model that is preloaded, pinned or named by an alias is loading, failed or does
    not answer."""

    @field_validator("zmq_curve", mode="before")
    @classmethod
    def _word(cls, value: object) -> object:
        """YAML reads a bare `on` or `off` as true or false."""
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class StoreSection(_Section):
    """Where state is kept."""

    url: str = "sqlite:///{data_dir}/moc.db"
    """`sqlite:///PATH`; `{data_dir}` stands for the data directory."""


class Resources(_Section):
    """How device memory is watched and given away."""

    gpu_poll_interval_s: float = Field(default=5.0, ge=0.05)
    """How often every device is asked what is in use, in seconds."""
    soft_limit_pct: float = Field(default=90.0, gt=0, le=100)
    """The share of a device's capacity that is given away at most."""
    eviction_threshold_pct: float = Field(default=90.0, gt=0, le=100)
    """The share of a device in use, by anybody, past which models are unloaded from it."""
    eviction: Literal["cost", "lru"] = "cost"
    """Which model is unloaded so that another fits: the one of least worth, or the one unused for longest."""


class Security(_Section):
    """Who may do what."""

    require_key: bool = True
    """Whether every request needs a key."""
    failed_logins_per_min: int = Field(default=20, ge=1, le=10_000)
    """How many wrong keys an address may show in a minute before it is answered with 429; right ones still open."""
    allowed_model_roots: list[str] = ["{data_dir}/models"]
    """Folders that `file:` sources given over the API may lie in; this file may name any."""
    trusted_python_roots: list[str] = []
    """Folders whose Python models may be added over the API; this file may name any."""
    trusted_commands: list[str] = []
    """Programs that models of the runtime `command` may start when they are added over the API, with any arguments;
    each as it is written there. This file may name any."""
    allowed_model_hosts: list[str] = []
    """Hosts that `https:` sources may be fetched from, and that remotes may be, though their address is private or
    local: HOST, any port of it, or HOST:PORT; what this file has a model from always may."""


class CircuitBreaker(_Section):
    """When requests are refused at once: for a worker that keeps failing, or a model that keeps failing to load."""

    failure_threshold: int = Field(default=4, ge=1, le=1000)
    """After so many failures in a row; faults of callers do not count."""
    reset_timeout_s: float = Field(default=20.0, gt=0, le=3600)
    """How long until a single request is let through to try, in seconds."""


class BulkheadSection(_Section):
    """How many requests a model takes."""

    max_concurrent: int = Field(default=64, ge=1, le=100_000)
    """How many at once; never more than its engine works on."""
    max_queue: int = Field(default=256, ge=0, le=1_000_000)
    """How many may wait for their turn."""


class Resilience(_Section):
    """What keeps one slow or failing thing from stopping everything."""

    circuit_breaker: CircuitBreaker = CircuitBreaker()
    """When requests are refused at once: for a worker that keeps failing, or a model that keeps failing to load."""
    bulkhead: BulkheadSection = BulkheadSection()
    """How many requests a model takes that has no `max_concurrent` or `max_queue` of its own."""
    retry_budget_pct: float = Field(default=10.0, ge=0, le=100)
    """How many requests may be sent a second time, in percent of those that went well."""


class LearningSection(_Section):
    """Jobs that train, evaluate and tune."""

    max_parallel_jobs: int = Field(default=2, ge=1, le=64)
    """How many run at once; those of the type `tune`, whose trials are jobs themselves, do not count."""
    enable_auto_tune: bool = True
    """Whether jobs of the type `tune` may be submitted."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """How often in a row the process of a job may vanish without a step forward before the job fails."""
    grace_s: float = Field(default=30.0, ge=1, le=3600)
    """How long a job may take to save a checkpoint and end when it is paused or its memory is needed."""
    min_runtime_s: float = Field(default=20.0, ge=0, le=86_400)
    """How long a job runs, once it has memory, before that is taken back for serving."""
    checkpoints_kept: int = Field(default=2, ge=1, le=100)
    """How many checkpoints of a job are kept, the newest ones."""
    disk_quota: str = "20GiB"
    """How much all files and jobs together may take on the disk."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Processor threads of a training; without it half the cores."""
    max_serving_p95_ratio: float = Field(default=1.5, ge=1, le=100)
    """How much longer requests may take while jobs run, at the 95th percentile, before jobs are slowed down."""

    @field_validator("disk_quota")
    @classmethod
    def _size(cls, value: str) -> str:
        try:
            Bytes.parse(value)
        except InvalidRequest as error:
            raise ValueError(error.message) from None
        return value


class Telemetry(_Section):
    """What the coordinator says of itself."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""
    log_format: Literal["auto", "console", "json"] = "auto"
    """`auto` is readable on a terminal and JSON lines elsewhere."""


class WorkersSection(_Section):
    """Worker processes."""

    orphan_grace_s: float = Field(default=60.0, ge=0)
    """How long a worker waits for a coordinator to adopt it before it ends itself."""
    stop_grace_s: float = Field(default=10.0, ge=0)
    """How long a worker may take to stop before it is killed."""
    unresponsive_after_s: float = Field(default=1.0, ge=0.5)
    """After how long without a sign of life a model is not ready, and is sent no more requests until there is one."""
    hung_after_s: float = Field(default=5.0, ge=1)
    """After how long without a sign of life a worker is killed and replaced; one that is at work meanwhile gets six
    times as long."""


class Settings(BaseSettings):
    """All keys. `models` are `ModelSpec`s and `aliases` `Alias`es by name; `devices` is `auto` or a list of
    `DeviceChoice`s."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=True
    )

    server: Server = Server()
    store: StoreSection = StoreSection()
    resources: Resources = Resources()
    devices: str | list[Any] = "auto"
    resilience: Resilience = Resilience()
    learning: LearningSection = LearningSection()
    security: Security = Security()
    telemetry: Telemetry = Telemetry()
    workers: WorkersSection = WorkersSection()
    models: dict[str, dict[str, Any]] = {}
    aliases: dict[str, dict[str, Any]] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The file comes in as init settings, so the environment goes before it."""
        return env_settings, init_settings


def known_keys(path: tuple[str, ...]) -> list[str]:
    """The keys there are below `path`."""
    model: type[BaseModel] = Settings
    for part in path:
        field = model.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return []
        model = field.annotation
    return list(model.model_fields)
