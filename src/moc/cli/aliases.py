"""`moc aliases`: names that stand for models, and which share of their requests each gets."""

from typing import Annotated, Any

import typer

from moc.cli import screen
from moc.cli.session import JsonOption, Session, connected
from moc.client.views import AliasChangeView, AliasView, TargetView
from moc.kernel.errors import NotFound

app = typer.Typer(
    help="See and change what names stand for: versions of models in shares, and others when those fail.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="An alias.")]
_WEIGHT = 100.0


@app.command("list")
@connected
def list_aliases(session: Session, as_json: JsonOption = False) -> None:
    """List the aliases."""
    with session.client() as client:
        found = screen.every(lambda after: client.aliases.list(after=after))
    if as_json:
        screen.json({"aliases": found, "next": None})
        return
    rows = [
        (alias["name"], _versions(alias["versions"]), ",".join(alias["fallback"]), alias["policy"], alias["changed_at"])
        for alias in found
    ]
    screen.table(("name", "versions", "fallback", "policy", "changed"), rows)


@app.command("show")
@connected
def show_alias(session: Session, name: NameArgument, as_json: JsonOption = False) -> None:
    """Show an alias and how the models it names are doing."""
    with session.client() as client:
        alias = client.aliases.show(name)
    if as_json:
        screen.json(alias)
        return
    _show(alias)


@app.command("set")
@connected
def set_alias(
    session: Session,
    name: NameArgument,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="REF[=WEIGHT]", help="A model or version, and its weight [100]; repeatable."),
    ] = None,
    fallback: Annotated[
        list[str] | None, typer.Option("--fallback", metavar="REF", help="Tried when those fail; repeatable, in order.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", help="Which comes first: weighted, local_first, cheapest or fastest.")
    ] = None,
    sticky: Annotated[
        str | None,
        typer.Option("--sticky", help="What keeps requests on one version: key, session (x-moc-session) or none."),
    ] = None,
    shadow: Annotated[
        str | None,
        typer.Option("--shadow", metavar="REF=PERCENT", help="Gets a copy of so many requests, its answers dropped."),
    ] = None,
    hedge: Annotated[
        bool | None, typer.Option("--hedge/--no-hedge", help="Ask the next one too when an answer takes too long.")
    ] = None,
    no_fallback: Annotated[bool, typer.Option("--no-fallback", help="Nothing when those fail.")] = False,
    no_shadow: Annotated[bool, typer.Option("--no-shadow", help="Nobody gets a copy.")] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Change it at once, though what gets the requests then is not loaded.")
    ] = False,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for its history.")] = None,
    expect: Annotated[
        int | None, typer.Option("--expect", min=0, metavar="NUMBER", help="Only if its newest change is this one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an alias or change it, from the next request on; what is not said stays as it is."""
    wanted: dict[str, Any] = {
        "versions": dict(_weighed(text, _WEIGHT, "--to") for text in to) if to else None,
        "fallback": [] if no_fallback else fallback or None,
        "policy": policy,
        "sticky": "" if sticky == "none" else sticky,
        "shadow": {} if no_shadow else None if shadow is None else dict([_weighed(shadow, None, "--shadow")]),
        "hedge": hedge,
        "reason": reason,
        "expect": expect,
        "wait": False if no_wait else None,
    }
    given = {key: value for key, value in wanted.items() if value is not None}
    with session.client() as client:
        try:
            alias = client.aliases.change(name, **given)
        except NotFound:
            if "versions" not in given:
                raise
            alias = client.aliases.set(name, **{"expect": 0, **given})
    _tell(alias, as_json)


@app.command("rollback")
@connected
def rollback_alias(
    session: Session,
    name: NameArgument,
    to: Annotated[
        int | None, typer.Option("--to", min=1, metavar="NUMBER", help="What this change made it [the one before].")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Let an alias be what it was before its newest change; one that was removed comes back."""
    with session.client() as client:
        alias = client.aliases.rollback(name, to=to)
    _tell(alias, as_json)


@app.command("history")
@connected
def list_history(session: Session, name: NameArgument, as_json: JsonOption = False) -> None:
    """List what an alias was, oldest first, who changed it and why."""
    found: list[AliasChangeView] = []
    after: int | None = 0
    with session.client() as client:
        while after is not None:
            page = client.aliases.history(name, after=after)
            found += page["items"]
            after = page["next"]
    if as_json:
        screen.json({"changes": found, "next": None})
        return
    rows = [
        (str(change["number"]), change["at"], change["actor"], change["reason"], _became(change)) for change in found
    ]
    screen.table(("number", "at", "actor", "reason", "became"), rows)


@app.command("remove")
@connected
def remove_alias(session: Session, name: NameArgument) -> None:
    """Let a name stand for nothing; its history stays, and `rollback` brings it back."""
    with session.client() as client:
        client.aliases.remove(name)
    screen.line(f"{name} is removed")


def _weighed(text: str, usual: float | None, option: str) -> tuple[str, float]:
    """`REF=NUMBER`, or `REF` where there is a usual number."""
    reference, equals, number = text.rpartition("=")
    if not equals and usual is not None:
        return number, usual
    try:
        return reference, float(number)
    except ValueError:
        raise typer.BadParameter(f"{option}: {text!r} is not REF=NUMBER, such as smollm2@2=10") from None


def _tell(alias: AliasView, as_json: bool) -> None:
    if as_json:
        screen.json(alias)
    else:
        screen.line(f"{alias['name']} is {_versions(alias['versions'])} (change {alias['number']})")


def _show(alias: AliasView) -> None:
    screen.fields(
        [
            ("alias", alias["name"]),
            ("policy", alias["policy"]),
            ("sticky", alias["sticky"]),
            ("hedge", "yes" if alias["hedge"] else ""),
            ("changed", f"{alias['changed_at']} by {alias['changed_by']}, change {alias['number']}: {alias['reason']}"),
        ]
    )
    columns = ("model", "part", "share", "state", "requests", "errors", "p95")
    screen.table(columns, [_target(target) for target in alias["targets"]])


def _target(target: TargetView) -> tuple[str, ...]:
    errors, p95_ms = target["error_rate"], target["p95_ms"]
    return (
        target["reference"] if target["reference"] == target["model"] else f"{target['reference']} ({target['model']})",
        target["part"],
        "" if target["part"] == "fallback" else f"{target['share']:.4g}",
        target["state"],
        str(target["requests"]),
        "" if errors is None else f"{errors:.2%}",
        "" if p95_ms is None else f"{p95_ms:.1f} ms",
    )


def _became(change: AliasChangeView) -> str:
    alias = change["alias"]
    if alias is None:
        return "removed"
    said = [_versions(alias["versions"])]
    said += [f"fallback {','.join(alias['fallback'])}"] if alias["fallback"] else []
    said += [f"shadow {_versions(alias['shadow'])}"] if alias["shadow"] else []
    return "; ".join(said)


def _versions(weights: dict[str, float]) -> str:
    return ", ".join(f"{reference}={weight:g}" for reference, weight in weights.items())
