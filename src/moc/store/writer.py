"""The one thread that writes to the file, several commits to a disk flush when they queue up."""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from moc.kernel.errors import StoreUnavailable
from moc.store.database import unavailable

R = TypeVar("R")

_QUEUE_MAX = 10_000
_BATCH_MAX = 256


class _Job(NamedTuple):
    work: Callable[[sqlite3.Connection], Any]
    answer: "asyncio.Future[Any]"


class _Outcome(NamedTuple):
    result: Any
    error: Exception | None


class Writer:
    """Runs pieces of work in order, each all or none, and answers once they are on the disk.

    Those that wait together share one transaction: they are flushed together, refused one by one. It is `well` unless
    the last one could not be written.
    """

    def __init__(self, path: Path, db: sqlite3.Connection, *, on_commit: Callable[[], None]) -> None:
        self.well = True
        self._path = path
        self._db = db
        self._on_commit = on_commit
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = False
        self._ended: asyncio.Future[None] = self._loop.create_future()
        # A daemon, so that a program that ends without stopping its store ends: what was answered is on the disk.
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    async def submit(self, work: Callable[[sqlite3.Connection], R]) -> R:
        """The result of `work`, durable; what it raises undoes it alone. StoreUnavailable when not written."""
        if self._closing:
            raise StoreUnavailable(f"the store at {self._path} is closed; start it again")
        if self._jobs.qsize() >= _QUEUE_MAX:
            raise StoreUnavailable(f"the store at {self._path} has {_QUEUE_MAX} commits waiting; is its disk slow?")
        answer: asyncio.Future[R] = self._loop.create_future()
        self._jobs.put(_Job(work, answer))
        return await answer

    async def close(self) -> None:
        """Finish what was submitted and close the connection."""
        if not self._closing:
            self._closing = True
            self._jobs.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()

    def _run(self) -> None:
        more = True
        while more:
            jobs, more = self._next()
            if jobs:
                outcomes = self._execute(jobs)
                self._tell(self._deliver, jobs, outcomes)
        self._db.close()
        self._tell(self._end)

    def _next(self) -> tuple[list[_Job], bool]:
        """The jobs that wait, at least one, and whether there may be more later."""
        jobs: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == _BATCH_MAX or self._jobs.empty():
                return jobs, True
            job = self._jobs.get()
        return jobs, False

    def _execute(self, jobs: list[_Job]) -> list[_Outcome]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            outcomes = [self._attempt(job) for job in jobs]
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.rollback()
            return [_Outcome(None, unavailable(self._path, error)) for _ in jobs]
        return outcomes

    def _attempt(self, job: _Job) -> _Outcome:
        self._db.execute("SAVEPOINT job")
        try:
            outcome = _Outcome(job.work(self._db), None)
        except Exception as error:
            # A full disk, for one, makes SQLite undo the whole transaction: then none of its jobs was done.
            if not self._db.in_transaction:
                raise
            self._db.execute("ROLLBACK TO job")
            known = unavailable(self._path, error) if isinstance(error, sqlite3.Error) else error
            outcome = _Outcome(None, known)
        self._db.execute("RELEASE job")
        return outcome

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        # The loop is closed only when nobody waits for an answer any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *args)

    def _deliver(self, jobs: list[_Job], outcomes: list[_Outcome]) -> None:
        self.well = not isinstance(outcomes[-1].error, StoreUnavailable)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.answer.done():
                continue
            if outcome.error is None:
                job.answer.set_result(outcome.result)
            else:
                job.answer.set_exception(outcome.error)
        self._on_commit()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
