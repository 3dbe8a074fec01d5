"""`moc audit`: who did what."""

from typing import Annotated

import typer

from moc.cli import screen
from moc.cli.session import JsonOption, Session, connected
from moc.kernel.errors import Conflict

app = typer.Typer(
    help="Read who changed what, and tell whether that record is whole.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
@connected
def list_audit(
    session: Session,
    after: Annotated[int | None, typer.Option("--after", metavar="SEQ", min=0, help="Start behind this entry.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many to print.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Print the latest entries, or those behind --after."""
    with session.client() as client:
        page = client.audit.list(after=after, limit=limit)
    if as_json:
        screen.json({"audit": page["items"], "next": page["next"]})
        return
    rows = [
        (
            str(entry["seq"]),
            entry["at"],
            f"{entry['actor_name']} ({entry['actor']})" if entry["actor"] else "",
            entry["address"],
            entry["operation"],
            entry["subject"],
            entry["outcome"],
        )
        for entry in page["items"]
    ]
    screen.table(("seq", "at", "who", "from", "did", "to", "outcome"), rows)


@app.command("verify")
@connected
def verify_audit(session: Session, as_json: JsonOption = False) -> None:
    """Tell whether an entry was changed or removed; exits with 1 when one was."""
    with session.client() as client:
        verdict = client.audit.verify()
    if as_json:
        screen.json(verdict)
    elif verdict["whole"]:
        screen.line(f"{verdict['checked']} entries are whole; the last one is {verdict['head_hash']}")
    if not verdict["whole"]:
        raise Conflict(f"the audit is not whole: {verdict['problem']}")
