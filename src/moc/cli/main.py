"""The `moc` command: which commands there are, and what their errors become."""

import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import moc
from moc.cli import (
    aliases,
    audit,
    certs,
    chat,
    config,
    data,
    devices,
    doctor,
    evaluate,
    events,
    explain,
    files,
    infer,
    jobs,
    keys,
    leases,
    models,
    rollout,
    screen,
    serve,
    status,
    tokenize,
    workers,
)
from moc.cli.session import DataDirOption, KeyOption, Session, UrlOption
from moc.client.connection import Unreachable
from moc.kernel.errors import MocError

EXIT_FAILED = 1
EXIT_UNREACHABLE = 3

app = typer.Typer(
    name="moc",
    help="Serve, load, watch and use models through one coordinator.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        screen.line(f"moc {moc.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    url: UrlOption = None,
    key: KeyOption = None,
    data_dir: DataDirOption = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serve, load, watch and use models through one coordinator."""
    if context.invoked_subcommand == "serve" and (url or key or data_dir):
        raise typer.BadParameter("write the options of serve behind serve: `moc serve --data-dir DIR`")
    context.obj = Session(url, key, data_dir)


app.command()(serve.serve)
app.command()(status.status)
app.add_typer(models.app, name="models")
app.add_typer(aliases.app, name="aliases")
app.add_typer(rollout.app, name="rollout")
app.command()(chat.chat)
app.command()(infer.infer)
app.command()(tokenize.tokenize)
app.add_typer(workers.app, name="workers")
app.add_typer(devices.app, name="devices")
app.add_typer(leases.app, name="lease")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(explain.app, name="explain")
app.add_typer(data.app, name="data")
app.add_typer(files.app, name="files")
app.add_typer(jobs.app, name="jobs")
app.command()(events.events)
app.add_typer(keys.app, name="keys")
app.add_typer(certs.app, name="certs")
app.add_typer(audit.app, name="audit")
app.add_typer(config.app, name="config")
app.command()(doctor.doctor)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 refused or failed, 2 bad usage, 3 nothing reachable."""
    try:
        app(arguments, prog_name="moc")
    except Unreachable as error:
        screen.complain(error.message)
        sys.exit(EXIT_UNREACHABLE)
    except MocError as error:
        screen.complain(_story(error))
        sys.exit(EXIT_FAILED)
    sys.exit(0)


def _story(error: MocError) -> str:
    request_id = error.details.get("request_id")
    if error.code == "internal" and request_id and request_id not in error.message:
        return f"{error.message} (request {request_id})"
    return error.message
