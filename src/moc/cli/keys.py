"""`moc keys`: what opens the coordinator."""

from typing import Annotated, Any

import typer

from moc.cli import screen
from moc.cli.session import JsonOption, Session, connected
from moc.client.discovery import ADMIN_KEY_FILE, read_admin_key
from moc.client.views import KeyView, NewKeyView
from moc.kernel.errors import InvalidRequest, NotFound
from moc.kernel.units import parse_duration_s

app = typer.Typer(
    help="Make, look at, rotate and revoke the keys that open the coordinator.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

KeyArgument = Annotated[str, typer.Argument(metavar="ID", help="Such as 5f0c2e9a7b14.")]


@app.command("create")
@connected
def create_key(
    session: Session,
    role: Annotated[str, typer.Option("--role", help="viewer, inference, operator or admin.")],
    name: Annotated[str, typer.Argument(help="What people call it; its id if left out.")] = "",
    models: Annotated[
        list[str] | None,
        typer.Option("--models", metavar="GLOB", help="Only for these models and nothing else; may be repeated."),
    ] = None,
    expires: Annotated[str | None, typer.Option("--expires", metavar="TIME", help="Such as 30d; else never.")] = None,
    rate: Annotated[str | None, typer.Option("--rate", metavar="RATE", help="At most so often, as 100/min.")] = None,
    max_concurrency: Annotated[
        int | None, typer.Option("--max-concurrency", min=1, help="At most so many inferences at once.")
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option("--weight", min=0.1, max=100.0, help="Its share of a model that others wait for too; else 1."),
    ] = None,
    curve_public: Annotated[
        str | None, typer.Option("--curve-public", metavar="Z85", help="The CURVE public key of a ZeroMQ client.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, this once."""
    terms: dict[str, Any] = {
        "expires_in_s": None if expires is None else _duration_s(expires),
        "rate": rate,
        "max_concurrency": max_concurrency,
        "weight": weight,
        "curve_public": curve_public,
    }
    given = {term: value for term, value in terms.items() if value is not None}
    with session.client() as client:
        key = client.keys.create(role, name=name, models=models or [], **given)
    _tell(key, as_json)


@app.command("list")
@connected
def list_keys(session: Session, as_json: JsonOption = False) -> None:
    """List the keys; those that ended are listed for 30 days."""
    with session.client() as client:
        found = screen.every(lambda after: client.keys.list(after=after))
    if as_json:
        screen.json({"keys": found, "next": None})
        return
    rows = [
        (
            key["id"],
            key["name"],
            key["role"],
            key["state"],
            ",".join(key["models"]),
            key["expires_at"] or "",
            key["last_used_at"] or "",
        )
        for key in found
    ]
    screen.table(("id", "name", "role", "state", "models", "expires", "last used"), rows)


@app.command("show")
@connected
def show_key(
    session: Session,
    key_id: Annotated[str | None, typer.Argument(metavar="ID", help="Such as 5f0c2e9a7b14.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a key; without ID, print the admin key of this machine's coordinator."""
    if key_id is None:
        screen.line(_admin_key(session))
        return
    with session.client() as client:
        key = client.keys.show(key_id)
    _show(key, as_json)


@app.command("rotate")
@connected
def rotate_key(
    session: Session,
    key_id: KeyArgument,
    overlap: Annotated[
        str, typer.Option("--overlap", metavar="TIME", help="How long the old one is good beside the new one.")
    ] = "1h",
    as_json: JsonOption = False,
) -> None:
    """Give a key another secret and print it, this once."""
    overlap_s = _duration_s(overlap)
    with session.client() as client:
        key = client.keys.rotate(key_id, overlap_s=overlap_s)
    _tell(key, as_json)


@app.command("revoke")
@connected
def revoke_key(session: Session, key_id: KeyArgument, as_json: JsonOption = False) -> None:
    """Close a key, at once and for good."""
    with session.client() as client:
        key = client.keys.revoke(key_id)
    _show(key, as_json)


def _admin_key(session: Session) -> str:
    key = read_admin_key(session.folder)
    if key is None:
        raise NotFound(
            f"there is no key at {session.folder / ADMIN_KEY_FILE}; the first `moc serve` writes it, "
            "and --data-dir or MOC_DATA_DIR says where else to look"
        )
    return key


def _tell(key: NewKeyView, as_json: bool) -> None:
    """Print the key alone, so that a script can take it, and what it is beside it."""
    if as_json:
        screen.json(key)
        return
    screen.line(key["token"])
    screen.note(f"This is key {key['id']} ({key['name']}, {key['role']}). It is not shown again.")


def _show(key: KeyView, as_json: bool) -> None:
    if as_json:
        screen.json(key)
        return
    screen.fields(
        [
            ("id", key["id"]),
            ("name", key["name"]),
            ("role", key["role"]),
            ("state", key["state"]),
            ("models", ", ".join(key["models"])),
            ("rate", key["rate"] or ""),
            ("at once", str(key["max_concurrency"] or "")),
            ("weight", f"{key['weight']:g}"),
            ("curve public", key["curve_public"]),
            ("created", f"{key['created_at']} by {key['created_by']}"),
            ("expires", key["expires_at"] or ""),
            ("rotated", key["rotated_at"] or ""),
            ("old one until", key["overlap_until"] or ""),
            ("revoked", key["revoked_at"] or ""),
            ("last used", key["last_used_at"] or ""),
        ]
    )


def _duration_s(text: str) -> float:
    try:
        return parse_duration_s(text)
    except InvalidRequest as error:
        raise typer.BadParameter(error.message) from None
