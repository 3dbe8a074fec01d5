"""`moc tokenize`: what a model makes of a text before it reads it."""

import sys
from typing import Annotated

import typer

from moc.cli import screen
from moc.cli.session import JsonOption, Session, connected
from moc.cli.terms import DeadlineOption, PriorityOption, SessionOption, terms


@connected
def tokenize(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="Else what standard input has.")] = None,
    deadline: DeadlineOption = None,
    priority: PriorityOption = None,
    session_name: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print how many tokens a text has, and which."""
    given = sys.stdin.read() if text is None else text
    with session.client() as client:
        found = client.tokenize(model, given, **terms(deadline, priority, session_name))
    if as_json:
        screen.json(found)
        return
    screen.line(f"{found['count']} tokens of {found['max_model_len']}")
    screen.line(" ".join(map(str, found["tokens"])))
