"""`moc config`: what is in force, and what becomes of it."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from moc.cli import screen
from moc.cli.session import JsonOption, Session, connected
from moc.client.views import ChangeView, RevisionView
from moc.kernel.errors import InvalidRequest

app = typer.Typer(
    help="See the configuration in force, and put another in force while everything runs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A whole configuration, such as moc.yaml.")]


@app.command("show")
@connected
def show_config(session: Session, as_json: JsonOption = False) -> None:
    """Print all that is in force, without secrets."""
    with session.client() as client:
        found = client.config.show()
    if as_json:
        screen.json(found)
        return
    source = f", {found['file']}" if found["file"] else ""
    screen.line(f"# revision {found['revision']} of {found['at']} by {found['actor']} ({found['reason']}){source}")
    screen.write(_yaml(found["settings"]))


@app.command("diff")
@connected
def diff_config(session: Session, file: FileArgument, as_json: JsonOption = False) -> None:
    """Tell what applying FILE would change, and what of it needs a restart."""
    text = _read(file)
    with session.client() as client:
        difference = client.config.diff(text, name=file.name)
    if as_json:
        screen.json(difference)
    elif not difference["changes"]:
        screen.line("nothing would change")
    else:
        _show(difference["changes"])


@app.command("apply")
@connected
def apply_config(session: Session, file: FileArgument, as_json: JsonOption = False) -> None:
    """Put FILE in force, all of it or nothing."""
    text = _read(file)
    with session.client() as client:
        revision = client.config.apply(text, name=file.name)
    _tell(revision, as_json)


@app.command("history")
@connected
def list_history(session: Session, as_json: JsonOption = False) -> None:
    """List what was put in force, oldest first."""
    found: list[RevisionView] = []
    with session.client() as client:
        after: int | None = 0
        while after is not None:
            page = client.config.history(after=after)
            found.extend(page["items"])
            after = page["next"]
    if as_json:
        screen.json({"revisions": found, "next": None})
        return
    rows = [
        (
            str(revision["number"]),
            revision["at"],
            revision["actor"],
            revision["reason"],
            revision["outcome"],
            revision["problem"] or ", ".join(change["key"] for change in revision["changes"]),
        )
        for revision in found
    ]
    screen.table(("revision", "at", "who", "reason", "outcome", "changed"), rows)


@app.command("rollback")
@connected
def rollback_config(
    session: Session,
    revision: Annotated[int, typer.Argument(metavar="N", min=1, help="A revision of `moc config history`.")],
    as_json: JsonOption = False,
) -> None:
    """Put an earlier configuration in force again."""
    with session.client() as client:
        done = client.config.rollback(revision)
    _tell(done, as_json)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"{file} is no text; give a YAML file such as moc.yaml") from None


def _tell(revision: RevisionView, as_json: bool) -> None:
    if as_json:
        screen.json(revision)
        return
    screen.line(f"revision {revision['number']} is in force")
    if revision["changes"]:
        _show(revision["changes"])


def _show(changes: list[ChangeView]) -> None:
    rows = [
        (change["key"], _value(change["before"]), _value(change["after"]), "at once" if change["live"] else "restart")
        for change in changes
    ]
    screen.table(("key", "before", "after", "takes effect"), rows)


def _value(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _yaml(settings: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return text
