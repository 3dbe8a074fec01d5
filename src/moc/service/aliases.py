"""What a caller may ask about aliases."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from moc.kernel.errors import InvalidRequest
from moc.models.alias import POLICIES, STICKY, Alias, check_alias
from moc.models.aliases import AliasBook
from moc.models.manager import ModelManager
from moc.models.ports import Observations
from moc.resilience.deadline import Deadline
from moc.security.identity import Identity
from moc.security.policy import Operation
from moc.service.guard import Journal, audited, check, require, seen, visible
from moc.service.views import Page, rfc3339

_FIELDS = Alias.__dataclass_fields__.keys()
REASON_MAX = 200
REQUESTED = "Requested"


def alias_from(name: str, fields: Mapping[str, Any], *, where: str) -> Alias:
    """An Alias from what a person wrote.

    InvalidRequest names the field, what is wrong with it and where (`where`: a place in a file or a request).
    """
    for key in fields:
        if key not in _FIELDS:
            near = difflib.get_close_matches(key, _FIELDS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(_FIELDS)}"
            raise InvalidRequest(f"{where}: unknown key {key!r}{hint}")
    for key, known in (("policy", POLICIES), ("sticky", STICKY)):
        if fields.get(key, known[0]) not in known:
            choices = ", ".join(choice or "''" for choice in known)
            raise InvalidRequest(f"{where}: {key} is {str(fields[key])[:100]!r}; it is one of {choices}")
    try:
        alias = msgspec.convert(fields, Alias)
        check_alias(name, alias)
    except (msgspec.ValidationError, InvalidRequest) as error:
        raise InvalidRequest(f"{where}: {error}") from None
    return alias


class How(msgspec.Struct, frozen=True):
    """How an alias is to be changed.

    `reason` is for its history. Only if `expect` is the number of its newest change, when that is given. With `wait`
    not before what is to get requests is loaded, if what gets them now is.
    """

    reason: str = ""
    expect: int | None = None
    wait: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasChangeView:
    """A change of an alias: what it became, null if it was removed; who did that when and why."""

    number: int
    at: str
    actor: str
    reason: str
    alias: Alias | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetView:
    """A model that an alias names, and what its requests came to since the coordinator started, by whatever name.

    `part` is `version`, `fallback` or `shadow`, `share` which part of the alias's requests it is to get (0 to 1; the
    shadow gets copies), `model` what the reference stands for now. `error_rate` and `p95_ms` are null while there were
    no requests; errors of callers do not count.
    """

    reference: str
    part: str
    share: float
    model: str
    state: str
    requests: int
    error_rate: float | None
    p95_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasView:
    """An alias; `number` is that of its newest change, which was made by `changed_by` at `changed_at`."""

    name: str
    number: int
    versions: dict[str, float]
    fallback: tuple[str, ...]
    policy: str
    sticky: str
    shadow: dict[str, float]
    hedge: bool
    changed_at: str
    changed_by: str
    reason: str
    targets: list[TargetView]


class AliasesService:
    """Names that stand for models; every method authorises first."""

    def __init__(
        self, *, aliases: AliasBook, manager: ModelManager, observations: Observations, journal: Journal
    ) -> None:
        self.journal = journal
        self._aliases = aliases
        self._manager = manager
        self._observations = observations

    def is_alias(self, name: str) -> bool:
        """Whether a name is an alias, for whoever then asks for more."""
        return self._aliases.find(name) is not None

    def known(self, identity: Identity) -> list[AliasView]:
        """Every alias that a request for a list of models, counted already, may see."""
        may_see = seen(identity, Operation.READ_MODELS)
        return [self._view(name) for name in self._aliases.names() if may_see(name)]

    async def list(self, identity: Identity, *, after: str | None, limit: int) -> Page[AliasView]:
        """Aliases by name; `after` is the last name of the page before."""
        may_see = visible(identity, Operation.READ_MODELS)
        names = [name for name in self._aliases.names() if may_see(name) and (after is None or name > after)]
        return Page([self._view(name) for name in names[:limit]], names[limit - 1] if len(names) > limit else None)

    async def show(self, identity: Identity, name: str) -> AliasView:
        """One alias; NotFound when there is none."""
        require(identity, Operation.READ_MODELS, model=name)
        return self._view(name)

    async def history(self, identity: Identity, name: str, *, after: int, limit: int) -> Sequence[AliasChangeView]:
        """Its changes behind number `after`, oldest first, also once it is removed; NotFound when it never was."""
        require(identity, Operation.READ_MODELS, model=name)
        return [
            AliasChangeView(
                number=change.number,
                at=rfc3339(change.at),
                actor=change.actor,
                reason=change.reason,
                alias=change.alias,
            )
            for change in await self._aliases.history(name, after=after, limit=limit)
        ]

    @audited("aliases.set")
    async def set(self, identity: Identity, name: str, alias: Alias, how: How, deadline: Deadline) -> AliasView:
        """Let the name stand for something; see `models.aliases.AliasBook.set`. The key must be for all it names."""
        require(identity, Operation.CHANGE_MODELS, model=name)
        return await self._set(identity, name, alias, how, deadline)

    @audited("aliases.change")
    async def change(
        self, identity: Identity, name: str, changes: Mapping[str, Any], how: How, deadline: Deadline
    ) -> AliasView:
        """Like `set`, with whatever is not in `changes` as it is; NotFound when there is no such alias."""
        require(identity, Operation.CHANGE_MODELS, model=name)
        fields = {**asdict(self._aliases.get(name)), **changes}
        if how.expect is None:
            how = msgspec.structs.replace(how, expect=self._aliases.newest(name).number)
        return await self._set(identity, name, alias_from(name, fields, where=f"alias {name}"), how, deadline)

    @audited("aliases.rollback")
    async def rollback(self, identity: Identity, name: str, *, to: int | None) -> AliasView:
        """Let it be what it was; see `models.aliases.AliasBook.rollback`. The key must be for all it names then."""
        require(identity, Operation.CHANGE_MODELS, model=name)
        number, alias = await self._aliases.former(name, to=to)
        self._check_key(identity, alias)
        await self._aliases.rollback(name, actor=identity.key_id, to=number)
        return self._view(name)

    @audited("aliases.remove")
    async def remove(self, identity: Identity, name: str) -> None:
        """Let the name stand for nothing; NotFound when there is no such alias."""
        require(identity, Operation.CHANGE_MODELS, model=name)
        await self._aliases.remove(name, actor=identity.key_id, reason=REQUESTED)

    async def _set(self, identity: Identity, name: str, alias: Alias, how: How, deadline: Deadline) -> AliasView:
        self._check_key(identity, alias)
        if len(how.reason) > REASON_MAX:
            raise InvalidRequest(f"`reason` has {len(how.reason)} characters; {REASON_MAX} are enough")
        if how.wait:
            await self._prepare(name, alias, deadline, identity.key_id)
        await self._aliases.set(name, alias, actor=identity.key_id, reason=how.reason or REQUESTED, expect=how.expect)
        return self._view(name)

    def _check_key(self, identity: Identity, alias: Alias) -> None:
        for reference in alias.references:
            check(identity, Operation.CHANGE_MODELS, model=reference)

    async def _prepare(self, name: str, alias: Alias, deadline: Deadline, actor: str) -> None:
        """Load what is to get requests beside what gets them now, if that is loaded: so that none has to wait."""
        self._aliases.check(name, alias)
        now = self._aliases.find(name)
        serving = [] if now is None else [self._manager.find(each) for each in now.receiving]
        kept = [resident.reference for resident in serving if resident is not None]
        for reference in kept:
            self._manager.hold(reference)
        try:
            for reference in alias.receiving if kept else ():
                if self._manager.find(reference) is None:
                    await self._manager.load(reference, deadline, actor=actor)
        finally:
            for reference in kept:
                self._manager.unhold(reference)

    def _view(self, name: str) -> AliasView:
        alias, change = self._aliases.get(name), self._aliases.newest(name)
        shares = {reference: alias.share(reference) for reference in alias.versions}
        return AliasView(
            name=name,
            number=change.number,
            versions=alias.versions,
            fallback=alias.fallback,
            policy=alias.policy,
            sticky=alias.sticky,
            shadow=alias.shadow,
            hedge=alias.hedge,
            changed_at=rfc3339(change.at),
            changed_by=change.actor,
            reason=change.reason,
            targets=[
                *(self._target(reference, "version", share) for reference, share in shares.items()),
                *(self._target(reference, "fallback", 0.0) for reference in alias.fallback),
                *(self._target(reference, "shadow", percent / 100) for reference, percent in alias.shadow.items()),
            ],
        )

    def _target(self, reference: str, part: str, share: float) -> TargetView:
        entry = self._manager.serving(reference)
        sample = self._observations.snapshot(entry.version.reference)
        return TargetView(
            reference=reference,
            part=part,
            share=share,
            model=entry.version.reference,
            state=entry.status.state,
            requests=sample.count,
            error_rate=sample.failures / sample.count if sample.count else None,
            p95_ms=sample.quantile_s(0.95) * 1000 if sample.count else None,
        )
