"""API keys: `moc_<id>_<secret>`. Only a hash is stored; a verified key costs a hash and a dictionary look-up.

The secret has 256 random bits, so a plain SHA-256 of it cannot be guessed back and needs no slow hash.
"""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from moc.kernel.clock import Clock
from moc.kernel.errors import Unauthenticated
from moc.kernel.events import Event
from moc.kernel.records import ABSENT, Store, Table

ADMIN_KEY_FILE = "admin.key"


class Role(StrEnum):
    VIEWER = "viewer"
    INFERENCE = "inference"
    OPERATOR = "operator"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes a request."""

    key_id: str
    name: str
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What the store knows of a key; never the key itself."""

    id: str
    name: str
    role: Role
    sha256: str
    created_at: float


ANYONE = Identity("anonymous", "anonymous", Role.ADMIN)
"""Who asks when `security.require_key` is off."""


class Authenticator:
    """Tells who a key belongs to. On the first start it writes the admin key to `admin.key`."""

    def __init__(self, *, store: Store, data_dir: Path, clock: Clock, require_key: bool) -> None:
        self._keys: Table[ApiKey] = Table(store, "keys/", ApiKey)
        self._store = store
        self._clock = clock
        self._path = data_dir / ADMIN_KEY_FILE
        self._require_key = require_key
        self._known: dict[str, tuple[bytes, Identity]] = {}

    async def start(self) -> None:
        """Read the keys; make the admin key when there is none, or when its file was lost."""
        keys = [key for _, key, _ in await self._keys.list()]
        token = self._read_file()
        if token is None or not any(key.sha256 == _hash(token).hex() for key in keys):
            token, key = _new_key("admin", Role.ADMIN, self._clock.wall())
            _write_private(self._path, token)
            event = Event(kind="key.created", subject=key.id, data={"name": key.name, "role": key.role})
            await self._store.commit([self._keys.put(key.id, key, expect=ABSENT)], [event])
            keys.append(key)
        self._known = {key.id: (bytes.fromhex(key.sha256), Identity(key.id, key.name, key.role)) for key in keys}

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        self._known = {}

    def identify(self, token: str | None) -> Identity:
        """Whose key this is; Unauthenticated when it is missing or nobody's."""
        if token is None:
            if not self._require_key:
                return ANYONE
            raise Unauthenticated(
                "this needs a key: send `Authorization: Bearer KEY` or `X-API-Key: KEY` (`moc keys show` prints yours)"
            )
        _, _, rest = token.partition("_")
        known = self._known.get(rest.partition("_")[0])
        if known is not None and hmac.compare_digest(known[0], _hash(token)):
            return known[1]
        raise Unauthenticated("this key is not known here; `moc keys show` prints the one that is")

    def _read_file(self) -> str | None:
        try:
            return self._path.read_text().strip() or None
        except FileNotFoundError:
            return None


def _new_key(name: str, role: Role, now: float) -> tuple[str, ApiKey]:
    key_id = secrets.token_hex(6)
    token = f"moc_{key_id}_{secrets.token_urlsafe(32)}"
    return token, ApiKey(id=key_id, name=name, role=role, sha256=_hash(token).hex(), created_at=now)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _write_private(path: Path, text: str) -> None:
    """Put `text` in a file only its owner can read, whole or not at all."""
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, f"{text}\n".encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    aside.replace(path)
