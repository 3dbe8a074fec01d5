"""`moc rollout`: an alias is moved to another version step by step, and back when that goes wrong."""

import time
from typing import Annotated, Any

import typer

from moc.cli import screen
from moc.cli.session import JsonOption, Session, connected
from moc.client.views import MarkView, RolloutView, SeenView
from moc.kernel.errors import InvalidRequest
from moc.kernel.units import parse_duration_s

app = typer.Typer(
    help="Move an alias to another version step by step; it goes back by itself when a guard is breached.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

NameArgument = Annotated[str, typer.Argument(metavar="ID|ALIAS", help="A rollout, or the newest one of an alias.")]
LOOK_S = 0.5
RUNNING = ("warming", "progressing", "paused")


@app.command("start")
@connected
def start_rollout(
    session: Session,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias to move.")],
    to: Annotated[str, typer.Option("--to", metavar="NAME@VERSION", help="What is to get its requests.")],
    steps: Annotated[
        str, typer.Option("--steps", metavar="PERCENT,...", help="How many of the requests it gets, one after another.")
    ] = "1,10,50,100",
    hold: Annotated[str, typer.Option("--hold", metavar="TIME", help="How long each step lasts at least.")] = "10m",
    min_requests: Annotated[
        int, typer.Option("--min-requests", min=0, help="How many requests a verdict and a step take at least.")
    ] = 50,
    max_error_rate: Annotated[
        float | None, typer.Option("--max-error-rate", min=0, max=1, help="Back if more than this share fails.")
    ] = None,
    max_p95_ms: Annotated[
        float | None, typer.Option("--max-p95-ms", min=0, help="Back if more than 5 % take longer.")
    ] = None,
    max_p95_ratio: Annotated[
        float | None, typer.Option("--max-p95-ratio", min=0, help="Back if that is so many times the old one's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Begin to move an alias to a version: load it, then give it more and more of the requests."""
    guards: dict[str, Any] = {
        "max_error_rate": max_error_rate,
        "max_p95_ms": max_p95_ms,
        "max_p95_ratio": max_p95_ratio,
    }
    given = {name: value for name, value in guards.items() if value is not None}
    terms = {"steps": _steps(steps), "hold_s": _hold_s(hold), "min_requests": min_requests, **given}
    with session.client() as client:
        rollout = client.rollouts.start(alias, to, **terms)
    _tell(rollout, as_json)


@app.command("list")
@connected
def list_rollouts(session: Session, as_json: JsonOption = False) -> None:
    """List the rollouts that run, and the last ones that did."""
    with session.client() as client:
        found = screen.every(lambda after: client.rollouts.list(after=after))
    if as_json:
        screen.json({"rollouts": found, "next": None})
        return
    rows = [
        (
            rollout["id"],
            rollout["alias"],
            rollout["to"],
            rollout["state"],
            f"{rollout['share_pct']:g} %",
            rollout["changed_at"],
            rollout["message"] or rollout["waits_for"],
        )
        for rollout in found
    ]
    screen.table(("id", "alias", "to", "state", "share", "changed", "message"), rows)


@app.command("show")
@connected
def show_rollout(session: Session, name: NameArgument, as_json: JsonOption = False) -> None:
    """Show a rollout, what it has seen so far and what it waits for."""
    with session.client() as client:
        rollout = client.rollouts.show(name)
    if as_json:
        screen.json(rollout)
        return
    screen.fields(
        [
            ("rollout", rollout["id"]),
            ("alias", rollout["alias"]),
            ("from", ", ".join(f"{reference}={weight:g}" for reference, weight in rollout["before"].items())),
            ("to", f"{rollout['to']} at {rollout['share_pct']:g} %"),
            ("state", rollout["state"]),
            ("waits for", rollout["waits_for"]),
            ("message", rollout["message"]),
            ("steps", ", ".join(f"{step:g} %" for step in rollout["steps"]) + f", {rollout['hold_s']:g} s each"),
            ("guards", _guards(rollout)),
            ("new version", _seen(rollout["new_seen"])),
            ("old version", _seen(rollout["old_seen"])),
            ("started", f"{rollout['created_at']} by {rollout['created_by']}"),
        ]
    )
    for mark in rollout["history"]:
        screen.line(_line(mark))


@app.command("watch")
@connected
def watch_rollout(session: Session, name: NameArgument, as_json: JsonOption = False) -> None:
    """Print what a rollout did and does until it is over; exit with 1 unless it is promoted."""
    told = 0
    with session.client() as client:
        while True:
            rollout = client.rollouts.show(name)
            name = rollout["id"]
            for mark in rollout["history"][told:]:
                if as_json:
                    screen.json_line(mark)
                else:
                    screen.line(_line(mark))
            told = len(rollout["history"])
            if rollout["state"] not in RUNNING:
                break
            time.sleep(LOOK_S)
    if rollout["state"] != "promoted":
        raise typer.Exit(1)


@app.command("pause")
@connected
def pause_rollout(session: Session, name: NameArgument, as_json: JsonOption = False) -> None:
    """Stay at this step; the guards go on watching."""
    with session.client() as client:
        _tell(client.rollouts.pause(name), as_json)


@app.command("resume")
@connected
def resume_rollout(session: Session, name: NameArgument, as_json: JsonOption = False) -> None:
    """Go on after a pause."""
    with session.client() as client:
        _tell(client.rollouts.resume(name), as_json)


@app.command("promote")
@connected
def promote_rollout(
    session: Session,
    name: NameArgument,
    force: Annotated[bool, typer.Option("--force", help="Though too few requests were seen for a verdict.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Give the new version everything now, without the steps that are left."""
    with session.client() as client:
        _tell(client.rollouts.promote(name, force=force), as_json)


@app.command("abort")
@connected
def abort_rollout(session: Session, name: NameArgument, as_json: JsonOption = False) -> None:
    """Let the alias be what it was before, at once."""
    with session.client() as client:
        _tell(client.rollouts.abort(name), as_json)


def _steps(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--steps: {text!r} is not percentages such as 1,10,50,100") from None


def _hold_s(text: str) -> float:
    try:
        return parse_duration_s(text)
    except InvalidRequest as error:
        raise typer.BadParameter(error.message) from None


def _tell(rollout: RolloutView, as_json: bool) -> None:
    if as_json:
        screen.json(rollout)
    else:
        share = f"{rollout['to']} gets {rollout['share_pct']:g} % of {rollout['alias']}"
        screen.line(f"rollout {rollout['id']} is {rollout['state']}: {share}")


def _guards(rollout: RolloutView) -> str:
    error_rate, p95_ms, ratio = rollout["max_error_rate"], rollout["max_p95_ms"], rollout["max_p95_ratio"]
    told = [
        "" if error_rate is None else f"at most {error_rate * 100:g} % fail",
        "" if p95_ms is None else f"p95 at most {p95_ms:g} ms",
        "" if ratio is None else f"p95 at most {ratio:g} times the old one's",
        f"judged by {rollout['min_requests']} requests",
    ]
    return ", ".join(filter(None, told))


def _seen(seen: SeenView | None) -> str:
    if seen is None:
        return ""
    p95 = "" if seen["p95_ms"] is None else f", p95 {seen['p95_ms']:.4g} ms"
    return f"{seen['requests']} requests, {seen['failures']} failed{p95}"


def _line(mark: MarkView) -> str:
    seen = f" after {_seen(mark)}" if mark["requests"] else ""
    story = f": {mark['message']}" if mark["message"] else ""
    return f"{mark['at']}  {mark['state']} at {mark['share_pct']:g} %{seen} ({mark['reason']}){story}"
