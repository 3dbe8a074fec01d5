"""The keys that open the coordinator, and the audit of what was done with them, for keys that may."""

from collections.abc import Sequence
from typing import Any

from moc.client import calls
from moc.client.connection import AsyncConnection, Connection
from moc.client.views import AuditPage, KeyView, NewKeyView, Page, VerdictView


class AsyncKeys:
    """API keys."""

    def __init__(self, line: AsyncConnection) -> None:
        self._line = line

    async def list(self, *, after: str | None = None, limit: int = 100) -> Page[KeyView]:
        """The keys there are, by id; those that ended are told of for a while."""
        return await self._line.send(calls.list_keys(after, limit))

    async def show(self, key_id: str) -> KeyView:
        """One key; NotFound when there is none."""
        return await self._line.send(calls.show_key(key_id))

    async def create(self, role: str, *, name: str = "", models: Sequence[str] = (), **terms: Any) -> NewKeyView:
        """A new key; its `token` is told this once.

        `terms` are `expires_in_s`, `rate` such as `100/min`, `max_concurrency`, `weight`, and `curve_public`, a
        ZeroMQ CURVE public key in Z85.
        """
        return await self._line.send(calls.create_key({"role": role, "name": name, "models": [*models], **terms}))

    async def rotate(self, key_id: str, *, overlap_s: float = 0.0) -> NewKeyView:
        """Another `token` for a key, told this once; the one before is good for `overlap_s` more."""
        return await self._line.send(calls.rotate_key(key_id, overlap_s))

    async def revoke(self, key_id: str) -> KeyView:
        """Close a key at once and for good; doing so again changes nothing."""
        return await self._line.send(calls.revoke_key(key_id))


class Keys:
    """API keys."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def list(self, *, after: str | None = None, limit: int = 100) -> Page[KeyView]:
        """The keys there are, by id; those that ended are told of for a while."""
        return self._line.send(calls.list_keys(after, limit))

    def show(self, key_id: str) -> KeyView:
        """One key; NotFound when there is none."""
        return self._line.send(calls.show_key(key_id))

    def create(self, role: str, *, name: str = "", models: Sequence[str] = (), **terms: Any) -> NewKeyView:
        """A new key; its `token` is told this once.

        `terms` are `expires_in_s`, `rate` such as `100/min`, `max_concurrency`, `weight`, and `curve_public`, a
        ZeroMQ CURVE public key in Z85.
        """
        return self._line.send(calls.create_key({"role": role, "name": name, "models": [*models], **terms}))

    def rotate(self, key_id: str, *, overlap_s: float = 0.0) -> NewKeyView:
        """Another `token` for a key, told this once; the one before is good for `overlap_s` more."""
        return self._line.send(calls.rotate_key(key_id, overlap_s))

    def revoke(self, key_id: str) -> KeyView:
        """Close a key at once and for good; doing so again changes nothing."""
        return self._line.send(calls.revoke_key(key_id))


class AsyncAudit:
    """Who did what."""

    def __init__(self, line: AsyncConnection) -> None:
        self._line = line

    async def list(self, *, after: int | None = None, limit: int = 100) -> AuditPage:
        """The entries behind the one numbered `after`, oldest first; without it the newest."""
        return await self._line.send(calls.list_audit(after, limit))

    async def verify(self) -> VerdictView:
        """Whether an entry was changed or removed."""
        return await self._line.send(calls.verify_audit())


class Audit:
    """Who did what."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def list(self, *, after: int | None = None, limit: int = 100) -> AuditPage:
        """The entries behind the one numbered `after`, oldest first; without it the newest."""
        return self._line.send(calls.list_audit(after, limit))

    def verify(self) -> VerdictView:
        """Whether an entry was changed or removed."""
        return self._line.send(calls.verify_audit())
