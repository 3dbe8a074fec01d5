"""What a caller may ask about the configuration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from moc.security.identity import Identity
from moc.security.policy import Operation
from moc.service.guard import Journal, audited, require
from moc.service.views import rfc3339

NAME_MAX = 200
"""How long the name of a configuration's text may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One key whose value differs, without secrets; None stands for a value that is not there.

    Without `live` it is for the next start.
    """

    key: str
    before: Any
    after: Any
    live: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A configuration that was put in force: its text, who did it and why, what it changed and how that ended.

    `outcome` is `applying`, then `applied`, `failed` (and undone) or `interrupted` (by the end of the coordinator, and
    undone at the next start). `added` are the models that there were none of before.
    """

    number: int
    name: str
    text: str
    sha256: str
    at: float
    actor: str
    reason: str
    changes: tuple[Change, ...]
    added: tuple[str, ...] = ()
    outcome: str = "applying"
    problem: str = ""


class Configuration(Protocol):
    """The configuration in force, and the one way to change it."""

    @property
    def revision(self) -> Revision:
        """The one in force."""
        ...

    @property
    def file(self) -> str:
        """The file that is read at the start and on SIGHUP, '' when there is none."""
        ...

    def settings(self) -> dict[str, Any]:
        """All that is in force, by section, without secrets."""
        ...

    async def diff(self, text: str, name: str) -> list[Change]:
        """What applying it would change; InvalidRequest, with `name` and the line, when it is not right."""
        ...

    async def apply(self, text: str, name: str, *, actor: str) -> Revision:
        """Put it in force, all of it or nothing; see `service.configuration.ConfigurationService.apply`."""
        ...

    async def rollback(self, number: int, *, actor: str) -> Revision:
        """Put the text of an earlier revision in force."""
        ...

    async def history(self, *, after: int, limit: int) -> list[Revision]:
        """Revisions with numbers greater than `after`, oldest first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionView:
    """A configuration that was put in force, or failed to be: by whom, why, what it changed."""

    number: int
    name: str
    sha256: str
    at: str
    actor: str
    reason: str
    changes: list[Change]
    outcome: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationView:
    """What is in force, without secrets: `settings` by section, the environment and the command line included."""

    revision: int
    at: str
    actor: str
    reason: str
    file: str
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceView:
    """What applying a configuration would change; it is refused while `restart` names any key."""

    changes: list[Change]
    restart: list[str]


class ConfigurationService:
    """The configuration, for those that may see and change everything."""

    def __init__(self, *, configuration: Configuration, journal: Journal) -> None:
        self.journal = journal
        self._configuration = configuration

    async def show(self, identity: Identity) -> ConfigurationView:
        """What is in force."""
        require(identity, Operation.READ_CONFIG)
        revision = self._configuration.revision
        return ConfigurationView(
            revision=revision.number,
            at=rfc3339(revision.at),
            actor=revision.actor,
            reason=revision.reason,
            file=self._configuration.file,
            settings=self._configuration.settings(),
        )

    async def diff(self, identity: Identity, text: str, name: str) -> DifferenceView:
        """What applying `text` would change; InvalidRequest, with `name` and the line, when it is not right."""
        require(identity, Operation.READ_CONFIG)
        changes = await self._configuration.diff(text, name)
        return DifferenceView(changes=changes, restart=[change.key for change in changes if not change.live])

    @audited("config.apply", subject=lambda made: str(made.number))
    async def apply(self, identity: Identity, text: str, name: str) -> RevisionView:
        """Put `text` in force as one revision, or change nothing.

        InvalidRequest, with `name` and the line, when it is not right; Conflict when a key would need a restart or a
        model that goes is still named by an alias. It goes on when its caller goes.
        """
        require(identity, Operation.CHANGE_CONFIG)
        return _view(await self._configuration.apply(text, name, actor=identity.key_id))

    @audited("config.rollback", subject=lambda made: str(made.number))
    async def rollback(self, identity: Identity, number: int) -> RevisionView:
        """Put the text of revision `number` in force again, as one more revision; errors as for `apply`, NotFound."""
        require(identity, Operation.CHANGE_CONFIG)
        return _view(await self._configuration.rollback(number, actor=identity.key_id))

    async def history(self, identity: Identity, *, after: int, limit: int) -> Sequence[RevisionView]:
        """Revisions with numbers greater than `after`, oldest first."""
        require(identity, Operation.READ_CONFIG)
        return [_view(revision) for revision in await self._configuration.history(after=after, limit=limit)]


def _view(revision: Revision) -> RevisionView:
    return RevisionView(
        number=revision.number,
        name=revision.name,
        sha256=revision.sha256,
        at=rfc3339(revision.at),
        actor=revision.actor,
        reason=revision.reason,
        changes=[*revision.changes],
        outcome=revision.outcome,
        problem=revision.problem,
    )
