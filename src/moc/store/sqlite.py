"""The store in one SQLite file: durable at every commit, shared by the processes of one machine."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from moc.cluster.holder import boot_id
from moc.kernel.clock import Clock, SystemClock
from moc.kernel.errors import NotLeader, StoreUnavailable
from moc.kernel.events import Event
from moc.kernel.records import ABSENT, Change, Delete, Fence, Op, Put, Record, Seat, revision_conflict
from moc.store import tenure
from moc.store.codec import check_key, check_ops, decode_event, encode_event, prefix_end
from moc.store.database import connect, prepare, unavailable
from moc.store.feed import Feed
from moc.store.tenure import Tenure
from moc.store.writer import Writer

R = TypeVar("R")

_REMOVALS_KEPT = 100_000
"""How many commits back removed keys are remembered for watchers."""

_GLANCE_TIMEOUT_S = 0.1
"""The longest the event loop may be held by a lock; readers of a write-ahead log do not meet one in practice."""


@dataclass(frozen=True, slots=True)
class _Session:
    """What is open between start and stop: a connection each for writing, for reading and for a glance."""

    writer: Writer
    threads: ThreadPoolExecutor
    reads: sqlite3.Connection
    glance: "_Glance"
    feed: Feed


class _Glance:
    """What the event loop itself reads: one number at a time, some microseconds, never behind a writer."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self._path = path
        self._db = db
        self._version = -1

    def revision(self) -> int:
        """The newest revision."""
        try:
            return _revision(self._db)
        except sqlite3.Error as error:
            raise unavailable(self._path, error) from error

    def changed(self) -> bool:
        """Whether anybody committed since the last call; yes when in doubt, for then a reader finds out."""
        try:
            (version,) = self._db.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:
            return True
        before, self._version = self._version, version
        return bool(before != version)

    def close(self) -> None:
        self._db.close()


