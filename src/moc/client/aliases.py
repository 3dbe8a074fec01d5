"""Aliases: names that stand for weighted versions of models."""

from collections.abc import Mapping
from typing import Any

from moc.client import calls
from moc.client.connection import AsyncConnection, Connection
from moc.client.views import AliasHistory, AliasView, Page


class AsyncAliases:
    """Names that stand for models; they are used wherever a model's name is."""

    def __init__(self, line: AsyncConnection) -> None:
        self._line = line

    async def list(self, *, after: str | None = None, limit: int = 100) -> Page[AliasView]:
        """The aliases there are, by name."""
        return await self._line.send(calls.list_aliases(after, limit))

    async def show(self, name: str) -> AliasView:
        """One alias, and how the models it names are doing; NotFound when there is none."""
        return await self._line.send(calls.show_alias(name))

    async def set(self, name: str, versions: Mapping[str, float], **alias: Any) -> AliasView:
        """Let `name` stand for `versions` by their weights from the next request on, whatever it was before.

        `alias` has the keys of an alias in `moc.yaml` (`fallback`, `policy`, `sticky`, `shadow`, `hedge`), a `reason`
        for its history, and `expect`: the number of its newest change (0 = it must not exist), or Conflict. What is to
        get requests is loaded before, if what gets them now is, unless `wait` is False.
        """
        return await self._line.send(calls.set_alias(name, {"versions": {**versions}, **alias}))

    async def change(self, name: str, **alias: Any) -> AliasView:
        """Like `set`, with what is not said as it is; NotFound when there is no such alias."""
        return await self._line.send(calls.change_alias(name, alias))

    async def rollback(self, name: str, *, to: int | None = None) -> AliasView:
        """Let it be what it was before its newest change, or what change number `to` made it."""
        return await self._line.send(calls.rollback_alias(name, to))

    async def history(self, name: str, *, after: int = 0, limit: int = 100) -> AliasHistory:
        """Its changes, oldest first; those of an alias that was removed, too."""
        return await self._line.send(calls.list_alias_history(name, after, limit))

    async def remove(self, name: str) -> None:
        """Let the name stand for nothing; `rollback` brings it back."""
        await self._line.send(calls.remove_alias(name))


class Aliases:
    """Names that stand for models; they are used wherever a model's name is."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def list(self, *, after: str | None = None, limit: int = 100) -> Page[AliasView]:
        """The aliases there are, by name."""
        return self._line.send(calls.list_aliases(after, limit))

    def show(self, name: str) -> AliasView:
        """One alias, and how the models it names are doing; NotFound when there is none."""
        return self._line.send(calls.show_alias(name))

    def set(self, name: str, versions: Mapping[str, float], **alias: Any) -> AliasView:
        """Let `name` stand for `versions` by their weights from the next request on, whatever it was before.

        `alias` has the keys of an alias in `moc.yaml` (`fallback`, `policy`, `sticky`, `shadow`, `hedge`), a `reason`
        for its history, and `expect`: the number of its newest change (0 = it must not exist), or Conflict. What is to
        get requests is loaded before, if what gets them now is, unless `wait` is False.
        """
        return self._line.send(calls.set_alias(name, {"versions": {**versions}, **alias}))

    def change(self, name: str, **alias: Any) -> AliasView:
        """Like `set`, with what is not said as it is; NotFound when there is no such alias."""
        return self._line.send(calls.change_alias(name, alias))

    def rollback(self, name: str, *, to: int | None = None) -> AliasView:
        """Let it be what it was before its newest change, or what change number `to` made it."""
        return self._line.send(calls.rollback_alias(name, to))

    def history(self, name: str, *, after: int = 0, limit: int = 100) -> AliasHistory:
        """Its changes, oldest first; those of an alias that was removed, too."""
        return self._line.send(calls.list_alias_history(name, after, limit))

    def remove(self, name: str) -> None:
        """Let the name stand for nothing; `rollback` brings it back."""
        self._line.send(calls.remove_alias(name))
