"""What a person sees of a job, while it runs and afterwards."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import typer

from moc.cli import screen
from moc.client.job_views import AttemptView, JobEventView, JobView

if TYPE_CHECKING:
    from moc.client import Client

_METRICS = "metrics"
Show = Callable[[JobEventView], None]


def follow(client: "Client", job_id: str, *, after: int = 0, as_json: bool = False) -> JobView:
    """Print what happened to a job and happens until it has ended; on a terminal, metrics are a bar that moves."""
    with _shown(as_json) as show, client.jobs.follow(job_id, after=after) as events:
        for event in events:
            show(event)
    return client.jobs.show(job_id)


def finish(job: JobView) -> None:
    """Leave with what became of a job: an error when it failed or was cancelled."""
    if job["status"] != "succeeded":
        screen.complain(f"job {job['id']} {job['status']}: {job['message'] or job['reason']}")
        raise typer.Exit(1)


def line(event: JobEventView) -> str:
    """An event on one line."""
    level = "" if event["level"] == "info" else f"{event['level']}: "
    return " ".join(f"{event['created_at']}  {level}{event['message']}".split("\n"))


def show(job: JobView, as_json: bool) -> None:
    """Print a job."""
    if as_json:
        screen.json(job)
        return
    progress, outcome = job["progress"], job["outcome"]
    eta_s = progress["eta_s"] if job["status"] == "running" else None
    screen.fields(
        [
            ("id", job["id"]),
            ("type", job["type"]),
            ("name", job["name"]),
            ("model", job["model"]),
            ("status", f"{job['status']} ({job['reason']})" + (f", is to {job['wish']}" if job["wish"] else "")),
            ("waits for", job["waits_for"]),
            ("message", job["message"]),
            ("progress", steps(job)),
            ("metrics", numbers(progress["metrics"])),
            ("time left", "" if eta_s is None else f"{eta_s:.0f} s"),
            ("result", "" if outcome is None else outcome["model"]),
            ("priority", str(job["priority"])),
            ("devices", job["devices"]),
            ("memory", screen.size(job["memory_bytes"])),
            ("parent", job["parent"]),
            ("training file", job["training_file"]),
            ("validation file", job["validation_file"]),
            ("hyperparameters", ", ".join(f"{name}={value}" for name, value in job["hyperparameters"].items())),
            ("seed", str(job["seed"])),
            ("created", f"{job['created_at']} by {job['created_by_name']}"),
            ("started", job["started_at"] or ""),
            ("finished", job["finished_at"] or ""),
        ]
    )
    for attempt in job["attempts"]:
        screen.line(_attempt(attempt))


def steps(job: JobView) -> str:
    """How far it is."""
    step, total = job["progress"]["step"], job["progress"]["total_steps"]
    return f"{step}/{total}" if total else str(step or "")


def numbers(metrics: dict[str, float]) -> str:
    """Metrics on one line."""
    return ", ".join(f"{name}={value:.6g}" for name, value in metrics.items())


def _attempt(attempt: AttemptView) -> str:
    place = f" on {attempt['device']} with {screen.size(attempt['bytes'])}" if attempt["device"] else ""
    steps = f", steps {attempt['first_step']} to {attempt['last_step']}"
    end = f", {attempt['outcome']} {attempt['ended_at']}" if attempt["outcome"] else ""
    story = f": {attempt['message']}" if attempt["message"] else ""
    return f"attempt {attempt['number']}  {attempt['started_at']}{place}{steps}{end}{story}"


@contextlib.contextmanager
def _shown(as_json: bool) -> Iterator[Show]:
    """How to show events: as JSON, as lines, or as lines above a bar."""
    if as_json:
        yield screen.json_line
    elif not screen.is_terminal():
        yield lambda event: screen.line(line(event))
    else:
        with _bar() as show:
            yield show


@contextlib.contextmanager
def _bar() -> Iterator[Show]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)

        def show(event: JobEventView) -> None:
            if event["type"] == _METRICS:
                data = event["data"]
                words = screen.printable(event["message"]).partition(": ")[2]
                total = data.get("total_steps") or None
                bar.update(task, completed=data.get("step", 0), total=total, description=words, visible=True)
            else:
                bar.console.print(Text(screen.printable(line(event))))

        yield show
