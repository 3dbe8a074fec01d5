"""Keys: who they let in and for how long, on a clock that stands still; and that only hashes of them are kept."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from moc.kernel.errors import Conflict, InvalidRequest, NotFound, RateLimited, Unauthenticated
from moc.kernel.records import Put, Table
from moc.security.authenticator import Authenticator
from moc.security.identity import ANYONE, Identity, Role
from moc.security.key import ApiKey, KeyState, KeyTerms, hash_of
from moc.security.keyring import ADMIN_KEY_FILE, KEPT_S, KeyRing
from moc.security.quota import Rate
from moc.store.memory import MemoryStore
from moc.testing.clock import ManualClock

CURVE = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"


class Door:
    """A ring of keys on a store, and who asks at it."""

    def __init__(self, data_dir: Path, store: MemoryStore, clock: ManualClock, **options: Any) -> None:
        self.clock = clock
        self.store = store
        self.ring = KeyRing(store=store, data_dir=data_dir, clock=clock, retry_s=0)
        self.failed: list[str] = []
        self.authenticator = Authenticator(keys=self.ring, clock=clock, on_failed=self.failed.append, **options)
        self.path = data_dir / ADMIN_KEY_FILE

    @property
    def admin(self) -> str:
        """What the file of the admin key holds."""
        return self.path.read_text().strip()

    def who(self, token: str | None, address: str = "192.0.2.1") -> Identity:
        return self.authenticator.identify(token, address)

    def opens(self, token: str) -> bool:
        """Whether a key is let in."""
        try:
            self.who(token)
        except Unauthenticated:
            return False
        return True

    async def make(self, role: Role = Role.VIEWER, **terms: Any) -> tuple[str, ApiKey]:
        return await self.ring.create(KeyTerms(role=role, **terms), actor="test")


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore()
    await store.start()
    yield store
    await store.stop()


@pytest.fixture
async def door(tmp_path: Path, store: MemoryStore) -> AsyncIterator[Door]:
    door = Door(tmp_path, store, ManualClock(), failed_logins_per_min=10_000)
    await door.ring.start()
    yield door
    await door.ring.stop()


async def until(look: Callable[[], bool]) -> None:
    """Let everything else run until it is so; nobody tells when a ring has taken in what the store told it."""
    async with asyncio.timeout(5):
        while True:
            if look():
                return
            await asyncio.sleep(0)


async def kinds(store: MemoryStore) -> list[tuple[str, str]]:
    return [(event.kind, event.actor) for event in await store.events()]


async def test_the_first_start_makes_the_admin_key_and_the_next_ones_keep_it(door: Door, tmp_path: Path) -> None:
    first = door.admin
    assert (door.who(first).role, door.path.stat().st_mode & 0o777) == (Role.ADMIN, 0o600)
    again = Door(tmp_path, door.store, door.clock)
    await again.ring.start()
    assert (again.admin, len(again.ring.all())) == (first, 1)
    await again.ring.stop()


@pytest.mark.parametrize("left", ["", "moc_000000000000_nobodys", None])
async def test_a_lost_admin_key_is_made_anew(door: Door, tmp_path: Path, left: str | None) -> None:
    await door.ring.stop()
    door.path.unlink() if left is None else door.path.write_text(left)
    await door.ring.start()
    assert door.who(door.admin).role is Role.ADMIN
    assert len(door.ring.all()) == 2


async def test_an_admin_key_is_made_when_none_is_good_any_more(door: Door) -> None:
    _, first = await door.make(Role.ADMIN, expires_in_s=60)
    await door.ring.revoke(door.who(door.admin).key_id, actor="test")
    await door.ring.stop()
    door.clock.advance(61)
    await door.ring.start()
    assert door.who(door.admin).role is Role.ADMIN
    assert door.who(door.admin).key_id != first.id


async def test_a_key_is_known_with_all_it_is_good_for(door: Door) -> None:
    limits: dict[str, Any] = {"rate": Rate(5, 60), "max_concurrency": 2, "weight": 2.5}
    token, key = await door.make(Role.INFERENCE, name="ci", models=("a", "b-*"), **limits)
    identity = door.who(token)
    assert (identity.key_id, identity.name, identity.role) == (key.id, "ci", Role.INFERENCE)
    assert (identity.models, identity.weight) == (("a", "b-*"), 2.5)
    for _ in range(5):
        identity.quota.spend()
    with pytest.raises(RateLimited) as refused:
        door.who(token).quota.spend()
    assert 0 < (refused.value.retry_after_s or 0) <= 60


async def test_nothing_that_opens_is_kept(door: Door) -> None:
    token, key = await door.make(curve_public=CURVE)
    newer, _ = await door.ring.rotate(key.id, overlap_s=60, actor="test")
    kept = b"".join(record.value for record in await door.store.list(""))
    kept += repr([*await door.store.events()]).encode()
    for secret in (token, newer, door.admin):
        assert secret.split("_", 2)[2].encode() not in kept
    assert key.sha256.encode() in kept


@pytest.mark.parametrize(
    "token",
    [
        "",
        "_",
        "moc",
        "moc__",
        "moc_0_0",
        "{good}x",
        "x{good}",
        "{upper}",
        "{id}",
        "é",
        "\udcff",
        "moc_{other}_{secret}",
    ],
)
async def test_what_is_nearly_a_key_opens_nothing(door: Door, token: str) -> None:
    good, key = await door.make()
    _, other = await door.make()
    secret = good.removeprefix(f"moc_{key.id}_")
    tried = token.format(good=good, upper=good.upper(), id=f"moc_{key.id}_", other=other.id, secret=secret)
    assert door.opens(good)
    assert not door.opens(tried)


async def test_a_missing_key_is_anyones_only_where_none_is_required(door: Door) -> None:
    with pytest.raises(Unauthenticated, match="needs a key"):
        door.who(None)
    assert door.failed == []
    lax = Authenticator(keys=door.ring, clock=door.clock, require_key=False)
    assert lax.identify(None) is ANYONE
    with pytest.raises(Unauthenticated):
        lax.identify("moc_0_wrong")


async def test_a_revoked_key_is_closed_at_once_and_for_good(door: Door) -> None:
    token, key = await door.make(curve_public=CURVE)
    revoked = await door.ring.revoke(key.id, actor="boss")
    assert revoked.state(door.clock.wall()) is KeyState.REVOKED
    assert not door.opens(token)
    with pytest.raises(Unauthenticated, match="revoked"):
        door.who(token)
    with pytest.raises(Unauthenticated):
        door.authenticator.identify_curve(CURVE)
    assert await door.ring.revoke(key.id, actor="boss") == revoked
    with pytest.raises(Conflict):
        await door.ring.rotate(key.id, overlap_s=0, actor="boss")
    assert (await kinds(door.store))[-2:] == [("key.created", "test"), ("key.revoked", "boss")]
    with pytest.raises(NotFound):
        await door.ring.revoke("nobody", actor="boss")


async def test_who_holds_the_identity_of_a_key_that_ended_asks_nothing_more(door: Door) -> None:
    identities = []
    for expires_in_s in (None, 60.0, None):
        token, _ = await door.make(expires_in_s=expires_in_s)
        identities.append(door.who(token))
    revoked, expired, deleted = identities
    for identity in identities:
        identity.quota.spend()
    await door.ring.rotate(revoked.key_id, overlap_s=0, actor="boss")
    revoked.quota.spend()
    await door.ring.revoke(revoked.key_id, actor="boss")
    door.clock.advance(60)
    await door.ring.flush()
    await door.store.commit([Table(door.store, "keys/", ApiKey).delete(deleted.key_id, expect=None)])
    await until(lambda: deleted.key_id not in [key.id for key in door.ring.all()])
    for identity in (revoked, expired, deleted):
        with pytest.raises(Unauthenticated, match="since this began"):
            identity.quota.spend()


async def test_a_key_expires(door: Door) -> None:
    token, key = await door.make(expires_in_s=60)
    door.clock.advance(59.9)
    assert door.opens(token)
    door.clock.advance(0.1)
    with pytest.raises(Unauthenticated, match="expired"):
        door.who(token)
    assert door.ring.show(key.id).state(door.clock.wall()) is KeyState.EXPIRED


async def test_after_a_rotation_both_are_good_for_the_overlap(door: Door) -> None:
    old, key = await door.make()
    new, _ = await door.ring.rotate(key.id, overlap_s=3600, actor="boss")
    assert old != new
    assert door.who(old) == door.who(new)
    door.clock.advance(3600)
    assert (door.opens(old), door.opens(new)) == (False, True)
    newest, _ = await door.ring.rotate(key.id, overlap_s=0, actor="boss")
    assert (door.opens(old), door.opens(new), door.opens(newest)) == (False, False, True)
    assert (await kinds(door.store))[-1] == ("key.rotated", "boss")


async def test_the_file_follows_a_rotation_of_the_admin_key(door: Door) -> None:
    new, _ = await door.ring.rotate(door.who(door.admin).key_id, overlap_s=0, actor="boss")
    assert (door.admin, door.opens(new)) == (new, True)


async def test_the_last_admin_key_stays(door: Door) -> None:
    last = door.who(door.admin).key_id
    await door.make(Role.OPERATOR)
    with pytest.raises(Conflict, match="last"):
        await door.ring.revoke(last, actor="boss")
    await door.make(Role.ADMIN)
    await door.ring.revoke(last, actor="boss")


async def test_two_replicas_do_not_revoke_the_last_two_admin_keys_at_once(door: Door, tmp_path: Path) -> None:
    _, second = await door.make(Role.ADMIN)
    first = door.who(door.admin).key_id
    other = Door(tmp_path, door.store, door.clock)
    await other.ring.start()
    outcomes = await asyncio.gather(
        door.ring.revoke(first, actor="one"), other.ring.revoke(second.id, actor="two"), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes].count(Conflict) == 1
    await other.ring.stop()


async def test_a_revocation_elsewhere_is_seen_without_being_asked_for(door: Door, tmp_path: Path) -> None:
    other = Door(tmp_path, door.store, door.clock, failed_logins_per_min=10_000)
    await other.ring.start()
    token, key = await door.make()
    await until(lambda: other.opens(token))
    await door.ring.revoke(key.id, actor="boss")
    await until(lambda: not other.opens(token))
    await other.ring.stop()


async def test_a_key_that_was_deleted_in_the_store_opens_nothing(door: Door) -> None:
    token, key = await door.make(curve_public=CURVE)
    table = Table(door.store, "keys/", ApiKey)
    await door.store.commit([table.delete(key.id, expect=None)])
    await until(lambda: not door.opens(token))
    with pytest.raises(Unauthenticated):
        door.authenticator.identify_curve(CURVE)


@pytest.mark.parametrize("value", [b"{", b"{}", b'{"role":"god"}'])
async def test_a_key_that_cannot_be_read_any_more_opens_nothing_and_the_others_do(door: Door, value: bytes) -> None:
    token, key = await door.make()
    with capture_logs() as logs:
        await door.store.commit([Put(f"keys/{key.id}", value, None)])
        await until(lambda: not door.opens(token))
    assert [entry["key_id"] for entry in logs] == [key.id]
    other, _ = await door.make()
    assert door.opens(other)
    assert door.opens(door.admin)


async def test_keys_are_followed_again_after_the_store_failed(door: Door, tmp_path: Path) -> None:
    shaken = Door(tmp_path, door.store, door.clock, failed_logins_per_min=10_000)
    await shaken.ring.start()
    token, key = await door.make()
    await door.store.stop()
    await door.store.start()
    await door.ring.revoke(key.id, actor="boss")
    late, _ = await door.make()
    await until(lambda: shaken.opens(late) and not shaken.opens(token))
    await shaken.ring.stop()


async def test_a_curve_key_stands_for_its_key(door: Door) -> None:
    token, key = await door.make(Role.OPERATOR, curve_public=CURVE, expires_in_s=60)
    assert door.authenticator.identify_curve(CURVE) == door.who(token)
    with pytest.raises(Conflict, match=key.id):
        await door.make(curve_public=CURVE)
    door.clock.advance(60)
    with pytest.raises(Unauthenticated, match="expired"):
        door.authenticator.identify_curve(CURVE)
    _, second = await door.make(curve_public=CURVE)
    assert door.authenticator.identify_curve(CURVE).key_id == second.id
    with pytest.raises(Unauthenticated, match="bound to no key"):
        door.authenticator.identify_curve("?" * 40)


async def test_when_a_key_was_last_used_outlives_the_process(door: Door, tmp_path: Path) -> None:
    token, key = await door.make()
    assert door.ring.last_used_at(key.id) is None
    door.clock.advance(5)
    door.who(token)
    used = door.clock.wall()
    before = await door.store.commit([])
    door.clock.advance(5)
    assert door.ring.last_used_at(key.id) == used
    assert await door.store.commit([]) == before
    await door.ring.flush()
    flushed = await door.store.commit([])
    await door.ring.flush()
    assert (flushed, await door.store.commit([])) == (before + 1, before + 1)
    later = Door(tmp_path, door.store, door.clock)
    await later.ring.start()
    assert later.ring.last_used_at(key.id) == used
    await later.ring.stop()


async def test_a_key_that_nobody_asks_after_is_closed_and_forgotten(door: Door) -> None:
    token, key = await door.make()
    door.who(token)
    await door.ring.flush()
    for _ in range(2):
        await door.ring.forget(key.id, actor="job-1")
    with pytest.raises(Unauthenticated):
        door.who(token)
    assert [record.key for record in await door.store.list("") if key.id in record.key] == []
    assert (await kinds(door.store))[1:] == [("key.created", "test"), ("key.revoked", "job-1")]


async def test_keys_that_ended_long_ago_are_forgotten(door: Door) -> None:
    token, key = await door.make()
    door.who(token)
    await door.ring.flush()
    await door.ring.revoke(key.id, actor="boss")
    door.clock.advance(KEPT_S)
    await door.make()
    assert key.id in [each.id for each in door.ring.all()]
    door.clock.advance(1)
    await door.make()
    assert key.id not in [each.id for each in door.ring.all()]
    assert [record.key for record in await door.store.list("") if key.id in record.key] == []


@pytest.mark.parametrize(
    "terms",
    [
        {"name": "\x1b[2J"},
        {"name": "x" * 65},
        {"models": ("a b",)},
        {"models": ("",)},
        {"models": tuple(f"m{n}" for n in range(65))},
        {"models": ("a",), "role": Role.ADMIN},
        {"expires_in_s": 0.5},
        {"expires_in_s": 1e12},
        {"expires_in_s": float("nan")},
        {"max_concurrency": 0},
        {"weight": 0.0},
        {"weight": 101.0},
        {"weight": float("nan")},
        {"curve_public": "short"},
        {"curve_public": "\\" * 40},
    ],
)
async def test_terms_that_make_no_sense_are_refused(door: Door, terms: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        await door.make(**terms)
    assert len(door.ring.all()) == 1


async def test_too_many_wrong_keys_from_an_address_are_refused_but_right_ones_open(tmp_path: Path) -> None:
    store = MemoryStore()
    await store.start()
    door = Door(tmp_path, store, ManualClock(), failed_logins_per_min=3)
    await door.ring.start()
    for _ in range(3):
        assert not door.opens("moc_0_wrong")
    with pytest.raises(RateLimited, match="too many wrong keys") as refused:
        door.who("moc_0_wrong")
    assert 0 < (refused.value.retry_after_s or 0) <= 60
    assert door.failed == ["192.0.2.1"] * 3
    assert door.who(door.admin).role is Role.ADMIN
    with pytest.raises(Unauthenticated):
        door.who("moc_0_wrong", "192.0.2.2")
    for number in range(3):
        with pytest.raises(Unauthenticated):
            door.who("moc_0_wrong", f"2001:db8::{number}")
    with pytest.raises(RateLimited):
        door.who("moc_0_wrong", "2001:db8::ffff")
    with pytest.raises(Unauthenticated):
        door.who("moc_0_wrong", "2001:db8:0:1::1")
    with pytest.raises(RateLimited):
        door.who("moc_0_wrong", "::ffff:192.0.2.1")
    with pytest.raises(Unauthenticated):
        door.who("moc_0_wrong", "::ffff:192.0.2.9")
    await door.ring.stop()
    await store.stop()


async def test_a_store_of_an_earlier_version_is_read(store: MemoryStore, tmp_path: Path) -> None:
    token = "moc_00112233aabb_old"
    old = (
        b'{"id":"00112233aabb","name":"admin","role":"admin","sha256":"'
        + hash_of(token).hex().encode()
        + b'","created_at":1.5}'
    )
    await store.commit([Put("keys/00112233aabb", old, None)])
    (tmp_path / ADMIN_KEY_FILE).write_text(token)
    door = Door(tmp_path, store, ManualClock())
    await door.ring.start()
    assert (door.who(token).role, len(door.ring.all())) == (Role.ADMIN, 1)
    await door.ring.stop()
