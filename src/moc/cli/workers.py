"""`moc workers`: the processes that hold loaded models."""

from typing import Annotated

import typer

from moc.cli import screen
from moc.cli.session import JsonOption, Session, connected
from moc.client.views import WorkerView

app = typer.Typer(help="Look at the processes that hold loaded models.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
@connected
def list_workers(session: Session, as_json: JsonOption = False) -> None:
    """List the workers."""
    with session.client() as client:
        workers = screen.every(lambda after: client.workers.list(after=after))
    if as_json:
        screen.json({"workers": workers, "next": None})
        return
    table(workers)


@app.command("show")
@connected
def show_worker(
    session: Session, worker_id: Annotated[str, typer.Argument(metavar="ID")], as_json: JsonOption = False
) -> None:
    """Show one worker."""
    with session.client() as client:
        worker = client.workers.show(worker_id)
    if as_json:
        screen.json(worker)
        return
    screen.fields(
        [
            ("id", worker["id"]),
            ("model", worker["model"]),
            ("state", worker["state"]),
            ("adopted", "yes" if worker["adopted"] else "no"),
            ("runtime", worker["runtime"]),
            ("host", worker["host"]),
            ("pid", str(worker["pid"])),
            ("memory", screen.size(worker["memory_bytes"])),
            ("in flight", str(worker["in_flight"])),
            ("started", worker["started_at"]),
            ("term", str(worker["term"])),
            ("digest", worker["digest"]),
        ]
    )


def table(workers: list[WorkerView]) -> None:
    """Print workers as a table."""
    rows = [
        (
            worker["id"],
            worker["model"],
            worker["state"],
            "yes" if worker["adopted"] else "no",
            str(worker["pid"]),
            screen.size(worker["memory_bytes"]),
            str(worker["in_flight"]),
        )
        for worker in workers
    ]
    screen.table(("id", "model", "state", "adopted", "pid", "memory", "in flight"), rows)
