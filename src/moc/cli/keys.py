"""`moc keys`: what opens the coordinator."""

import typer

from moc.cli import screen
from moc.cli.session import Session, connected
from moc.client.discovery import ADMIN_KEY_FILE, read_admin_key
from moc.kernel.errors import NotFound

app = typer.Typer(help="Look at the keys that open the coordinator.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def keys() -> None:
    """Keep `show` a command of its own: an app with one command would swallow its name."""


@app.command("show")
@connected
def show_key(session: Session) -> None:
    """Print the admin key of this machine's coordinator."""
    key = read_admin_key(session.folder)
    if key is None:
        raise NotFound(
            f"there is no key at {session.folder / ADMIN_KEY_FILE}; the first `moc serve` writes it, "
            "and --data-dir or MOC_DATA_DIR says where else to look"
        )
    screen.line(key)
