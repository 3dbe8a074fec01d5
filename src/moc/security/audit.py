"""Who did what to what, with which result: a record that grows, each entry sealed with the hash of the one before.

A changed, removed or inserted entry breaks the chain behind it, and the head tells where the chain must end.
"""

import asyncio
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec
import structlog

from moc.kernel.clock import Clock
from moc.kernel.errors import Conflict, MocError, Unavailable
from moc.kernel.records import ABSENT, Record, Store, Table
from moc.security.identity import Identity
from moc.security.quota import Rate, Rates
from moc.security.redact import redacted

log = structlog.get_logger(__name__)

GENESIS = "0" * 64
"""What the first entry names as the hash before it."""

FAILED_LOGINS = Rate(30, 60)
"""How many failed logins are written down; those beyond are not, so that nobody can fill the store with them."""

_HEAD = "head"
_TEXT_MAX = 256
_BATCH_MAX = 256
_PAGE = 1000
_TRIES = 5


class Origin(NamedTuple):
    """Where a request came from."""

    request_id: str = ""
    address: str = ""


ORIGIN: ContextVar[Origin] = ContextVar("origin", default=Origin())  # noqa: B039 - a named tuple does not change
"""Set by a transport for each request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """Something that was asked: `operation` on `subject` by a key, and `outcome`, `ok` or an error's code."""

    actor: str
    actor_name: str
    operation: str
    subject: str
    outcome: str
    request_id: str = ""
    address: str = ""

    @classmethod
    def by(cls, identity: Identity, operation: str, subject: str, outcome: str) -> "Deed":
        """What a caller did in the request that is being served."""
        origin = ORIGIN.get()
        return cls(
            actor=identity.key_id,
            actor_name=identity.name,
            operation=operation,
            subject=redacted(subject)[:_TEXT_MAX],
            outcome=outcome,
            request_id=origin.request_id,
            address=origin.address,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """A deed in its place: `hash` is over everything else, `previous` is the hash of the entry before."""

    seq: int
    at: float
    deed: Deed
    previous: str
    hash: str


@dataclass(frozen=True, slots=True)
class AuditHead:
    """Where the chain ends."""

    seq: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How far the chain is whole, and where its head says that it ends; `problem` '' = it is whole up to there."""

    checked: int
    head: AuditHead
    problem: str


_HEAD_LOST = Deed(actor="system", actor_name="system", operation="audit.head", subject="", outcome="missing")
"""Stands where the chain was taken up again without its head."""

_Waiting = tuple[Deed, "asyncio.Future[None] | None"]


class AuditLog:
    """The only writer of the audit in this process; entries that wait together are written together."""

    def __init__(self, *, store: Store, clock: Clock, inbox_max: int = 1024) -> None:
        self._entries: Table[AuditEntry] = Table(store, "audit/", AuditEntry)
        self._heads: Table[AuditHead] = Table(store, "audit-", AuditHead)
        self._store = store
        self._clock = clock
        self._rates = Rates()
        self._inbox: asyncio.Queue[_Waiting] = asyncio.Queue(inbox_max)
        self._last = AuditHead(0, GENESIS)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take entries from now on."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="audit")

    async def drain(self) -> None:
        """Wait until everything so far is written."""
        await self._inbox.join()

    async def stop(self) -> None:
        """Write what waits and take no more."""
        task, self._task = self._task, None
        if task is None:
            return
        drained = asyncio.create_task(self.drain())
        await asyncio.wait({drained, task}, return_when=asyncio.FIRST_COMPLETED)
        for each in (drained, task):
            each.cancel()
        await asyncio.gather(drained, task, return_exceptions=True)

    async def append(self, deed: Deed) -> None:
        """Write it down; durable when this returns. Waits while many others do."""
        if self._task is None:
            raise Unavailable("the audit is not running; ask again shortly")
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._inbox.put((deed, written))
        await written

    def note(self, deed: Deed) -> None:
        """Write it down soon, or only log it when too much waits already."""
        try:
            self._inbox.put_nowait((deed, None))
        except asyncio.QueueFull:
            log.error("not in the audit", operation=deed.operation, subject=deed.subject, outcome=deed.outcome)

    def note_failed_login(self, address: str) -> None:
        """Write down that a wrong key was shown: a bounded number of them, whoever tries."""
        if self._rates.spend("", FAILED_LOGINS) is None:
            origin = ORIGIN.get()
            anyone = Deed(actor="", actor_name="", operation="login", subject="", outcome="unauthenticated")
            self.note(replace(anyone, request_id=origin.request_id, address=address))

    async def list(self, *, after: int | None, limit: int) -> Sequence[AuditEntry]:
        """Entries behind the one numbered `after`, oldest first; without it the newest."""
        if after is None:
            after = max(0, (await self._head())[0].seq - limit)
        return [entry for _, entry, _ in await self._entries.list(after=_key(after), limit=limit)]

    async def verify(self) -> Verdict:
        """Go through all of the chain."""
        before = AuditHead(0, GENESIS)
        while True:
            head, revision = await self._head()  # before the entries: all it counts must then be there
            part = await self._store.list(
                self._entries.prefix, after=self._entries.prefix + _key(before.seq), limit=_PAGE
            )
            for record in part:
                following = _next(record, self._entries.prefix, before)
                if isinstance(following, str):
                    return Verdict(checked=before.seq, head=head, problem=following)
                before = following
            if not part:
                return Verdict(
                    checked=before.seq, head=head, problem=_problem_at_end(before, head, self._last, revision)
                )

    async def _head(self) -> tuple[AuditHead, int]:
        """Where the chain ends, with the revision of the head; the last entry there is when the head is missing."""
        found = await self._heads.find(_HEAD)
        if found is not None:
            return found
        last = AuditHead(0, GENESIS)
        while part := await self._entries.list(after=_key(last.seq), limit=_PAGE):
            entry = part[-1][1]
            last = AuditHead(entry.seq, entry.hash)
        return last, ABSENT

    async def _run(self) -> None:
        while True:
            batch = [await self._inbox.get()]
            while len(batch) < _BATCH_MAX and not self._inbox.empty():
                batch.append(self._inbox.get_nowait())
            try:
                await self._write([deed for deed, _ in batch])
            except Exception as error:
                _settle(batch, error)
                if not isinstance(error, MocError):
                    log.error("audit failed", exc_info=error)
            else:
                _settle(batch, None)
            finally:
                for _ in batch:
                    self._inbox.task_done()

    async def _write(self, deeds: Sequence[Deed]) -> None:
        for _ in range(_TRIES):
            head, revision = await self._head()
            lost = [_HEAD_LOST] if revision == ABSENT and head.seq else []
            entries = list(_chained(head, [*lost, *deeds], self._clock.wall()))
            end = AuditHead(entries[-1].seq, entries[-1].hash)
            written = [self._entries.put(_key(entry.seq), entry, expect=ABSENT) for entry in entries]
            try:
                await self._store.commit([*written, self._heads.put(_HEAD, end, expect=revision)])
            except Conflict:
                continue  # another process wrote an entry meanwhile
            self._last = end
            return
        raise Unavailable("the audit has others writing to it all the time; ask again shortly")


def _chained(head: AuditHead, deeds: Sequence[Deed], at: float) -> Iterator[AuditEntry]:
    for seq, deed in enumerate(deeds, head.seq + 1):
        open_entry = AuditEntry(seq=seq, at=at, deed=deed, previous=head.hash, hash="")
        entry = replace(open_entry, hash=_hash(msgspec.to_builtins(open_entry)))
        head = AuditHead(seq, entry.hash)
        yield entry


def _next(record: Record, prefix: str, before: AuditHead) -> AuditHead | str:
    """The entry that a record is, or what is wrong with it as the one behind `before`."""
    seq = before.seq + 1
    if record.key != prefix + _key(seq):
        return f"entry {seq} is missing"
    try:
        document = msgspec.json.decode(record.value, type=dict[str, Any])
    except msgspec.DecodeError:
        return f"entry {seq} cannot be read"
    if document.get("seq") != seq or document.get("hash") != _hash(document):
        return f"entry {seq} was changed"
    if document.get("previous") != before.hash:
        return f"entry {seq} does not follow the one before it"
    return AuditHead(seq, document["hash"])


def _problem_at_end(last: AuditHead, head: AuditHead, known: AuditHead, revision: int) -> str:
    """What is wrong with where the chain ends, '' when nothing is; `known` is what this process wrote last."""
    if last.seq < max(head.seq, known.seq):
        return f"the entries from {last.seq + 1} on are missing"
    if last != head:
        return f"the head does not fit entry {last.seq}"
    if last.seq and revision == ABSENT:
        return "the head is missing"
    return ""


def _hash(document: Mapping[str, Any]) -> str:
    """The seal of an entry: over all it says, whatever a later version adds."""
    sealed = {name: value for name, value in document.items() if name != "hash"}
    return hashlib.sha256(msgspec.json.encode(sealed)).hexdigest()


def _key(seq: int) -> str:
    return f"{seq:016d}"


def _settle(batch: Sequence[_Waiting], error: Exception | None) -> None:
    for deed, written in batch:
        if written is None:
            if error is not None:
                log.error("not in the audit", operation=deed.operation, subject=deed.subject, outcome=deed.outcome)
        elif not written.done():
            if error is None:
                written.set_result(None)
            else:
                written.set_exception(error)
