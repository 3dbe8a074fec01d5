"""The noun: an API key, `moc_<id>_<secret>`, of which only a hash is kept.

The secret has 256 random bits, so a plain SHA-256 of it cannot be guessed back and needs no slow hash.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass, replace
from enum import StrEnum

from moc.kernel.errors import InvalidRequest
from moc.security.identity import Role
from moc.security.quota import Rate

MODELS_MAX = 64
CONCURRENCY_MAX = 100_000
WEIGHT_MIN, WEIGHT_MAX = 0.1, 100.0
EXPIRES_IN_MAX_S = 10 * 365 * 86_400.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}", re.ASCII)
_GLOB = re.compile(r"[A-Za-z0-9._*?@\[\]!-]{1,128}", re.ASCII)
_Z85 = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}", re.ASCII)


class KeyState(StrEnum):
    """`active` opens; `revoked` and `expired` never do again."""

    ACTIVE = "active"
    REVOKED = "revoked"
    EXPIRED = "expired"


MOVES: dict[KeyState, frozenset[KeyState]] = {
    KeyState.ACTIVE: frozenset({KeyState.REVOKED, KeyState.EXPIRED}),
    KeyState.REVOKED: frozenset(),
    KeyState.EXPIRED: frozenset(),
}
"""Every move a key's state may make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTerms:
    """What a key is to be good for.

    `models` are globs, empty = all; it ends `expires_in_s` after it was made, None = never; of a model that others
    wait for too it gets a share as its `weight` is to theirs; `curve_public` is the public key, in Z85, with which a
    ZeroMQ client proves itself instead; `on_behalf_of` is the id of a key without which it opens nothing.
    """

    name: str = ""
    role: Role
    models: tuple[str, ...] = ()
    expires_in_s: float | None = None
    rate: Rate | None = None
    max_concurrency: int | None = None
    weight: float = 1.0
    curve_public: str = ""
    on_behalf_of: str = ""

    def check(self) -> None:
        """InvalidRequest with the first thing that is wrong."""
        if self.name and _NAME.fullmatch(self.name) is None:
            raise InvalidRequest("a key's name has up to 64 letters, digits, spaces, '.', '_', '@' and '-'")
        if len(self.models) > MODELS_MAX or any(_GLOB.fullmatch(glob) is None for glob in self.models):
            raise InvalidRequest(f"`models` are at most {MODELS_MAX} names or patterns such as team-*")
        if self.models and self.role is Role.ADMIN:
            raise InvalidRequest("a key that may do everything cannot be limited to models; give it another role")
        if self.expires_in_s is not None and not 1 <= self.expires_in_s <= EXPIRES_IN_MAX_S:
            raise InvalidRequest("a key expires after one second to ten years")
        if self.max_concurrency is not None and not 1 <= self.max_concurrency <= CONCURRENCY_MAX:
            raise InvalidRequest(f"`max_concurrency` is 1 to {CONCURRENCY_MAX}, not {self.max_concurrency}")
        if not WEIGHT_MIN <= self.weight <= WEIGHT_MAX:
            raise InvalidRequest(f"`weight` is {WEIGHT_MIN} to {WEIGHT_MAX}, not {self.weight:g}")
        if self.curve_public and _Z85.fullmatch(self.curve_public) is None:
            raise InvalidRequest("`curve_public` is a ZeroMQ CURVE public key in Z85, 40 characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What the store knows of a key; never the key itself.

    After a rotation the secret before it, `former_sha256`, is good until `former_until`. Times are wall.
    """

    id: str
    name: str
    role: Role
    sha256: str
    created_at: float
    created_by: str = "system"
    models: tuple[str, ...] = ()
    rate: Rate | None = None
    max_concurrency: int | None = None
    weight: float = 1.0
    curve_public: str = ""
    on_behalf_of: str = ""
    expires_at: float | None = None
    rotated_at: float | None = None
    former_sha256: str = ""
    former_until: float = 0.0
    revoked_at: float | None = None

    def state(self, now: float) -> KeyState:
        """Its state at a time of day."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        if self.expires_at is not None and now >= self.expires_at:
            return KeyState.EXPIRED
        return KeyState.ACTIVE

    def rotated(self, token: str, *, now: float, overlap_s: float) -> "ApiKey":
        """This key with another secret; the one it had is good for `overlap_s` more."""
        return replace(
            self,
            sha256=hash_of(token).hex(),
            rotated_at=now,
            former_sha256=self.sha256 if overlap_s else "",
            former_until=now + overlap_s if overlap_s else 0.0,
        )


def new_key(terms: KeyTerms, *, now: float, actor: str) -> tuple[str, ApiKey]:
    """A key, and what is kept of it."""
    key_id = secrets.token_hex(6)
    token = new_token(key_id)
    key = ApiKey(
        id=key_id,
        name=terms.name or key_id,
        role=terms.role,
        sha256=hash_of(token).hex(),
        created_at=now,
        created_by=actor,
        models=terms.models,
        rate=terms.rate,
        max_concurrency=terms.max_concurrency,
        weight=terms.weight,
        curve_public=terms.curve_public,
        on_behalf_of=terms.on_behalf_of,
        expires_at=None if terms.expires_in_s is None else now + terms.expires_in_s,
    )
    return token, key


def new_token(key_id: str) -> str:
    """A key with a new secret."""
    return f"moc_{key_id}_{secrets.token_urlsafe(32)}"


def id_of(token: str) -> str:
    """The id a key names; anything may come out of a text that is none."""
    return token.partition("_")[2].partition("_")[0]


def hash_of(token: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
