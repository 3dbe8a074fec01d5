"""`moc files`: what jobs read."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from moc.cli import screen
from moc.cli.session import JsonOption, Session, connected
from moc.client.file_views import FileView
from moc.kernel.errors import InvalidRequest

app = typer.Typer(help="Keep files for jobs to read.", no_args_is_help=True, rich_markup_mode=None)

FileArgument = Annotated[str, typer.Argument(metavar="ID", help="Such as file-01jd….")]
Purpose = Literal["fine-tune", "evals", "user_data"]
PurposeOption = Annotated[Purpose, typer.Option("--purpose", metavar="WHAT", help="fine-tune, evals or user_data.")]


@app.command("add")
@connected
def add_file(
    session: Session,
    path: Annotated[Path, typer.Argument(metavar="FILE")],
    purpose: PurposeOption = "fine-tune",
    as_json: JsonOption = False,
) -> None:
    """Send a file and print its id."""
    with session.client() as client:
        file = client.files.add(path, purpose=purpose)
    if as_json:
        screen.json(file)
    else:
        screen.line(file["id"])


@app.command("list")
@connected
def list_files(
    session: Session,
    purpose: Annotated[Purpose | None, typer.Option("--purpose", metavar="WHAT", help="Only those for this.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the files, oldest first."""
    with session.client() as client:
        found = screen.every(lambda after: client.files.list(purpose=purpose, after=after))
    if as_json:
        screen.json({"files": found, "next": None})
        return
    rows = [
        (file["id"], screen.short(file["filename"]), screen.size(file["bytes"]), file["purpose"], _at(file))
        for file in found
    ]
    screen.table(("id", "name", "size", "purpose", "added"), rows)


@app.command("show")
@connected
def show_file(session: Session, file_id: FileArgument, as_json: JsonOption = False) -> None:
    """Show a file, without what is in it."""
    with session.client() as client:
        file = client.files.show(file_id)
    if as_json:
        screen.json(file)
        return
    screen.fields(
        [
            ("id", file["id"]),
            ("name", file["filename"]),
            ("size", f"{screen.size(file['bytes'])} ({file['bytes']} bytes)"),
            ("purpose", file["purpose"]),
            ("sha256", file["sha256"]),
            ("added", _at(file)),
        ]
    )


@app.command("content")
@connected
def file_content(
    session: Session,
    file_id: FileArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.")] = None,
) -> None:
    """Print what is in a file, or write it to one."""
    with session.client() as client:
        content = client.files.content(file_id)
    if output is None:
        screen.write(content.decode("utf-8", "replace"))
        return
    try:
        output.write_bytes(content)
    except OSError as error:
        raise InvalidRequest(f"{output} cannot be written: {error.strerror}") from None


@app.command("remove")
@connected
def remove_file(session: Session, file_id: FileArgument) -> None:
    """Delete a file."""
    with session.client() as client:
        client.files.remove(file_id)


def _at(file: FileView) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(file["created_at"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
