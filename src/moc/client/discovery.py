"""Where the coordinator is, and which key opens it, when the caller does not say."""

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from moc.kernel.errors import Forbidden, InvalidRequest

DEFAULT_URL = "http://127.0.0.1:8008"
ADMIN_KEY_FILE = "admin.key"
ENDPOINTS_FILE = "endpoints.json"
CERTIFICATES_FOLDER = "certs"
AUTHORITY_FILE = "ca.pem"


@dataclass(frozen=True, slots=True)
class Target:
    """A coordinator's address, without a slash at its end, and the key to show it; None = no key is known.

    Over TLS `ca_file` is the authority to trust, None = those the system trusts; `certificate` (PEM, with its key in
    the same file or beside it as `.key`) is shown to the coordinator.
    """

    url: str
    key: str | None = field(repr=False)
    ca_file: Path | None = None
    certificate: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether the address is this machine's own, where no proxy stands between."""
        return _is_loopback(self.url)


def choose_data_dir(data_dir: str | Path | None = None) -> Path:
    """The data folder: the one given, else `MOC_DATA_DIR`, else the user's own data folder for `moc`."""
    chosen = data_dir or os.environ.get("MOC_DATA_DIR")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_data_dir

    return Path(user_data_dir("moc"))


def locate(url: str | None = None, key: str | None = None, data_dir: str | Path | None = None) -> Target:
    """Find the coordinator: what is given wins over `MOC_URL` and `MOC_KEY`, those over the data folder's files.

    The admin key of the data folder is only ever shown to an address of this machine, where the private authority
    of that folder is trusted too. `MOC_CA_FILE` names another authority, `MOC_CERTIFICATE` a client's certificate.
    Raises InvalidRequest for an address that is none, Forbidden when the key file may not be read.
    """
    folder = choose_data_dir(data_dir)
    address = url or os.environ.get("MOC_URL") or _running_url(folder) or DEFAULT_URL
    address = _checked(address)
    secret = key or os.environ.get("MOC_KEY")
    if not secret and _is_loopback(address):
        secret = read_admin_key(folder)
    certificate = os.environ.get("MOC_CERTIFICATE")
    return Target(address, secret or None, _authority(address, folder), Path(certificate) if certificate else None)


def read_admin_key(data_dir: Path) -> str | None:
    """The admin key a coordinator wrote to its data folder, None when there is none; Forbidden if unreadable."""
    path = data_dir / ADMIN_KEY_FILE
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Forbidden(
            f"the key file {path} cannot be read ({error}); "
            "run this as the user who started the coordinator, or give a key with --key or MOC_KEY"
        ) from error


def read_endpoints(data_dir: Path) -> dict[str, Any]:
    """What a running coordinator says of itself in its data folder (`rest`, `pid`); empty when nothing does."""
    path = data_dir / ENDPOINTS_FILE
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            f"{path} is damaged ({error}); delete it and start the coordinator again, or give --url"
        ) from error


def _running_url(data_dir: Path) -> str | None:
    rest = read_endpoints(data_dir).get("rest")
    return rest if isinstance(rest, str) else None


def _authority(address: str, folder: Path) -> Path | None:
    named = os.environ.get("MOC_CA_FILE")
    if named:
        return Path(named).expanduser()
    own = folder / CERTIFICATES_FOLDER / AUTHORITY_FILE
    return own if _is_loopback(address) and own.is_file() else None


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        usable = usable and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise InvalidRequest(f"not an address of a coordinator: {url!r}; write something like {DEFAULT_URL}")
    return url.rstrip("/")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
