"""`moc events`: what happened, and what happens."""

from collections import deque
from typing import TYPE_CHECKING, Annotated

import typer

from moc.cli import screen
from moc.cli.session import JsonOption, Session, connected
from moc.client.views import EventPage, EventView

if TYPE_CHECKING:
    from moc.client import Client

_PAGE = 1000


@connected
def events(
    session: Session,
    follow: Annotated[bool, typer.Option("--follow", help="Print events as they happen, until Ctrl-C.")] = False,
    after: Annotated[int | None, typer.Option("--after", metavar="ID", min=0, help="Start behind this event.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=_PAGE, help="How many to print without --follow.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Print what happened: the latest events, those behind --after, or new ones with --follow."""
    show = screen.json_line if as_json else _show
    with session.client() as client:
        if follow:
            with client.events.follow(after=after) as stream:
                for event in stream:
                    show(event)
            return
        page = _latest(client, limit) if after is None else client.events.list(after=after, limit=limit)
    if as_json:
        screen.json({"events": page["items"], "next": page["next"]})
        return
    for event in page["items"]:
        _show(event)


def _latest(client: "Client", limit: int) -> EventPage:
    """The last part of everything that happened, which the coordinator only tells from its beginning."""
    last: deque[EventView] = deque(maxlen=limit)
    after: int | None = 0
    while after is not None:
        page = client.events.list(after=after, limit=_PAGE)
        last.extend(page["items"])
        after = page["next"]
    return {"items": list(last), "next": None}


def _show(event: EventView) -> None:
    parts = [event["at"], event["kind"], event["subject"]]
    parts += [f"({event['reason']})"] if event["reason"] else []
    parts += [f"{name}={value}" for name, value in event["data"].items()]
    screen.line(" ".join(" ".join(parts).split("\n")))
