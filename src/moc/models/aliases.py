"""The one writer of aliases.

Records: `aliases/<name>` (Standing; it stays when the alias is removed, so that no number is used twice) and
`alias_history/<name>/<number>` (AliasChange, only ever appended).
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace

import msgspec

from moc.kernel.clock import Clock
from moc.kernel.errors import Conflict, InvalidRequest, NotFound
from moc.kernel.events import Event
from moc.kernel.records import ABSENT, Op, Store, Table
from moc.kernel.tasks import to_the_end
from moc.models.alias import Alias, check_alias
from moc.models.catalogue import Catalogue
from moc.models.model import parse_reference
from moc.models.ports import HostSeat

CONFIGURED = "Configured"


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasChange:
    """An entry of an alias's history: what it became (None = nothing, it was removed), when, by whom and why.

    `rollout` is the one that made it, if one did.
    """

    number: int
    at: float
    actor: str
    reason: str
    alias: Alias | None
    rollout: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How an alias stands: its newest change, and the hash of what the configuration last said of it ('' = nothing)."""

    change: AliasChange
    configured: str = ""


@dataclass(frozen=True, slots=True)
class Along:
    """What is done in the same commit as a change of an alias; `done(revision)` is called once it is."""

    ops: Sequence[Op] = ()
    events: Sequence[Event] = ()
    done: Callable[[int], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class _Held:
    standing: Standing
    revision: int


class AliasBook:
    """Aliases: read from memory, changed in the store first. A change counts for the next request."""

    def __init__(self, *, store: Store, seat: HostSeat, clock: Clock, catalogue: Catalogue) -> None:
        self._store = store
        self._seat = seat
        self._clock = clock
        self._catalogue = catalogue
        self._standings: Table[Standing] = Table(store, "aliases/", Standing)
        self._changes: Table[AliasChange] = Table(store, "alias_history/", AliasChange)
        self._held: dict[str, _Held] = {}
        self._aliases: dict[str, Alias] = {}
        self._claims: dict[str, str] = {}
        self._callbacks: list[Callable[[str, Alias | None], None]] = []
        catalogue.heed(self)

    async def start(self) -> None:
        """Read them from the store."""
        for name, standing, revision in await self._standings.list():
            self._take(name, _Held(standing, revision))

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        return

    def on_change(self, callback: Callable[[str, Alias | None], None]) -> None:
        """Have `callback(name, alias)` called for every alias at the start, and when one is set or removed (None)."""
        self._callbacks.append(callback)

    def names(self) -> list[str]:
        """Every alias there is, in order."""
        return sorted(self._aliases)

    def find(self, name: str) -> Alias | None:
        """What a name stands for, None when it is no alias."""
        return self._aliases.get(name)

    def get(self, name: str) -> Alias:
        """What an alias stands for; NotFound when there is none."""
        if name not in self._aliases:
            raise NotFound(f"there is no alias {name[:128]!r}; `moc aliases list` shows those there are")
        return self._aliases[name]

    def newest(self, name: str) -> AliasChange:
        """The newest change of what is or was an alias; NotFound when it never was."""
        held = self._held.get(name)
        if held is None:
            raise NotFound(f"there never was an alias {name[:128]!r}; `moc aliases list` shows those there are")
        return held.standing.change

    async def history(self, name: str, *, after: int = 0, limit: int = 100) -> list[AliasChange]:
        """Its changes with numbers greater than `after`, oldest first; also those of one that was removed.

        A change says what the alias became; what it was before is in the change before. NotFound when it never was.
        """
        self.newest(name)
        return [change for _, change, _ in await self._changes.list(f"{name}/", after=_key(name, after), limit=limit)]

    def check(self, name: str, alias: Alias) -> None:
        """What `set` would refuse now, whoever asked."""
        check_alias(name, alias)
        if self._catalogue.versions(name):
            raise Conflict(f"{name} is a model, and no alias can have its name; choose another")
        for reference in alias.references:
            if reference in self._aliases or reference == name:
                raise InvalidRequest(f"alias {name} names {reference}, an alias; an alias stands for models alone")
            try:
                self._catalogue.entry(reference)
            except NotFound as error:
                raise InvalidRequest(f"alias {name} names {reference}: {error.message}") from None

    async def claim(self, name: str, rollout: str) -> Alias:
        """Let nobody but this rollout change an alias until it is `freed`; what it stands for until then.

        NotFound when there is no such alias, Conflict when another rollout has it.
        """
        async with self._catalogue.naming:
            alias = self.get(name)
            self._check_claim(name, rollout)
            self._claims[name] = rollout
            return alias

    def freed(self, name: str) -> None:
        """See `claim`; idempotent."""
        self._claims.pop(name, None)

    async def set(
        self,
        name: str,
        alias: Alias,
        *,
        actor: str,
        reason: str,
        expect: int | None = None,
        rollout: str = "",
        along: Along | None = None,
    ) -> AliasChange:
        """Let `name` stand for `alias`; the same again changes nothing.

        InvalidRequest when it cannot be right or names what is no model. Conflict when a model has that name, or when
        `expect` is given and is not the number of the newest change (0 = there is no such alias), or when a rollout
        other than `rollout` has claimed the alias. What goes `along` is done in the same commit.
        """
        async with self._catalogue.naming:
            self._check_expected(name, expect)
            if self._aliases.get(name) == alias and along is None:
                return self.newest(name)
            return await self._become(name, alias, actor=actor, reason=reason, rollout=rollout, along=along)

    def heeds(self, name: str, alias: Alias) -> bool:
        """Whether `configure` would let `name` stand for this, or leaves it as it is."""
        held = self._held.get(name)
        return held is None or (held.standing.configured != _hash(alias) and held.standing.change.alias != alias)

    async def configure(self, name: str, alias: Alias | None) -> None:
        """Let `name` stand for what the configuration says, unless that is what it said the last time.

        So what was changed, or removed, by other means stays as it is until the configuration says something new.
        None: it says nothing any more, and what it had said anything of goes.
        """
        if alias is None:
            await self._deconfigure(name)
            return
        check_alias(name, alias)
        said = _hash(alias)
        async with self._catalogue.naming:
            if self.heeds(name, alias):
                await self._become(name, alias, actor="config", reason=CONFIGURED, configured=said)
            elif self._held[name].standing.configured != said:
                await self._write(name, replace(self._held[name].standing, configured=said))

    async def _deconfigure(self, name: str) -> None:
        async with self._catalogue.naming:
            held = self._held.get(name)
            if held is None or not held.standing.configured:
                return
            if name in self._aliases:
                await self._become(name, None, actor="config", reason=CONFIGURED, configured="")
            else:
                await self._write(name, replace(held.standing, configured=""))

    async def rollback(self, name: str, *, actor: str, to: int | None = None) -> AliasChange:
        """Let it be what it was before its newest change, or what change number `to` made it; one more change.

        All that one rollout made of it count as one. One that was removed comes back. NotFound when it never was or
        has no such change, Conflict when it was nothing then; as `set` when it names what is gone since.
        """
        async with self._catalogue.naming:
            number, alias = await self.former(name, to=to)
            return await self._become(name, alias, actor=actor, reason=f"Rollback to {number}")

    async def former(self, name: str, *, to: int | None = None) -> tuple[int, Alias]:
        """What `rollback` would let it be, and the number of the change that made it that; errors as there."""
        newest = self.newest(name)
        number = newest.number - 1 if to is None else to
        found = await self._changes.find(_key(name, number))
        while found is not None and to is None and newest.rollout and found[0].rollout == newest.rollout:
            number -= 1
            found = await self._changes.find(_key(name, number))
        if found is None and to is not None:
            raise NotFound(f"alias {name} has no change {to}; `moc aliases history {name}` shows those it has")
        if found is None or found[0].alias is None:
            raise Conflict(f"{name} was no alias then; `moc aliases history {name}` shows what it was")
        return number, found[0].alias

    async def remove(self, name: str, *, actor: str, reason: str) -> None:
        """Let the name stand for nothing; its history stays. NotFound when there is no such alias."""
        async with self._catalogue.naming:
            self.get(name)
            await self._become(name, None, actor=actor, reason=reason)

    # for the catalogue

    def check_free(self, name: str) -> None:
        """See `models.catalogue.NameUser`."""
        if name in self._aliases:
            raise Conflict(f"{name} is an alias, and no model can have its name; choose another, or remove the alias")

    def check_unused(self, name: str, going: Collection[int], *, last: bool) -> None:
        """See `models.catalogue.NameUser`."""
        for alias_name, alias in self._aliases.items():
            for reference in alias.references:
                model, version = parse_reference(reference)
                if model == name and (last if version is None else version in going):
                    raise Conflict(
                        f"alias {alias_name} names {reference}; set it to something else first, or remove it"
                    )

    # inside

    def _check_expected(self, name: str, expect: int | None) -> None:
        newest = self.newest(name).number if name in self._aliases else 0
        if expect is not None and expect != newest:
            found = f"is at change {newest}, not {expect}" if newest else "is gone"
            message = f"alias {name} exists already" if not expect else f"alias {name} {found}"
            raise Conflict(f"{message}; look at it again and retry", details={"expected": expect, "found": newest})

    def _check_claim(self, name: str, rollout: str) -> None:
        claimed = self._claims.get(name, rollout)
        if claimed != rollout:
            raise Conflict(
                f"rollout {claimed} is changing alias {name}; wait for its end, or `moc rollout promote` or `abort` it"
            )

    async def _become(
        self,
        name: str,
        alias: Alias | None,
        *,
        actor: str,
        reason: str,
        configured: str | None = None,
        rollout: str = "",
        along: Along | None = None,
    ) -> AliasChange:
        self._check_claim(name, rollout)
        if alias is not None:
            self.check(name, alias)
        before = self._held.get(name)
        change = AliasChange(
            number=1 if before is None else before.standing.change.number + 1,
            at=self._clock.wall(),
            actor=actor,
            reason=reason,
            alias=alias,
            rollout=rollout,
        )
        if configured is None:
            configured = "" if before is None else before.standing.configured
        event = Event(
            kind="alias.removed" if alias is None else "alias.set",
            subject=name,
            reason=reason,
            actor=actor,
            data={"number": change.number, **({} if alias is None else asdict(alias))},
        )
        record = self._changes.put(_key(name, change.number), change, expect=ABSENT)
        standing = Standing(change=change, configured=configured)
        await self._write(name, standing, [record], [event], along)
        return change

    async def _write(
        self,
        name: str,
        standing: Standing,
        ops: Sequence[Op] = (),
        events: Sequence[Event] = (),
        along: Along | None = None,
    ) -> None:
        """Make a change durable and act on it at once: both or neither, though the caller is cancelled."""
        held = self._held.get(name)
        write = self._standings.put(name, standing, expect=ABSENT if held is None else held.revision)
        along = along or Along()

        async def commit() -> None:
            revision = await self._store.commit([self._seat.fence(), write, *ops, *along.ops], [*events, *along.events])
            self._take(name, _Held(standing, revision))
            along.done(revision)

        await to_the_end(commit())

    def _take(self, name: str, held: _Held) -> None:
        alias = held.standing.change.alias
        self._held[name] = held
        if alias is None:
            self._aliases.pop(name, None)
        else:
            self._aliases[name] = alias
        for callback in self._callbacks:
            callback(name, alias)


def _hash(alias: Alias) -> str:
    """What tells apart what the configuration says of aliases."""
    return hashlib.sha256(msgspec.json.encode(alias, order="deterministic")).hexdigest()


def _key(name: str, number: int) -> str:
    return f"{name}/{number:09d}"
