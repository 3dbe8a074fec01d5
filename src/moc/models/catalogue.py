"""The one writer of what models there are and how they are doing.

Records: `models/<name>/<version>` (ModelVersion), `model_status/<name>/<version>` (ModelStatus) and
`model_names/<name>` (the last version number ever given, so that a number is never used twice).
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from moc.kernel.clock import Clock
from moc.kernel.errors import Conflict, InvalidRequest, NotFound
from moc.kernel.events import Event
from moc.kernel.records import ABSENT, Op, Store, Table
from moc.kernel.tasks import to_the_end
from moc.models.lineage import Lineage
from moc.models.model import (
    MOVES,
    NAME,
    Artifact,
    ModelSpec,
    ModelStatus,
    ModelVersion,
    State,
    digest_of,
    parse_reference,
)
from moc.models.ports import HostSeat


@dataclass(slots=True)
class Entry:
    """A version with its status, and the revisions they were read at."""

    version: ModelVersion
    status: ModelStatus
    version_revision: int
    status_revision: int


class NameUser(Protocol):
    """Whoever else gives names, or refers to models by theirs. Asked while `Catalogue.naming` is held."""

    def check_free(self, name: str) -> None:
        """Conflict when no model may be called that."""
        ...

    def check_unused(self, name: str, going: Collection[int], *, last: bool) -> None:
        """Conflict when some of these versions of a model are in use, or its bare name is and they are its `last`."""
        ...


@dataclass(frozen=True, slots=True)
class _Name:
    last_version: int = 0


@dataclass(slots=True)
class _Versions:
    name_revision: int = ABSENT
    last_version: int = 0
    entries: dict[int, Entry] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trained:
    """A version that was trained here: the files it is served from, its adapters aside, and where it came from."""

    artifact: Artifact
    lineage: Lineage


def _key(name: str, version: int) -> str:
    return f"{name}/{version:09d}"


def _told(version: ModelVersion) -> dict[str, Any]:
    """What its first event says of a version."""
    lineage = version.lineage
    origin = {} if lineage is None else {"base": lineage.base, "job": lineage.job}
    return {"source": version.spec.source, **origin}


def _same(versions: _Versions, spec: ModelSpec, anew: bool) -> Entry | None:
    newest = versions.entries.get(max(versions.entries, default=0))
    return newest if newest is not None and newest.version.spec == spec and not anew else None


def _made_by(versions: _Versions, job: str) -> Entry | None:
    lineages = ((entry, entry.version.lineage) for entry in versions.entries.values())
    return next((entry for entry, lineage in lineages if lineage is not None and lineage.job == job), None)


class Catalogue:
    """Versions and their statuses: read from memory, changed in the store first.

    `naming` is held while names are given or taken away: of models here, of aliases by who keeps those.
    """

    def __init__(self, *, store: Store, seat: HostSeat, clock: Clock) -> None:
        self._store = store
        self._seat = seat
        self._clock = clock
        self._names: Table[_Name] = Table(store, "model_names/", _Name)
        self._versions: Table[ModelVersion] = Table(store, "models/", ModelVersion)
        self._statuses: Table[ModelStatus] = Table(store, "model_status/", ModelStatus)
        self._cache: dict[str, _Versions] = {}
        self._name_users: list[NameUser] = []
        self.naming = asyncio.Lock()

    def heed(self, user: NameUser) -> None:
        """Ask `user` before a name is given or taken away."""
        self._name_users.append(user)

    async def start(self) -> None:
        """Read everything from the store."""
        self._cache = {}
        for name, noun, revision in await self._names.list():
            self._cache[name] = _Versions(revision, noun.last_version)
        statuses = {key: (status, revision) for key, status, revision in await self._statuses.list()}
        for key, version, revision in await self._versions.list():
            status, status_revision = statuses[key]
            versions = self._cache[version.name]
            versions.entries[version.version] = Entry(version, status, revision, status_revision)

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        return

    def names(self) -> list[str]:
        """Every model that has a version, in order."""
        return sorted(name for name, versions in self._cache.items() if versions.entries)

    def versions(self, name: str) -> list[Entry]:
        """Every version of a model, oldest first; empty when there is none."""
        versions = self._cache.get(name)
        return [] if versions is None else [versions.entries[number] for number in sorted(versions.entries)]

    def entry(self, reference: str) -> Entry:
        """The version `name@version` names, or the newest one of `name`; NotFound when there is none."""
        name, number = parse_reference(reference)
        versions = self._cache.get(name)
        if versions is None or not versions.entries:
            raise NotFound(f"there is no model {name!r}; `moc models list` shows those there are")
        if number is None:
            return versions.entries[max(versions.entries)]
        if number not in versions.entries:
            there = ", ".join(str(n) for n in sorted(versions.entries))
            raise NotFound(f"model {name!r} has no version {number}; it has {there}")
        return versions.entries[number]

    def check_name(self, name: str) -> None:
        """InvalidRequest when no model can be called that, Conflict when none may now."""
        if NAME.fullmatch(name) is None:
            raise InvalidRequest(
                f"not a model name: {name[:150]!r}; use up to 128 letters, digits, '.', '_' and '-', "
                "a letter or digit first"
            )
        for user in self._name_users:
            user.check_free(name)

    async def add(
        self, name: str, spec: ModelSpec, *, actor: str, anew: bool = False, trained: Trained | None = None
    ) -> Entry:
        """Register `spec` as the next version of `name`; unless `anew`, the newest again if its spec is the same.

        One that was `trained` here has its files from the first. Of one name a job makes one version only.
        """
        async with self.naming:
            self.check_name(name)
            versions = self._cache.get(name) or _Versions()
            there = _same(versions, spec, anew) if trained is None else _made_by(versions, trained.lineage.job)
            return there or await self._add(name, spec, versions, actor=actor, trained=trained)

    async def _add(
        self, name: str, spec: ModelSpec, versions: _Versions, *, actor: str, trained: Trained | None
    ) -> Entry:
        number = versions.last_version + 1
        now = self._clock.wall()
        version = ModelVersion(name=name, version=number, spec=spec, created_at=now)
        if trained is not None:
            artifact = trained.artifact
            version = replace(version, artifact=artifact, digest=digest_of(spec, artifact), lineage=trained.lineage)
        status = ModelStatus(state=State.REGISTERED, changed_at=now)
        key = _key(name, number)

        def added(revision: int) -> None:
            versions.name_revision, versions.last_version = revision, number
            versions.entries[number] = Entry(version, status, revision, revision)
            self._cache[name] = versions

        await self._commit(
            added,
            self._names.put(name, _Name(number), expect=versions.name_revision),
            self._versions.put(key, version, expect=ABSENT),
            self._statuses.put(key, status, expect=ABSENT),
            event=Event(kind="model.registered", subject=version.reference, actor=actor, data=_told(version)),
        )
        return versions.entries[number]

    async def pulled(self, entry: Entry, artifact: Artifact) -> None:
        """Give a version its artifact, and with it its digest; Conflict if it has a different one."""
        digest = digest_of(entry.version.spec, artifact)
        if entry.version.digest not in ("", digest):
            raise Conflict(
                f"{entry.version.reference} was registered as {entry.version.digest} and its files are now {digest}; "
                "register the changed files as a new version with `moc models add`"
            )
        version = replace(entry.version, artifact=artifact, digest=digest)
        if version == entry.version:
            return

        def pulled(revision: int) -> None:
            entry.version, entry.version_revision = version, revision

        await self._commit(
            pulled,
            self._versions.put(_key(version.name, version.version), version, expect=entry.version_revision),
            event=Event(
                kind="model.pulled",
                subject=version.reference,
                data={"digest": digest, "size_bytes": artifact.size_bytes},
            ),
        )

    async def move(
        self, entry: Entry, state: State, *, reason: str, actor: str = "system", message: str = "", **changes: Any
    ) -> None:
        """Move a version to `state` (a move of `MOVES`, Conflict otherwise), with its event.

        The event is `model.<state>`, and `model.unloaded` for a version that is merely registered again.
        """
        if state not in MOVES[entry.status.state]:
            raise Conflict(
                f"{entry.version.reference} is {entry.status.state} and cannot become {state}; try again shortly"
            )
        status = replace(
            entry.status, state=state, changed_at=self._clock.wall(), reason=reason, message=message, **changes
        )

        def moved(revision: int) -> None:
            entry.status, entry.status_revision = status, revision

        await self._commit(
            moved,
            self._statuses.put(_key(entry.version.name, entry.version.version), status, expect=entry.status_revision),
            event=Event(
                kind="model.unloaded" if state is State.REGISTERED else f"model.{state}",
                subject=entry.version.reference,
                reason=reason,
                actor=actor,
                data={"message": message} if message else {},
            ),
        )

    def unused(self, reference: str) -> list[Entry]:
        """The version a reference names, or all of a bare name; NotFound, Conflict when something refers to one."""
        name, number = parse_reference(reference)
        entry = self.entry(reference)
        entries = [entry] if number is not None else self.versions(name)
        self._check_unused(name, entries)
        return entries

    def _check_unused(self, name: str, entries: Sequence[Entry]) -> None:
        going = {entry.version.version for entry in entries}
        for user in self._name_users:
            user.check_unused(name, going, last=len(going) == len(self.versions(name)))

    async def remove(self, entry: Entry, *, actor: str) -> None:
        """Forget a version; its number is not used again. Conflict when something refers to it."""
        version = entry.version
        key = _key(version.name, version.version)

        def removed(_: int) -> None:
            del self._cache[version.name].entries[version.version]

        async with self.naming:
            self._check_unused(version.name, [entry])
            await self._commit(
                removed,
                self._versions.delete(key, expect=entry.version_revision),
                self._statuses.delete(key, expect=entry.status_revision),
                event=Event(kind="model.removed", subject=version.reference, actor=actor),
            )

    def paths(self) -> set[str]:
        """The files and folders that versions are made of."""
        return {
            path
            for versions in self._cache.values()
            for entry in versions.entries.values()
            for path in entry.version.paths
        }

    async def note(self, event: Event) -> None:
        """Record an event that changes nothing."""
        await self._store.commit([], [event])

    async def _commit(self, done: Callable[[int], None], *ops: Op, event: Event) -> None:
        """Make a change durable and act on it, `done(revision)`: both or neither, though the caller is cancelled."""

        async def commit() -> None:
            done(await self._store.commit([self._seat.fence(), *ops], [event]))

        await to_the_end(commit())
