"""The keys there are: read once, followed from then on, and changed here.

A key that another process revokes is closed here as soon as the store tells of it.
"""

import asyncio
import contextlib
import hmac
import math
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import structlog

from moc.kernel.clock import Clock
from moc.kernel.errors import Conflict, MocError, NotFound, StoreUnavailable
from moc.kernel.events import Event
from moc.kernel.records import ABSENT, Change, Op, Record, Store, Table
from moc.security.identity import Identity, Role
from moc.security.key import ApiKey, KeyState, KeyTerms, hash_of, id_of, new_key, new_token
from moc.security.quota import Quota, Rates

log = structlog.get_logger(__name__)

ADMIN_KEY_FILE = "admin.key"
KEYS_MAX = 10_000
"""How many keys there may be, those that ended of late included."""

KEPT_S = 30 * 86_400.0
"""How long a key that ended is still listed."""


@dataclass(frozen=True, slots=True)
class KeyUse:
    """When a key was last shown, wall time."""

    at: float


class HeldKey:
    """A key in memory, with all that is needed to tell in a moment whether it opens."""

    __slots__ = ("_digest", "_former", "_former_until", "identity", "key", "revision", "until", "used_at")

    def __init__(self, key: ApiKey, revision: int, quota: Quota) -> None:
        self.key = key
        self.revision = revision
        self.used_at = 0.0
        self.identity = Identity(key.id, key.name, key.role, key.models, quota, key.weight, key.on_behalf_of)
        self.until = -math.inf if key.revoked_at is not None else math.inf if key.expires_at is None else key.expires_at
        self._digest = bytes.fromhex(key.sha256)
        self._former = bytes.fromhex(key.former_sha256)
        self._former_until = key.former_until

    def is_secret(self, token: str, now: float) -> bool:
        """Whether `token` is this key, in a time that tells nothing of how much of it is right."""
        digest = hash_of(token)
        if hmac.compare_digest(self._digest, digest):
            return True
        return now < self._former_until and hmac.compare_digest(self._former, digest)


