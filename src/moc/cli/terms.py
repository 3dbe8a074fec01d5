"""The options that say how a request is to be served, the same for every command that sends one."""

from typing import Annotated, Any

import typer

from moc.kernel.errors import InvalidRequest
from moc.kernel.units import parse_duration_s

DeadlineOption = Annotated[
    str | None, typer.Option("--deadline", metavar="TIME", help="Give up after this long, such as 30s or 10m.")
]
PriorityOption = Annotated[
    int | None,
    typer.Option("--priority", min=1, max=10, help="Where it waits among requests of your key; 1 = first, else 5."),
]
SessionOption = Annotated[
    str | None, typer.Option("--session", metavar="NAME", help="Be answered by the version that answers this session.")
]


def deadline_s(text: str | None) -> float | None:
    """The deadline in seconds; a usage error when it is no time."""
    if text is None:
        return None
    try:
        return parse_duration_s(text)
    except InvalidRequest as error:
        raise typer.BadParameter(error.message, param_hint="--deadline") from error


def terms(deadline: str | None, priority: int | None, session: str | None) -> dict[str, Any]:
    """What the client's methods are to be given."""
    return {"deadline_s": deadline_s(deadline), "priority": priority, "session": session}
