"""Which coordinator a command talks to: the options every such command takes, and the client they make."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from moc.client.discovery import Target, choose_data_dir, locate

if TYPE_CHECKING:
    from moc.client import AsyncClient, Client

P = ParamSpec("P")

UrlOption = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="Address of the coordinator [MOC_URL, else the one on this machine]."),
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="API key [MOC_KEY, else the admin key in the data folder]."),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Data folder of the coordinator [MOC_DATA_DIR]."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]


@dataclass(frozen=True, slots=True)
class Session:
    """What was said about the coordinator; the environment and the data folder say the rest."""

    url: str | None = None
    key: str | None = None
    data_dir: Path | None = None

    @property
    def folder(self) -> Path:
        """The data folder."""
        return choose_data_dir(self.data_dir)

    def told(self, url: str | None, key: str | None, data_dir: Path | None) -> "Session":
        """The session with what is said here in place of what was said before."""
        return Session(
            self.url if url is None else url,
            self.key if key is None else key,
            self.data_dir if data_dir is None else data_dir,
        )

    def target(self) -> Target:
        """The address and key that will be used."""
        return locate(self.url, self.key, self.data_dir)

    def client(self) -> "Client":
        from moc.client import Client

        return Client(self.url, self.key, self.data_dir)

    def async_client(self) -> "AsyncClient":
        from moc.client import AsyncClient

        return AsyncClient(self.url, self.key, self.data_dir)


def connected(command: Callable[Concatenate[Session, P], None]) -> Callable[..., None]:
    """Give a command --url, --key and --data-dir; what they say replaces what stood before the command's name."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in (("url", UrlOption), ("key", KeyOption), ("data_dir", DataDirOption))
    ]
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)

    @wraps(command)
    def run(context: typer.Context, *args: Any, url: Any, key: Any, data_dir: Any, **options: Any) -> None:
        session = context.find_object(Session) or Session()
        command(session.told(url, key, data_dir), *args, **options)

    parameters = [context, *own, *added]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
