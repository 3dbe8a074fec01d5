"""What a caller may ask about API keys."""

from dataclasses import asdict, dataclass

import msgspec

from moc.kernel.clock import Clock
from moc.kernel.errors import InvalidRequest
from moc.security.identity import Identity, Role
from moc.security.key import ApiKey, KeyTerms
from moc.security.keyring import KeyRing
from moc.security.policy import Operation
from moc.security.quota import Rate
from moc.service.guard import Journal, audited, require
from moc.service.views import Page, rfc3339

OVERLAP_MAX_S = 30 * 86_400.0


class KeyWish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key that is wanted: as `security.key.KeyTerms`, the rate as text such as `100/min`."""

    role: Role
    name: str = ""
    models: tuple[str, ...] = ()
    expires_in_s: float | None = None
    rate: str | None = None
    max_concurrency: int | None = None
    weight: float = 1.0
    curve_public: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyView:
    """An API key, without what opens; `overlap_until` is how long the secret before the last one is good."""

    id: str
    name: str
    role: str
    state: str
    models: list[str]
    rate: str | None
    max_concurrency: int | None
    weight: float
    curve_public: str
    created_at: str
    created_by: str
    expires_at: str | None
    rotated_at: str | None
    overlap_until: str | None
    revoked_at: str | None
    last_used_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKeyView(KeyView):
    """A key with the token that opens, which is shown this once."""

    token: str


class KeysService:
    """The keys that open the coordinator, for those that may make them."""

    def __init__(self, *, keys: KeyRing, clock: Clock, journal: Journal) -> None:
        self.journal = journal
        self._keys = keys
        self._clock = clock

    async def list(self, identity: Identity, *, after: str | None, limit: int) -> Page[KeyView]:
        """The keys, by id; `after` is the last id of the page before."""
        require(identity, Operation.READ_KEYS)
        found = [key for key in self._keys.all() if after is None or key.id > after]
        return Page([self._view(key) for key in found[:limit]], found[limit - 1].id if len(found) > limit else None)

    async def show(self, identity: Identity, key_id: str) -> KeyView:
        """One key; NotFound when there is none."""
        require(identity, Operation.READ_KEYS)
        return self._view(self._keys.show(key_id))

    @audited("keys.create", subject=lambda made: made.id)
    async def create(self, identity: Identity, wish: KeyWish) -> NewKeyView:
        """A new key."""
        require(identity, Operation.CHANGE_KEYS)
        terms = KeyTerms(
            name=wish.name,
            role=wish.role,
            models=wish.models,
            expires_in_s=wish.expires_in_s,
            rate=None if wish.rate is None else Rate.parse(wish.rate),
            max_concurrency=wish.max_concurrency,
            weight=wish.weight,
            curve_public=wish.curve_public,
        )
        token, key = await self._keys.create(terms, actor=identity.key_id)
        return NewKeyView(**asdict(self._view(key)), token=token)

    @audited("keys.rotate")
    async def rotate(self, identity: Identity, key_id: str, overlap_s: float) -> NewKeyView:
        """Another token for a key; the one before is good for `overlap_s` more. Conflict for a key that ended."""
        require(identity, Operation.CHANGE_KEYS)
        if not 0 <= overlap_s <= OVERLAP_MAX_S:
            raise InvalidRequest(f"`overlap_s` is 0 to {OVERLAP_MAX_S:.0f}, not {overlap_s:g}")
        token, key = await self._keys.rotate(key_id, overlap_s=overlap_s, actor=identity.key_id)
        return NewKeyView(**asdict(self._view(key)), token=token)

    @audited("keys.revoke")
    async def revoke(self, identity: Identity, key_id: str) -> KeyView:
        """Close a key for good; idempotent. Conflict for the last one that may make keys."""
        require(identity, Operation.CHANGE_KEYS)
        return self._view(await self._keys.revoke(key_id, actor=identity.key_id))

    def _view(self, key: ApiKey) -> KeyView:
        now = self._clock.wall()
        return KeyView(
            id=key.id,
            name=key.name,
            role=key.role,
            state=key.state(now),
            models=[*key.models],
            rate=None if key.rate is None else str(key.rate),
            max_concurrency=key.max_concurrency,
            weight=key.weight,
            curve_public=key.curve_public,
            created_at=rfc3339(key.created_at),
            created_by=key.created_by,
            expires_at=_moment(key.expires_at),
            rotated_at=_moment(key.rotated_at),
            overlap_until=_moment(key.former_until if now < key.former_until else None),
            revoked_at=_moment(key.revoked_at),
            last_used_at=_moment(self._keys.last_used_at(key.id)),
        )


def _moment(at: float | None) -> str | None:
    return None if at is None else rfc3339(at)
