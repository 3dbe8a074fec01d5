"""`moc certs`: a private authority and its certificates, for trying TLS out."""

import socket
from pathlib import Path
from typing import Annotated

import typer

from moc.cli import screen
from moc.cli.session import Session, connected
from moc.client.discovery import CERTIFICATES_FOLDER

app = typer.Typer(help="Make certificates for trying TLS out.", no_args_is_help=True, rich_markup_mode=None)

FolderOption = Annotated[Path | None, typer.Option("--folder", metavar="DIR", help="Where they lie [DATA_DIR/certs].")]
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@app.command("init")
@connected
def init(
    session: Session,
    folder: FolderOption = None,
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address of the server, besides this machine's; repeatable.")
    ] = None,
) -> None:
    """Make a private authority and a certificate for the server, and print the lines for moc.yaml."""
    from moc.security.certificates import PrivateAuthority

    place = _folder(session, folder)
    authority = PrivateAuthority(place)
    authority.create()
    names = dict.fromkeys((*(host or ()), *LOOPBACK, socket.gethostname()))
    certificate = authority.issue_server([*names])
    screen.line(f"{authority.certificate} is what clients have to trust (MOC_CA_FILE). In moc.yaml:\n")
    screen.line("server:")
    screen.line("  tls:")
    screen.line(f"    certificate: {certificate}")
    screen.line(f"    key: {certificate.with_suffix('.key')}")
    screen.line(f"    client_ca: {authority.certificate}   # optional: certificates of `moc certs client`")


@app.command("server")
@connected
def server(
    session: Session,
    host: Annotated[list[str], typer.Argument(help="Names and addresses that the server is called by.")],
    folder: FolderOption = None,
) -> None:
    """Make a new certificate for the server; one that runs takes it up by itself."""
    from moc.security.certificates import PrivateAuthority

    screen.line(str(PrivateAuthority(_folder(session, folder)).issue_server(host)))


@app.command("client")
@connected
def client(
    session: Session,
    key_id: Annotated[str, typer.Argument(help="Id of the API key that it stands for; see `moc keys list`.")],
    folder: FolderOption = None,
) -> None:
    """Make a certificate that a client may show in place of an API key (MOC_CERTIFICATE)."""
    from moc.security.certificates import PrivateAuthority

    screen.line(str(PrivateAuthority(_folder(session, folder)).issue_client(key_id)))


def _folder(session: Session, folder: Path | None) -> Path:
    return (folder or session.folder / CERTIFICATES_FOLDER).expanduser().absolute()
