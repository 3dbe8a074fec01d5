"""`moc explain`: what would happen, before it does."""

import typer

from moc.cli import screen
from moc.cli.models import ReferenceArgument
from moc.cli.session import JsonOption, Session, connected
from moc.client.views import ExplanationView

app = typer.Typer(help="Tell what something would do, without doing it.", rich_markup_mode=None)


@app.callback()
def explain() -> None:
    """Tell what something would do, without doing it."""


@app.command("load")
@connected
def explain_load(session: Session, reference: ReferenceArgument, as_json: JsonOption = False) -> None:
    """Tell where a model would be loaded and who would be unloaded for it. Exits with 1 if it fits nowhere."""
    with session.client() as client:
        told = client.models.explain(reference)
    if as_json:
        screen.json(told)
    else:
        _tell(told)
    if not told["fits"]:
        raise typer.Exit(1)


def _tell(told: ExplanationView) -> None:
    needed = screen.size(told["needed_bytes"])
    if not told["fits"]:
        screen.line(told["message"])
        if told["retry_after_s"] is not None:
            screen.line(f"it will fit in {told['retry_after_s']:.0f} s if nothing else happens")
        return
    places = told["placements"]
    each = f"{needed} on each of {len(places)} devices" if len(places) > 1 else needed
    names = ", ".join(place["device"] for place in places)
    screen.line(f"{told['reference']} needs {each} and would go on {names}")
    for place in places:
        before, after = screen.size(place["free_before_bytes"]), screen.size(place["free_after_bytes"])
        screen.line(f"  {place['device']}: {before} free now, {after} after")
    for victim in told["victims"]:
        when = " once its requests have ended" if victim["after_drain"] else ""
        size = screen.size(victim["bytes"])
        screen.line(f"  {victim['reference']} would be unloaded{when}, giving {size}: {victim['because']}")
    for paused in told["pauses"]:
        size, grace = screen.size(paused["bytes"]), f"{paused['grace_s']:.0f} s"
        screen.line(f"  {paused['job']} would be paused, giving {size}, and has {grace} to save what it did")
