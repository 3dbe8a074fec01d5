"""Rollouts: aliases that are moved to another version step by step. They go by their id, or by the alias."""

from typing import Any

from moc.client import calls
from moc.client.connection import AsyncConnection, Connection
from moc.client.views import Page, RolloutView


class AsyncRollouts:
    """Aliases that are moved step by step."""

    def __init__(self, line: AsyncConnection) -> None:
        self._line = line

    async def list(self, *, after: str | None = None, limit: int = 100) -> Page[RolloutView]:
        """The rollouts there are and were, oldest first."""
        return await self._line.send(calls.list_rollouts(after, limit))

    async def show(self, name: str) -> RolloutView:
        """One rollout, or the newest of an alias; NotFound when there is none."""
        return await self._line.send(calls.show_rollout(name))

    async def start(self, alias: str, to: str, **terms: Any) -> RolloutView:
        """Begin to move an alias to a version; returns before that is loaded.

        `terms` are `steps` (percentages), `hold_s`, `max_error_rate`, `max_p95_ms`, `max_p95_ratio`, `min_requests`.
        """
        return await self._line.send(calls.start_rollout({"alias": alias, "to": to, **terms}))

    async def pause(self, name: str) -> RolloutView:
        """Stay at this step; its guards go on watching."""
        return await self._line.send(calls.change_rollout(name, "paused"))

    async def resume(self, name: str) -> RolloutView:
        """Go on."""
        return await self._line.send(calls.change_rollout(name, "progressing"))

    async def promote(self, name: str, *, force: bool = False) -> RolloutView:
        """Give the new version everything now; Conflict before there is a verdict, unless `force`."""
        return await self._line.send(calls.change_rollout(name, "promoted", force=force))

    async def abort(self, name: str) -> RolloutView:
        """Let the alias be what it was before."""
        return await self._line.send(calls.change_rollout(name, "aborted"))


class Rollouts:
    """Aliases that are moved step by step."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def list(self, *, after: str | None = None, limit: int = 100) -> Page[RolloutView]:
        """The rollouts there are and were, oldest first."""
        return self._line.send(calls.list_rollouts(after, limit))

    def show(self, name: str) -> RolloutView:
        """One rollout, or the newest of an alias; NotFound when there is none."""
        return self._line.send(calls.show_rollout(name))

    def start(self, alias: str, to: str, **terms: Any) -> RolloutView:
        """Begin to move an alias to a version; returns before that is loaded.

        `terms` are `steps` (percentages), `hold_s`, `max_error_rate`, `max_p95_ms`, `max_p95_ratio`, `min_requests`.
        """
        return self._line.send(calls.start_rollout({"alias": alias, "to": to, **terms}))

    def pause(self, name: str) -> RolloutView:
        """Stay at this step; its guards go on watching."""
        return self._line.send(calls.change_rollout(name, "paused"))

    def resume(self, name: str) -> RolloutView:
        """Go on."""
        return self._line.send(calls.change_rollout(name, "progressing"))

    def promote(self, name: str, *, force: bool = False) -> RolloutView:
        """Give the new version everything now; Conflict before there is a verdict, unless `force`."""
        return self._line.send(calls.change_rollout(name, "promoted", force=force))

    def abort(self, name: str) -> RolloutView:
        """Let the alias be what it was before."""
        return self._line.send(calls.change_rollout(name, "aborted"))