class KeyRing:
    """Every key by its id. On the first start it writes the admin key to `admin.key`.

    When a key was last used is written every `flush_interval_s`, and at the end. A store that fails is followed
    again `retry_s` later.
    """

    def __init__(
        self, *, store: Store, data_dir: Path, clock: Clock, flush_interval_s: float = 30.0, retry_s: float = 0.5
    ) -> None:
        self._keys: Table[ApiKey] = Table(store, "keys/", ApiKey)
        self._uses: Table[KeyUse] = Table(store, "key-uses/", KeyUse)
        self._store = store
        self._clock = clock
        self._path = data_dir / ADMIN_KEY_FILE
        self._flush_interval_s = flush_interval_s
        self._retry_s = retry_s
        self._rates = Rates()
        self._held: dict[str, HeldKey] = {}
        self._curve: dict[str, HeldKey] = {}
        self._flushed: dict[str, float] = {}
        self._changing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    # life

    async def start(self) -> None:
        """Read the keys; make an admin key when no key may do everything, or when the file of the first was lost."""
        if self._tasks:
            return
        changes = self._store.watch(self._keys.prefix)
        await self._read()
        self._flushed = {key_id: use.at for key_id, use, _ in await self._uses.list()}
        token = await asyncio.to_thread(self._read_file)
        known = None if token is None else self._held.get(id_of(token))
        if not self._admins() or token is None or known is None or not known.is_secret(token, math.inf):
            token, key = new_key(KeyTerms(name="admin", role=Role.ADMIN), now=self._clock.wall(), actor="system")
            await asyncio.to_thread(_write_private, self._path, token)
            await self._commit(key, ABSENT, _event("key.created", key, "system"))
        self._tasks = [
            asyncio.create_task(self._follow(changes), name="keys-follow"),
            asyncio.create_task(self._flush_often(), name="keys-flush"),
        ]

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        """Write down when keys were last used, and know none any more."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            with contextlib.suppress(StoreUnavailable):
                await self.flush()
        self._held, self._curve = {}, {}

    # what is known

    def find(self, key_id: str) -> HeldKey | None:
        """A key by its id, ended or not."""
        return self._held.get(key_id)

    def find_curve(self, public: str) -> HeldKey | None:
        """The key that a CURVE public key is bound to."""
        return self._curve.get(public)

    def is_open(self, held: HeldKey, now: float) -> bool:
        """Whether it has not ended, nor has the key on whose behalf it was made."""
        giver = self._held.get(held.key.on_behalf_of)
        return now < held.until and (not held.key.on_behalf_of or (giver is not None and now < giver.until))

    def all(self) -> list[ApiKey]:
        """Every key, by id."""
        return [self._held[key_id].key for key_id in sorted(self._held)]

    def show(self, key_id: str) -> ApiKey:
        """One key; NotFound when there is none."""
        return self._known(key_id).key

    def last_used_at(self, key_id: str) -> float | None:
        """When it was last shown to this replica, or to any one as far as that was written down."""
        held = self._held.get(key_id)
        return max(held.used_at if held else 0.0, self._flushed.get(key_id, 0.0)) or None

    # what admins change

    async def create(self, terms: KeyTerms, *, actor: str) -> tuple[str, ApiKey]:
        """A new key, told this once. Keys that ended a while ago are forgotten with it."""
        terms.check()
        now = self._clock.wall()
        async with self._changing:
            stale = [held for held in self._held.values() if _ended_at(held.key) < now - KEPT_S]
            if len(self._held) - len(stale) >= KEYS_MAX:
                raise Conflict(f"there are {KEYS_MAX} keys already; revoke those that nobody needs")
            bound = self._curve.get(terms.curve_public)
            if bound is not None and bound.key.state(now) is KeyState.ACTIVE:
                raise Conflict(f"this CURVE key is bound to key {bound.key.id}; revoke that first")
            token, key = new_key(terms, now=now, actor=actor)
            forgotten = [self._keys.delete(held.key.id, expect=held.revision) for held in stale]
            forgotten += [self._uses.delete(held.key.id, expect=None) for held in stale]
            await self._commit(key, ABSENT, _event("key.created", key, actor), *forgotten)
            for held in stale:
                self._forget(held.key.id)
        return token, key

    async def rotate(self, key_id: str, *, overlap_s: float, actor: str) -> tuple[str, ApiKey]:
        """Another secret for a key, told this once; the one before is good for `overlap_s` more.

        The file of the admin key follows. Conflict for a key that ended.
        """
        async with self._changing:
            held, now = self._known(key_id), self._clock.wall()
            if held.key.state(now) is not KeyState.ACTIVE:
                raise Conflict(f"key {key_id} is {held.key.state(now)} for good; make another with `moc keys create`")
            in_file = await asyncio.to_thread(self._read_file)
            token = new_token(key_id)
            key = held.key.rotated(token, now=now, overlap_s=overlap_s)
            await self._commit(key, held.revision, _event("key.rotated", key, actor, overlap_s=overlap_s))
            if in_file is not None and id_of(in_file) == key_id:
                await asyncio.to_thread(_write_private, self._path, token)
        return token, key

    async def revoke(self, key_id: str, *, actor: str) -> ApiKey:
        """Close a key for good; idempotent. Conflict for the last one that may do everything."""
        async with self._changing:
            held, now = self._known(key_id), self._clock.wall()
            if held.key.state(now) is not KeyState.ACTIVE:
                return held.key
            remaining: list[Op] = []
            if held.key.role is Role.ADMIN:
                others = [other for other in self._admins() if other is not held]
                if not others:
                    raise Conflict(f"key {key_id} is the last that may make keys; make another admin key first")
                # Written again as it is: this is refused if somebody else closes that one at the same moment.
                remaining = [self._keys.put(others[0].key.id, others[0].key, expect=others[0].revision)]
            key = replace(held.key, revoked_at=now)
            revision = await self._commit(key, held.revision, _event("key.revoked", key, actor), *remaining)
            if remaining:
                others[0].revision = revision
        return key

    async def forget(self, key_id: str, *, actor: str) -> None:
        """Close a key for good, as `revoke` does, and list it no more; idempotent."""
        if key_id not in self._held:
            return
        await self.revoke(key_id, actor=actor)
        async with self._changing:
            if held := self._held.get(key_id):
                uses = self._uses.delete(key_id, expect=None)
                await self._store.commit([self._keys.delete(key_id, expect=held.revision), uses])
                self._forget(key_id)

    async def flush(self) -> None:
        """Write down when keys were last used, where that is news, and end what those do that expired."""
        async with self._changing:
            await self._flush()

    async def _flush(self) -> None:
        now = self._clock.wall()
        for held in self._held.values():
            if not self.is_open(held, now):
                held.identity.quota.end()
        news = {
            held.key.id: held.used_at
            for held in self._held.values()
            if held.used_at > self._flushed.get(held.key.id, 0.0)
        }
        if news:
            await self._store.commit([self._uses.put(key_id, KeyUse(at), expect=None) for key_id, at in news.items()])
            self._flushed.update(news)

    # inside

    async def _commit(self, key: ApiKey, expect: int, event: Event, *others: Op) -> int:
        """Make a change durable, and act on it at once."""
        revision = await self._store.commit([self._keys.put(key.id, key, expect=expect), *others], [event])
        self._take(key, revision)
        return revision

    async def _read(self) -> None:
        found = {key_id: (key, revision) for key_id, key, revision in await self._keys.list()}
        for gone in self._held.keys() - found.keys():
            self._forget(gone)
        for key, revision in found.values():
            self._take(key, revision)

    def _take(self, key: ApiKey, revision: int) -> None:
        before = self._held.get(key.id)
        if before is not None and before.revision >= revision:
            return
        if before is None:
            quota = Quota(key.id, self._rates, rate=key.rate, max_concurrency=key.max_concurrency)
            held = HeldKey(key, revision, quota)
        else:
            held = HeldKey(key, revision, before.identity.quota)
            held.used_at = before.used_at
        self._held[key.id] = held
        if key.revoked_at is not None:
            self._end(held)
        if key.curve_public and key.state(self._clock.wall()) is KeyState.ACTIVE:
            self._curve[key.curve_public] = held
        elif before is not None and self._curve.get(key.curve_public) is before:
            del self._curve[key.curve_public]

    def _forget(self, key_id: str) -> None:
        held = self._held.pop(key_id, None)
        self._flushed.pop(key_id, None)
        if held is None:
            return
        self._end(held)
        if self._curve.get(held.key.curve_public) is held:
            del self._curve[held.key.curve_public]

    def _end(self, held: HeldKey) -> None:
        """End what is done with a key, and with those made on its behalf."""
        held.identity.quota.end()
        for other in self._held.values():
            if other.key.on_behalf_of == held.key.id:
                other.identity.quota.end()

    async def _follow(self, changes: AsyncIterator[Change]) -> None:
        """Take in what any process changes; a store that fails is asked again until it answers."""
        while True:
            try:
                async for change in changes:
                    self._changed(change.key.removeprefix(self._keys.prefix), change.record)
            except MocError as error:
                log.warning("keys are not followed", problem=error.message)
            changes = await self._catch_up()

    async def _catch_up(self) -> AsyncIterator[Change]:
        while True:
            await asyncio.sleep(self._retry_s)
            with contextlib.suppress(MocError):
                changes = self._store.watch(self._keys.prefix)
                await self._read()
                return changes

    def _changed(self, key_id: str, record: Record | None) -> None:
        if record is None:
            self._forget(key_id)
            return
        try:
            self._take(self._keys.decode(record), record.revision)
        except (msgspec.MsgspecError, ValueError) as error:
            log.error("a key cannot be read and is closed", key_id=key_id, problem=str(error))
            self._forget(key_id)

    async def _flush_often(self) -> None:
        while True:
            await asyncio.sleep(self._flush_interval_s)
            try:
                await self.flush()
            except StoreUnavailable as error:
                log.warning("the last use of keys could not be written down", problem=error.message)

    def _known(self, key_id: str) -> HeldKey:
        held = self._held.get(key_id)
        if held is None:
            raise NotFound(f"there is no key {key_id[:100]!r}; `moc keys list` shows those there are")
        return held

    def _admins(self) -> list[HeldKey]:
        """The keys that may do everything now, those that last longest first."""
        now = self._clock.wall()
        found = [held for held in self._held.values() if held.key.role is Role.ADMIN and now < held.until]
        return sorted(found, key=lambda held: -held.until)

    def _read_file(self) -> str | None:
        try:
            return self._path.read_text().strip() or None
        except FileNotFoundError:
            return None


def _event(kind: str, key: ApiKey, actor: str, **data: float) -> Event:
    return Event(kind=kind, subject=key.id, actor=actor, data={"name": key.name, "role": key.role, **data})


def _ended_at(key: ApiKey) -> float:
    """When it was closed, or will be by itself."""
    return key.revoked_at if key.revoked_at is not None else key.expires_at or math.inf


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