class SqliteStore:
    """A Store on `path`; its folder is made when missing.

    Commits are on the disk when acknowledged. A lock that another process holds is waited for
    `busy_timeout_s`, then StoreUnavailable. The newest `events_max` events are kept: a follower that asks for
    older ones begins with the oldest there is. Commits of other processes reach watchers within about
    `look_interval_s`. Seats run on the monotonic clock, so that setting the time of day moves none of them,
    and a reboot frees them all. `on_fenced` is called for each commit that is refused because a term is over.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock | None = None,
        *,
        busy_timeout_s: float = 5.0,
        events_max: int = 100_000,
        look_interval_s: float = 0.04,
        on_fenced: Callable[[], object] = lambda: None,
    ) -> None:
        self._path = path.absolute()
        self._clock = clock or SystemClock()
        self._busy_timeout_s = busy_timeout_s
        self._events_max = events_max
        self._look_interval_s = look_interval_s
        self._on_fenced = on_fenced
        self._boot = boot_id()
        self._session: _Session | None = None

    async def start(self) -> None:
        """Open the file; StoreUnavailable, saying what to do, when it cannot be used."""
        if self._session is not None:
            return
        await asyncio.to_thread(prepare, self._path, self._busy_timeout_s)
        writes, reads, glances = await asyncio.to_thread(self._connect)
        glance = _Glance(self._path, glances)
        feed = Feed(glance.changed, self._look_interval_s)
        self._session = _Session(
            writer=Writer(self._path, writes, on_commit=feed.ring),
            threads=ThreadPoolExecutor(1, thread_name_prefix="store-reader"),
            reads=reads,
            glance=glance,
            feed=feed,
        )

    async def drain(self) -> None:
        """Nothing to wait for: `stop` finishes the commits under way."""

    async def stop(self) -> None:
        """Finish the commits under way and close the file; watchers and followers end with StoreUnavailable."""
        session, self._session = self._session, None
        if session is None:
            return
        session.feed.close()
        session.glance.close()
        await asyncio.get_running_loop().run_in_executor(session.threads, session.reads.close)
        session.threads.shutdown()
        # Last, because the last connection to close moves the write-ahead log into the file: work for its thread.
        await session.writer.close()

    @property
    def well(self) -> bool:
        return self._session is not None and self._session.writer.well

    async def get(self, key: str) -> Record | None:
        return await self._read(partial(_get, key=check_key(key)))

    async def list(self, prefix: str, *, after: str | None = None, limit: int | None = None) -> list[Record]:
        after = None if after is None else check_key(after)
        return await self._read(partial(_list, prefix=check_key(prefix), after=after, limit=limit))

    async def commit(self, ops: Sequence[Op], events: Sequence[Event] = ()) -> int:
        ops = check_ops(ops)
        at = self._clock.wall()
        bodies = [encode_event(event, at) for event in events]
        if not ops and not bodies:
            return await self._read(_revision)
        try:
            return await self._write(partial(_commit, ops=ops, bodies=bodies, events_max=self._events_max))
        except NotLeader:
            self._on_fenced()
            raise

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        session = self._opened()
        return self._watch(session, check_key(prefix), session.glance.revision())

    async def events(self, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        rows = await self._read(partial(_events, after=after, limit=limit))
        return [decode_event(event_id, body) for event_id, body in rows]

    async def last_event_id(self) -> int:
        return await self._read(_last_event_id)

    def follow(self, *, after: int) -> AsyncIterator[Event]:
        return self._follow(self._opened(), after)

    async def take_seat(self, name: str, holder: str, ttl_s: float, *, dead_term: int | None = None) -> Seat | None:
        asked_at = self._clock.monotonic()

        def take(db: sqlite3.Connection) -> Tenure | None:
            now = self._clock.monotonic()
            taken = tenure.taken(_tenure(db, name), holder, ttl_s, now=now, boot=self._boot, dead_term=dead_term)
            return None if taken is None else _save_tenure(db, name, taken)

        taken = await self._write(take)
        return None if taken is None else tenure.trusted(name, taken, asked_at)

    async def keep_seat(self, seat: Seat) -> Seat:
        asked_at = self._clock.monotonic()

        def keep(db: sqlite3.Connection) -> Tenure:
            kept = tenure.kept(_tenure(db, seat.name), seat, now=self._clock.monotonic())
            return _save_tenure(db, seat.name, kept)

        return tenure.trusted(seat.name, await self._write(keep), asked_at)

    async def leave_seat(self, seat: Seat) -> None:
        def leave(db: sqlite3.Connection) -> None:
            left = tenure.left(_tenure(db, seat.name), seat)
            if left is not None:
                _save_tenure(db, seat.name, left)

        await self._write(leave)

    async def seats(self) -> Sequence[Seat]:
        found = await self._read(_tenures)
        now = self._clock.monotonic()
        return [tenure.observed(name, each) for name, each in found if each.held(now, self._boot)]

    def _connect(self) -> tuple[sqlite3.Connection, sqlite3.Connection, sqlite3.Connection]:
        timeouts_s = (self._busy_timeout_s, self._busy_timeout_s, _GLANCE_TIMEOUT_S)
        try:
            with ExitStack() as opened:
                writes, reads, glances = (opened.enter_context(closing(connect(self._path, t))) for t in timeouts_s)
                opened.pop_all()
        except sqlite3.Error as error:
            raise unavailable(self._path, error) from error
        return writes, reads, glances

    def _opened(self) -> _Session:
        if self._session is None:
            raise StoreUnavailable(f"the store at {self._path} is closed; start it first")
        return self._session

    async def _write(self, work: Callable[[sqlite3.Connection], R]) -> R:
        return await self._opened().writer.submit(work)

    async def _read(self, query: Callable[[sqlite3.Connection], R]) -> R:
        session = self._opened()
        try:
            return await asyncio.get_running_loop().run_in_executor(session.threads, query, session.reads)
        except sqlite3.Error as error:
            raise unavailable(self._path, error) from error

    async def _watch(self, session: _Session, prefix: str, seen: int) -> AsyncIterator[Change]:
        while self._opened() is session:
            ring = session.feed.next_ring()
            seen, changes = await self._read(partial(_changes, prefix=prefix, seen=seen))
            for change in changes:
                yield change
            if not changes:
                await session.feed.wait(ring)

    async def _follow(self, session: _Session, after: int) -> AsyncIterator[Event]:
        while self._opened() is session:
            ring = session.feed.next_ring()
            found = await self.events(after=after)
            for event in found:
                yield event
                after = event.id
            if not found:
                await session.feed.wait(ring)


def _revision(db: sqlite3.Connection) -> int:
    (revision,) = db.execute("SELECT revision FROM state").fetchone()
    return int(revision)


def _last_event_id(db: sqlite3.Connection) -> int:
    (last,) = db.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
    return int(last)


def _events(db: sqlite3.Connection, after: int, limit: int) -> list[tuple[int, bytes]]:
    return db.execute("SELECT id, body FROM events WHERE id > ? ORDER BY id LIMIT ?", (after, limit)).fetchall()


def _get(db: sqlite3.Connection, key: str) -> Record | None:
    row = db.execute("SELECT key, value, revision FROM records WHERE key = ?", (key,)).fetchone()
    return row and Record(*row)


def _list(db: sqlite3.Connection, prefix: str, after: str | None, limit: int | None) -> list[Record]:
    start = prefix if after is None else max(prefix, after + "\0")
    rows = db.execute(
        "SELECT key, value, revision FROM records WHERE key >= ? AND key < ? ORDER BY key LIMIT ?",
        (start, _end(prefix), -1 if limit is None else limit),
    )
    return [Record(*row) for row in rows]


def _end(prefix: str) -> str | bytes:
    # Ranges of keys rather than LIKE: exact for every character. Any blob sorts after every text.
    end = prefix_end(prefix)
    return b"" if end is None else end


def _changes(db: sqlite3.Connection, prefix: str, seen: int) -> tuple[int, list[Change]]:
    """The newest revision, and what changed under `prefix` after revision `seen`."""
    db.execute("BEGIN")
    try:
        newest = _revision(db)
        # The plus signs keep SQLite on the index by revision: few rows are newer, however many share the prefix.
        rows = db.execute(
            "SELECT key, value, revision FROM records WHERE revision > :seen AND +key >= :start AND +key < :end"
            " UNION ALL"
            " SELECT key, NULL, revision FROM removals WHERE revision > :seen AND +key >= :start AND +key < :end"
            " ORDER BY revision, key",
            {"seen": seen, "start": prefix, "end": _end(prefix)},
        ).fetchall()
    finally:
        db.execute("COMMIT")
    if newest - seen > _REMOVALS_KEPT:
        raise StoreUnavailable(f"the watcher of {prefix!r} is {newest - seen} commits behind; list and watch anew")
    return newest, [Change(k, None if v is None else Record(k, v, r), r) for k, v, r in rows]


def _commit(db: sqlite3.Connection, ops: tuple[Op, ...], bodies: list[bytes], events_max: int) -> int:
    for op in ops:
        _check(db, op)
    revision = _revision(db) + 1
    db.execute("UPDATE state SET revision = ?", (revision,))
    for op in ops:
        _apply(db, op, revision)
    db.execute("DELETE FROM removals WHERE revision <= ?", (revision - _REMOVALS_KEPT,))
    if bodies:
        db.executemany("INSERT INTO events (body) VALUES (?)", [(body,) for body in bodies])
        db.execute("DELETE FROM events WHERE id <= ?", (_last_event_id(db) - events_max,))
    return revision


def _check(db: sqlite3.Connection, op: Op) -> None:
    if isinstance(op, Fence):
        tenure.check_fence(_tenure(db, op.seat), op)
    elif op.expect is not None:
        row = db.execute("SELECT revision FROM records WHERE key = ?", (op.key,)).fetchone()
        found = ABSENT if row is None else row[0]
        if found != op.expect:
            raise revision_conflict(op.key, op.expect, found)


def _apply(db: sqlite3.Connection, op: Op, revision: int) -> None:
    if isinstance(op, Put):
        db.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (op.key, op.value, revision))
        db.execute("DELETE FROM removals WHERE key = ?", (op.key,))
    elif isinstance(op, Delete) and db.execute("DELETE FROM records WHERE key = ?", (op.key,)).rowcount:
        db.execute("INSERT OR REPLACE INTO removals VALUES (?, ?)", (op.key, revision))


def _tenure(db: sqlite3.Connection, name: str) -> Tenure | None:
    row = db.execute("SELECT term, holder, ttl_s, expires_at, boot FROM seats WHERE name = ?", (name,)).fetchone()
    return row and Tenure(*row)


def _tenures(db: sqlite3.Connection) -> list[tuple[str, Tenure]]:
    rows = db.execute("SELECT name, term, holder, ttl_s, expires_at, boot FROM seats ORDER BY name")
    return [(name, Tenure(*rest)) for name, *rest in rows]


def _save_tenure(db: sqlite3.Connection, name: str, saved: Tenure) -> Tenure:
    db.execute(
        "INSERT OR REPLACE INTO seats (name, term, holder, ttl_s, expires_at, boot) VALUES (?, ?, ?, ?, ?, ?)",
        (name, saved.term, saved.holder, saved.ttl_s, saved.expires_at, saved.boot),
    )
    return saved
