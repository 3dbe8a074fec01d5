"""The models and aliases that a configuration names: brought there, put back when that fails, taken away."""

from collections.abc import Iterable
from contextlib import AsyncExitStack

import structlog

from moc.config.config import Config
from moc.kernel.errors import Conflict, InvalidRequest, MocError, NotFound
from moc.models.alias import Alias
from moc.models.aliases import AliasBook
from moc.models.catalogue import Catalogue
from moc.models.manager import ModelManager
from moc.models.model import ModelSpec, parse_reference
from moc.models.ports import Sources

log = structlog.get_logger(__name__)

ACTOR = "config"


class Inventory:
    """Makes what is registered what a configuration says, where it says something new.

    What was changed by other means since stays as it is until its entry changes.
    """

    def __init__(self, *, catalogue: Catalogue, manager: ModelManager, aliases: AliasBook, sources: Sources) -> None:
        self._catalogue = catalogue
        self._manager = manager
        self._aliases = aliases
        self._sources = sources

    def check(self, config: Config, before: Config | None = None) -> None:
        """InvalidRequest, with the line, when a source can never be fetched or an alias names what is no model.

        With `before` it is not the operator's word: what is new since may only name what the API may.
        """
        for name, spec in config.wanted.items():
            try:
                self._sources.check(spec, trusted=before is None or before.wanted.get(name) == spec)
            except InvalidRequest as error:
                raise InvalidRequest(f"{config.document.where(('models', name))}: {error.message}") from None
        models = {*self._catalogue.names(), *config.wanted}
        for name, alias in config.aliases.items():
            where = config.document.where(("aliases", name))
            if name in config.wanted:
                raise InvalidRequest(f"{where}: there is a model of that name; choose another")
            for reference in alias.references if self._aliases.heeds(name, alias) else ():
                if parse_reference(reference)[0] not in models:
                    raise InvalidRequest(f"{where}: names {reference}, and there is no such model")

    def check_unused(self, going: Iterable[str], before: Config, after: Config) -> None:
        """Conflict when an alias names one of the models that are going, and will do so afterwards."""
        doomed = set(going)
        for name, alias in self._future(before, after).items():
            for reference in alias.references:
                if parse_reference(reference)[0] in doomed:
                    raise Conflict(
                        f"alias {name} names {reference}, which is no longer in the configuration; "
                        "set the alias to something else first, or remove it"
                    )

    def _future(self, before: Config, after: Config) -> dict[str, Alias]:
        """The aliases there will be."""
        stay = {name: self._aliases.find(name) for name in self._aliases.names() if name not in before.aliases}
        said = {
            name: self._aliases.find(name) if before.aliases.get(name) == alias else alias
            for name, alias in after.aliases.items()
        }
        return {name: alias for name, alias in {**stay, **said}.items() if alias is not None}

    def absent(self, config: Config) -> tuple[str, ...]:
        """The models it names of which there is no version."""
        return tuple(name for name in config.wanted if not self._catalogue.versions(name))

    async def bring(self, before: Config | None, after: Config, undo: AsyncExitStack) -> None:
        """Register and set what `after` names; `undo` puts back what was there. `before` None: it is all new."""
        old_aliases = {} if before is None else before.aliases
        for name in sorted(old_aliases.keys() - after.aliases.keys()):
            await self._say(name, None, old_aliases, undo)
        for name, spec in after.wanted.items():
            if before is None or before.wanted.get(name) != spec:
                await self._add(name, spec, undo)
            elif not self._has_other(name, spec):
                await self._bring_back(name, spec, undo)
        for name, alias in after.aliases.items():
            await self._say(name, alias, old_aliases, undo)

    def _has_other(self, name: str, spec: ModelSpec) -> bool:
        """Whether the newest version is not what this spec says."""
        versions = self._catalogue.versions(name)
        return bool(versions) and versions[-1].version.spec != spec

    async def _add(self, name: str, spec: ModelSpec, undo: AsyncExitStack) -> None:
        there = {entry.version.version for entry in self._catalogue.versions(name)}
        entry = await self._manager.add(name, spec, actor=ACTOR)
        if entry.version.version not in there:
            undo.push_async_callback(self._manager.remove, entry.version.reference, actor=ACTOR)

    async def _bring_back(self, name: str, spec: ModelSpec, undo: AsyncExitStack) -> None:
        """Register what is missing, unless by other means its name was given away."""
        try:
            await self._add(name, spec, undo)
        except Conflict as error:
            log.warning("a model of the configuration cannot be brought back", model=name, problem=error.message)

    async def _say(self, name: str, alias: Alias | None, old: dict[str, Alias], undo: AsyncExitStack) -> None:
        stood = self._aliases.find(name)
        undo.push_async_callback(self._put_back, name, stood, old.get(name))
        await self._aliases.configure(name, alias)

    async def _put_back(self, name: str, stood: Alias | None, said: Alias | None) -> None:
        """Let an alias be what it was, and the configuration have said of it what it said."""
        await self._aliases.configure(name, said)
        if stood is not None:
            await self._aliases.set(name, stood, actor=ACTOR, reason="Undone")
        elif self._aliases.find(name) is not None:
            await self._aliases.remove(name, actor=ACTOR, reason="Undone")

    async def unsay(self, names: Iterable[str]) -> None:
        """Let the configuration say nothing of these aliases any more: those it had made go."""
        for name in names:
            await self._aliases.configure(name, None)

    async def withdraw(self, names: Iterable[str]) -> tuple[str, ...]:
        """Unload and forget these models, once their requests have ended; those that could not be are returned."""
        left = []
        for name in names:
            try:
                await self._manager.remove(name, actor=ACTOR)
            except NotFound:
                continue
            except MocError as error:
                log.warning("a model that left the configuration is still there", model=name, problem=error.message)
                left.append(name)
        return tuple(left)

    def preload(self, before: Config, after: Config) -> None:
        """Begin to load what is to be loaded at every start, where that is new."""
        for name, spec in after.wanted.items():
            if spec.preload and before.wanted.get(name) != spec:
                self._manager.preload(name)
