"""What a caller may ask about the audit."""

from dataclasses import dataclass

from moc.security.audit import AuditEntry, AuditLog
from moc.security.identity import Identity
from moc.security.policy import Operation
from moc.service.guard import require
from moc.service.views import rfc3339


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditView:
    """Who did what to what; `outcome` is `ok` or an error's code, `previous` the hash of the entry before."""

    seq: int
    at: str
    actor: str
    actor_name: str
    operation: str
    subject: str
    outcome: str
    request_id: str
    address: str
    previous: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictView:
    """Whether the chain of `checked` entries is whole; `problem` says what is wrong behind them.

    Keep `head_seq` and `head_hash` elsewhere: whoever can write to the store can make a chain anew, not that one.
    """

    whole: bool
    checked: int
    head_seq: int
    head_hash: str
    problem: str


class AuditService:
    """The audit, for those that may read it."""

    def __init__(self, *, log: AuditLog) -> None:
        self._log = log

    async def list(self, identity: Identity, *, after: int | None, limit: int) -> list[AuditView]:
        """Entries behind the one numbered `after`, oldest first; without it the newest."""
        require(identity, Operation.READ_AUDIT)
        return [_view(entry) for entry in await self._log.list(after=after, limit=limit)]

    async def verify(self, identity: Identity) -> VerdictView:
        """Go through all of it."""
        require(identity, Operation.READ_AUDIT)
        verdict = await self._log.verify()
        return VerdictView(
            whole=not verdict.problem,
            checked=verdict.checked,
            head_seq=verdict.head.seq,
            head_hash=verdict.head.hash,
            problem=verdict.problem,
        )


def _view(entry: AuditEntry) -> AuditView:
    deed = entry.deed
    return AuditView(
        seq=entry.seq,
        at=rfc3339(entry.at),
        actor=deed.actor,
        actor_name=deed.actor_name,
        operation=deed.operation,
        subject=deed.subject,
        outcome=deed.outcome,
        request_id=deed.request_id,
        address=deed.address,
        previous=entry.previous,
        hash=entry.hash,
    )
