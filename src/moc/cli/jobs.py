"""`moc jobs`: models are trained, measured and searched for, and programs run, beside those that serve."""

import time
from functools import partial
from typing import Annotated

import typer

from moc.cli import job_submit, screen
from moc.cli.job_screen import finish, follow, line, numbers, show, steps
from moc.cli.session import JsonOption, Session, connected
from moc.client.job_views import ENDED, JobView

app = typer.Typer(
    help="Train, measure and search for models, and run programs, beside those that serve.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(job_submit.app, name="submit")

JobArgument = Annotated[str, typer.Argument(metavar="ID", help="Such as job-01jd3w….")]
_PAGE = 1000
_TAIL_BYTES = 65_536
_OVERLAP = 1000
"""How many characters of a log that were told already say where the next ones begin."""


@app.command("list")
@connected
def list_jobs(
    session: Session,
    status: Annotated[str | None, typer.Option("--status", help="Only those that are so, such as running.")] = None,
    type: Annotated[str | None, typer.Option("--type", help="Only those of this type, such as dpo.")] = None,
    parent: Annotated[str | None, typer.Option("--parent", metavar="ID", help="Only the trials of this job.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, oldest first."""
    with session.client() as client:
        found = screen.every(lambda after: client.jobs.list(status=status, type=type, parent=parent, after=after))
    if as_json:
        screen.json({"jobs": found, "next": None})
        return
    rows = [
        (
            job["id"],
            job["type"],
            screen.short(job["name"]),
            job["model"],
            job["status"],
            steps(job),
            str(job["priority"]),
            job["created_at"],
            _why(job),
        )
        for job in found
    ]
    screen.table(("id", "type", "name", "model", "status", "steps", "priority", "created", "message"), rows)


@app.command("show")
@connected
def show_job(session: Session, job_id: JobArgument, as_json: JsonOption = False) -> None:
    """Show a job: how far it is, why it waits, what became of it."""
    with session.client() as client:
        job = client.jobs.show(job_id)
    show(job, as_json)


@app.command("events")
@connected
def job_events(
    session: Session,
    job_id: JobArgument,
    wanted: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended.")] = False,
    after: Annotated[int, typer.Option("--after", metavar="NUMBER", min=0, help="Start behind this event.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Print what happened to a job."""
    with session.client() as client:
        if wanted:
            follow(client, job_id, after=after, as_json=as_json)
            return
        page = client.jobs.events(job_id, after=after, limit=_PAGE)
        events = page["items"]
        while page["next"] is not None:
            page = client.jobs.events(job_id, after=page["next"], limit=_PAGE)
            events.extend(page["items"])
    if as_json:
        screen.json({"events": events, "next": None})
        return
    for event in events:
        screen.line(line(event))


@app.command("logs")
@connected
def job_logs(
    session: Session,
    job_id: JobArgument,
    wanted: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended.")] = False,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="Which one; the last if not said.")] = None,
    tail: Annotated[
        int, typer.Option("--tail-bytes", min=1, max=2**24, help="How much of the end is printed at most.")
    ] = _TAIL_BYTES,
) -> None:
    """Print what the program of a job wrote."""
    from moc.client.following import LOOK_S, patiently

    with session.client() as client:
        text = client.jobs.logs(job_id, attempt=attempt, tail_bytes=tail)
        _write(text)
        ended = not wanted
        while not ended:
            time.sleep(LOOK_S)
            ended = patiently(partial(client.jobs.show, job_id))["status"] in ENDED
            told, text = text, patiently(partial(client.jobs.logs, job_id, attempt=attempt, tail_bytes=tail))
            _write(_behind(told, text))


@app.command("checkpoints")
@connected
def list_checkpoints(session: Session, job_id: JobArgument, as_json: JsonOption = False) -> None:
    """List the states that a job can go on from."""
    with session.client() as client:
        found = client.jobs.checkpoints(job_id)
    if as_json:
        screen.json({"checkpoints": found})
        return
    rows = [
        (each["id"], each["name"], str(each["step"]), each["created_at"], numbers(each["metrics"])) for each in found
    ]
    screen.table(("id", "name", "step", "created", "metrics"), rows)


@app.command("pause")
@connected
def pause_job(session: Session, job_id: JobArgument, as_json: JsonOption = False) -> None:
    """Have a job save a checkpoint and give its memory back, until it is resumed."""
    with session.client() as client:
        _tell(client.jobs.pause(job_id), as_json)


@app.command("resume")
@connected
def resume_job(session: Session, job_id: JobArgument, as_json: JsonOption = False) -> None:
    """Let a paused job go on from its last checkpoint."""
    with session.client() as client:
        _tell(client.jobs.resume(job_id), as_json)


@app.command("cancel")
@connected
def cancel_job(session: Session, job_id: JobArgument, as_json: JsonOption = False) -> None:
    """End a job."""
    with session.client() as client:
        _tell(client.jobs.cancel(job_id), as_json)


@app.command("remove")
@connected
def remove_job(session: Session, job_id: JobArgument) -> None:
    """Forget a job that has ended, with all it left but the model it made."""
    with session.client() as client:
        client.jobs.remove(job_id)


@app.command("wait")
@connected
def wait_for_job(session: Session, job_id: JobArgument, as_json: JsonOption = False) -> None:
    """Return when a job has ended; exit with 1 unless it succeeded."""
    with session.client() as client:
        job = client.jobs.wait(job_id)
    show(job, as_json)
    finish(job)


def _why(job: JobView) -> str:
    return job["waits_for"] or job["message"]


def _tell(job: JobView, as_json: bool) -> None:
    if as_json:
        screen.json(job)
    else:
        wish = f", and is to {job['wish']}" if job["wish"] else ""
        screen.line(f"job {job['id']} is {job['status']}{wish}")


def _write(log: str) -> None:
    screen.write(screen.visible(log) if screen.is_terminal() else log)


def _behind(told: str, text: str) -> str:
    """What is new in the end of a log, of which the beginning may have gone meanwhile."""
    if text.startswith(told):
        return text[len(told) :]
    overlap = told[-_OVERLAP:]
    at = text.rfind(overlap)
    return text if at < 0 else text[at + len(overlap) :]
