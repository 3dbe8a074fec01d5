"""The configuration in force, for keys that may see and change everything."""

from moc.client import calls
from moc.client.connection import AsyncConnection, Connection
from moc.client.views import ConfigurationView, DifferenceView, RevisionPage, RevisionView


class AsyncConfig:
    """The configuration of the coordinator."""

    def __init__(self, line: AsyncConnection) -> None:
        self._line = line

    async def show(self) -> ConfigurationView:
        """What is in force, without secrets."""
        return await self._line.send(calls.show_config())

    async def diff(self, text: str, *, name: str = "moc.yaml") -> DifferenceView:
        """What applying `text` would change; InvalidRequest tells what is wrong in which line of `name`."""
        return await self._line.send(calls.diff_config(text, name))

    async def apply(self, text: str, *, name: str = "moc.yaml") -> RevisionView:
        """Put `text` in force as one revision, or change nothing; Conflict when a key would need a restart."""
        return await self._line.send(calls.apply_config(text, name))

    async def history(self, *, after: int = 0, limit: int = 100) -> RevisionPage:
        """Revisions behind the one numbered `after`, oldest first."""
        return await self._line.send(calls.list_config_history(after, limit))

    async def rollback(self, revision: int) -> RevisionView:
        """Put an earlier revision's text in force again, as one more revision."""
        return await self._line.send(calls.rollback_config(revision))


class Config:
    """The configuration of the coordinator."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def show(self) -> ConfigurationView:
        """What is in force, without secrets."""
        return self._line.send(calls.show_config())

    def diff(self, text: str, *, name: str = "moc.yaml") -> DifferenceView:
        """What applying `text` would change; InvalidRequest tells what is wrong in which line of `name`."""
        return self._line.send(calls.diff_config(text, name))

    def apply(self, text: str, *, name: str = "moc.yaml") -> RevisionView:
        """Put `text` in force as one revision, or change nothing; Conflict when a key would need a restart."""
        return self._line.send(calls.apply_config(text, name))

    def history(self, *, after: int = 0, limit: int = 100) -> RevisionPage:
        """Revisions behind the one numbered `after`, oldest first."""
        return self._line.send(calls.list_config_history(after, limit))

    def rollback(self, revision: int) -> RevisionView:
        """Put an earlier revision's text in force again, as one more revision."""
        return self._line.send(calls.rollback_config(revision))
