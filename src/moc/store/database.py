"""The SQLite file: opening it safely, its schema and migrations, and what its errors mean."""

import errno
import os
import sqlite3
import tempfile
import time
from pathlib import Path

import moc
from moc.kernel.errors import StoreUnavailable
from moc.kernel.records import STORE_FULL

APPLICATION_ID = 0x6D6F6373
"""Marks the file as ours in its header."""

_INITIAL = (
    "CREATE TABLE state (only INTEGER PRIMARY KEY CHECK (only = 1), revision INTEGER NOT NULL)",
    "INSERT INTO state VALUES (1, 0)",
    "CREATE TABLE writer (only INTEGER PRIMARY KEY CHECK (only = 1), version TEXT NOT NULL)",
    "CREATE TABLE records (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX records_by_revision ON records (revision)",
    "CREATE TABLE removals (key TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX removals_by_revision ON removals (revision)",
    "CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL)",
    "CREATE TABLE seats (name TEXT PRIMARY KEY, term INTEGER NOT NULL, holder TEXT, ttl_s REAL NOT NULL,"
    " expires_at REAL NOT NULL, boot TEXT NOT NULL) WITHOUT ROWID",
)

MIGRATIONS = (_INITIAL,)
"""What brings a file of version n to n + 1. Only ever appended to; `writer` stays readable in all versions."""

_ADVICE = {
    "SQLITE_BUSY": "another process kept it locked; stop that process or try again",
    "SQLITE_LOCKED": "another process kept it locked; stop that process or try again",
    "SQLITE_FULL": "the disk is full; free some space",
    "SQLITE_READONLY": "it may not be written; give this user write access to the file and its folder",
    "SQLITE_PERM": "it may not be opened; give this user access to the file and its folder",
    "SQLITE_CANTOPEN": "it cannot be opened; check that it is a file in a folder this user may write to",
    "SQLITE_NOTADB": "it is not a database; move it away or use another --data-dir",
    "SQLITE_CORRUPT": "it is damaged; put a backup in its place or move it away",
    "SQLITE_IOERR": "the disk failed or is full; check it and its free space",
}


def unavailable(path: Path, error: sqlite3.Error | OSError) -> StoreUnavailable:
    """What `error` means for a person who runs the coordinator."""
    if isinstance(error, OSError):
        return StoreUnavailable(f"the store at {path} cannot be opened: {error.strerror}; check its folder")
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_IOERR") and _lacks_room(path.parent):
        name = "SQLITE_FULL"
    advice = next((text for code, text in _ADVICE.items() if name.startswith(code)), "see the reason given")
    reason = STORE_FULL if name == "SQLITE_FULL" else name
    return StoreUnavailable(f"the store at {path} failed: {advice} ({error})", details={"reason": reason})


def _lacks_room(folder: Path) -> bool:
    """Whether nothing more can be written there: SQLite takes a quota that is used up for a disk that failed."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return False


def connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """One more connection to a file that `prepare` has seen; it waits `busy_timeout_s` at most for a lock."""
    db = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA fullfsync = ON")
    return db


def prepare(path: Path, busy_timeout_s: float) -> None:
    """Make the file if need be, private to this user, and bring its schema up to date.

    StoreUnavailable for a file that is not ours, is of a newer version, or cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        db = connect(path, busy_timeout_s)
        try:
            _check_ours(db, path)
            _use_write_ahead_log(db, path, busy_timeout_s)
            _migrate(db, path)
        finally:
            db.close()
    except (sqlite3.Error, OSError) as error:
        raise unavailable(path, error) from error


def _check_ours(db: sqlite3.Connection, path: Path) -> None:
    tables = _number(db, "SELECT count(*) FROM sqlite_master")
    if tables and _number(db, "PRAGMA application_id") != APPLICATION_ID:
        raise StoreUnavailable(f"{path} is the database of another program; use another --data-dir")
    version = _number(db, "PRAGMA user_version")
    if version > len(MIGRATIONS):
        (writer,) = db.execute("SELECT version FROM writer").fetchone()
        raise StoreUnavailable(
            f"{path} was last written by moc {writer} (store version {version}; this is moc {moc.__version__} and "
            f"knows up to {len(MIGRATIONS)}); install moc {writer} or newer, or use another --data-dir"
        )


def _use_write_ahead_log(db: sqlite3.Connection, path: Path, busy_timeout_s: float) -> None:
    give_up_at = time.monotonic() + busy_timeout_s
    while True:
        try:
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            # Changing the mode answers "locked" at once, whatever the timeout, when two processes do it together.
            if "SQLITE_BUSY" not in error.sqlite_errorname or time.monotonic() >= give_up_at:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise StoreUnavailable(f"the file system of {path} cannot share memory; use a --data-dir on a local disk")


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    if _number(db, "PRAGMA user_version") == len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        _check_ours(db, path)
        for migration in MIGRATIONS[_number(db, "PRAGMA user_version") :]:
            for statement in migration:
                db.execute(statement)
        db.execute("INSERT OR REPLACE INTO writer VALUES (1, ?)", (moc.__version__,))
        # Pragmas take no parameters; both numbers are constants of this module.
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.rollback()


def _number(db: sqlite3.Connection, query: str) -> int:
    (number,) = db.execute(query).fetchone()
    return int(number)
