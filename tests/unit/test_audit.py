"""The audit: written in order, whoever writes, and every way to tamper with it is found."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from moc.kernel.errors import Conflict, StoreUnavailable, Unavailable
from moc.kernel.events import Event
from moc.kernel.records import Op
from moc.security.audit import FAILED_LOGINS, GENESIS, ORIGIN, AuditLog, Deed, Origin
from moc.security.identity import Identity, Role
from moc.store.memory import MemoryStore
from moc.store.sqlite import SqliteStore
from moc.testing.clock import ManualClock


def deed(number: int) -> Deed:
    return Deed(actor="0a", actor_name="ann", operation="models.load", subject=f"m{number}", outcome="ok")


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore()
    await store.start()
    yield store
    await store.stop()


@pytest.fixture
async def audit(store: MemoryStore) -> AsyncIterator[AuditLog]:
    audit = AuditLog(store=store, clock=ManualClock())
    await audit.start()
    yield audit
    await audit.stop()


async def test_entries_are_chained_and_listed_in_order(audit: AuditLog) -> None:
    assert await audit.list(after=None, limit=10) == []
    for number in range(1, 6):
        await audit.append(deed(number))
    entries = await audit.list(after=0, limit=10)
    assert [(entry.seq, entry.deed) for entry in entries] == [(number, deed(number)) for number in range(1, 6)]
    assert [entry.previous for entry in entries] == [GENESIS, *(entry.hash for entry in entries[:-1])]
    assert [entry.seq for entry in await audit.list(after=None, limit=2)] == [4, 5]
    assert [entry.seq for entry in await audit.list(after=1, limit=2)] == [2, 3]
    verdict = await audit.verify()
    assert (verdict.problem, verdict.checked, verdict.head.hash) == ("", 5, entries[-1].hash)


async def test_several_processes_write_one_chain(audit: AuditLog, store: MemoryStore) -> None:
    other = AuditLog(store=store, clock=ManualClock())
    await other.start()
    await asyncio.gather(*(each.append(deed(number)) for number in range(40) for each in (audit, other)))
    await other.stop()
    for each in (audit, other):
        verdict = await each.verify()
        assert (verdict.problem, verdict.checked) == ("", 80)
    subjects = [entry.deed.subject for entry in await audit.list(after=0, limit=100)]
    assert sorted(subjects) == sorted(f"m{number}" for number in range(40) for _ in range(2))


async def test_a_deed_says_where_it_came_from() -> None:
    who = Identity("0a", "ann", Role.ADMIN)
    ORIGIN.set(Origin("req-7", "192.0.2.1"))
    done = Deed.by(who, "models.load", "m" * 500, "ok")
    assert (done.request_id, done.address, len(done.subject)) == ("req-7", "192.0.2.1", 256)


async def test_failed_logins_are_written_down_but_cannot_fill_the_store(audit: AuditLog) -> None:
    for number in range(FAILED_LOGINS.requests + 50):
        audit.note_failed_login(f"192.0.2.{number}")
    await audit.drain()
    entries = await audit.list(after=0, limit=1000)
    assert len(entries) == FAILED_LOGINS.requests
    assert (entries[0].deed.operation, entries[0].deed.outcome, entries[0].deed.address) == (
        "login", "unauthenticated", "192.0.2.0",
    )  # fmt: skip


async def test_what_waits_when_it_stops_is_written(store: MemoryStore) -> None:
    audit = AuditLog(store=store, clock=ManualClock())
    with pytest.raises(Unavailable):
        await audit.append(deed(0))
    await audit.start()
    waiting = [asyncio.create_task(audit.append(deed(number))) for number in range(5)]
    audit.note(deed(5))
    await asyncio.sleep(0)
    await audit.stop()
    await asyncio.gather(*waiting)
    assert len(await audit.list(after=0, limit=10)) == 6


async def test_too_many_notes_are_logged_instead(store: MemoryStore) -> None:
    audit = AuditLog(store=store, clock=ManualClock(), inbox_max=1)
    with capture_logs() as logs:
        audit.note(deed(1))
        audit.note(deed(2))
    assert [(entry["event"], entry["subject"]) for entry in logs] == [("not in the audit", "m2")]


class FailingStore(MemoryStore):
    """Commits nothing while `fault` is set."""

    fault: Exception | None = None

    async def commit(self, ops: Sequence[Op], events: Sequence[Event] = ()) -> int:
        if self.fault is not None:
            raise self.fault
        return await super().commit(ops, events)


@pytest.mark.parametrize("fault", [StoreUnavailable("full"), Conflict("always")])
async def test_a_store_that_fails_is_told_to_who_waits_and_the_chain_goes_on(fault: Exception) -> None:
    store = FailingStore()
    await store.start()
    audit = AuditLog(store=store, clock=ManualClock())
    await audit.start()
    await audit.append(deed(1))
    store.fault = fault
    with capture_logs() as logs:
        audit.note(deed(2))
        with pytest.raises((StoreUnavailable, Unavailable)):
            await audit.append(deed(3))
    assert [entry["subject"] for entry in logs] == ["m2"]
    store.fault = None
    await audit.append(deed(4))
    assert [entry.deed.subject for entry in await audit.list(after=0, limit=10)] == ["m1", "m4"]
    assert (await audit.verify()).problem == ""
    await audit.stop()
    await store.stop()


# tampering, in the file itself

Tamper = Callable[[sqlite3.Connection], object]


def rewrite(number: int, **changes: object) -> Tamper:
    """Change what an entry says, and leave the rest of it."""

    def run(db: sqlite3.Connection) -> None:
        key = f"audit/{number:016d}"
        (value,) = db.execute("SELECT value FROM records WHERE key = ?", [key]).fetchone()
        document = json.loads(value)
        for name, change in changes.items():
            (document["deed"] if name in document["deed"] else document)[name] = change
        db.execute("UPDATE records SET value = ? WHERE key = ?", [json.dumps(document).encode(), key])

    return run


def remove(where: str) -> Tamper:
    return lambda db: db.execute(f"DELETE FROM records WHERE {where}")


def update(change: str, where: str) -> Tamper:
    return lambda db: db.execute(f"UPDATE records SET {change} WHERE {where}")


def both(*steps: Tamper) -> Tamper:
    return lambda db: [step(db) for step in steps]


@pytest.mark.parametrize(
    ("tamper", "problem", "checked"),
    [
        (rewrite(3, subject="x"), "entry 3 was changed", 2),
        (rewrite(3, outcome="forbidden"), "entry 3 was changed", 2),
        (rewrite(1, actor="ff"), "entry 1 was changed", 0),
        (rewrite(2, at=1.0), "entry 2 was changed", 1),
        (rewrite(2, previous="0" * 64), "entry 2 was changed", 1),
        (rewrite(5, hash="0" * 64), "entry 5 was changed", 4),
        (rewrite(2, more="x"), "entry 2 was changed", 1),
        (update("value = 'x'", "key LIKE 'audit/%3'"), "entry 3 cannot be read", 2),
        (remove("key LIKE 'audit/%1'"), "entry 1 is missing", 0),
        (remove("key LIKE 'audit/%3'"), "entry 3 is missing", 2),
        (remove("key LIKE 'audit/%5'"), "from 5 on are missing", 4),
        (remove("key >= 'audit/0000000000000003' AND key < 'audit0'"), "from 3 on are missing", 2),
        (remove("key LIKE 'audit/%'"), "from 1 on are missing", 0),
        (remove("key = 'audit-head'"), "the head is missing", 5),
        (both(remove("key LIKE 'audit/%'"), remove("key = 'audit-head'")), "from 1 on are missing", 0),
        (update("key = 'audit/0000000000000009'", "key LIKE 'audit/%3'"), "entry 3 is missing", 2),
        (update("value = '{\"seq\":4,\"hash\":\"aa\"}'", "key = 'audit-head'"), "the head does not fit entry 5", 5),
    ],
    ids=range(17),
)  # fmt: skip
async def test_tampering_is_found(tmp_path: Path, tamper: Tamper, problem: str, checked: int) -> None:
    path = tmp_path / "moc.db"
    store = SqliteStore(path)
    await store.start()
    audit = AuditLog(store=store, clock=ManualClock())
    await audit.start()
    for number in range(1, 6):
        await audit.append(deed(number))
    assert (await audit.verify()).problem == ""
    with sqlite3.connect(path) as db:
        tamper(db)
    db.close()
    verdict = await audit.verify()
    assert problem in verdict.problem
    assert verdict.checked == checked
    await audit.stop()
    await store.stop()


async def test_a_chain_whose_head_was_lost_goes_on_and_says_so(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "moc.db")
    await store.start()
    audit = AuditLog(store=store, clock=ManualClock())
    await audit.start()
    await audit.append(deed(1))
    with sqlite3.connect(tmp_path / "moc.db") as db:
        remove("key = 'audit-head'")(db)
    db.close()
    await audit.append(deed(2))
    operations = [entry.deed.operation for entry in await audit.list(after=0, limit=10)]
    assert operations == ["models.load", "audit.head", "models.load"]
    assert (await audit.verify()).problem == ""
    await audit.stop()
    await store.stop()
