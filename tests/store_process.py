"""A process of its own on a SQLite store, for tests of several of them: `store_process.py COMMAND PATH …`.

It prints a line for everything that happened, after it happened.
"""

import asyncio
import itertools
import resource
import sys
from pathlib import Path

from moc.cluster.holder import Holder
from moc.cluster.seat import SeatKeeper
from moc.kernel.errors import Conflict, NotLeader, StoreUnavailable
from moc.kernel.events import Event
from moc.kernel.records import ABSENT, Put
from moc.store.sqlite import SqliteStore


def say(*words: object) -> None:
    print(*words, flush=True)


async def count(store: SqliteStore, times: str) -> None:
    """Add one to `counter`, as many times, by compare-and-set."""
    lost = 0
    for _ in range(int(times)):
        while True:
            record = await store.get("counter")
            value, revision = (0, ABSENT) if record is None else (int(record.value), record.revision)
            try:
                await store.commit([Put("counter", b"%d" % (value + 1), revision)], [Event(kind="c.up", subject="c")])
                break
            except Conflict:
                lost += 1
    say("lost", lost)


async def watch(store: SqliteStore, changes: str) -> None:
    """Say the next changes under `w/`."""
    watcher = store.watch("w/")
    say("watching")
    for _ in range(int(changes)):
        change = await anext(watcher)
        say(change.key, change.record.value.decode() if change.record else "removed")


async def hold(store: SqliteStore, ttl_s: str) -> None:
    """Hold the seat `s` until standard input ends or it is lost; then try to write under it."""
    lost = asyncio.Event()
    keeper = SeatKeeper(
        store, "s", holder=str(Holder.here()), on_lost=lambda why: lost.set(), ttl_s=float(ttl_s), patience_s=0
    )
    await keeper.start()
    fence = keeper.fence()
    say("held", keeper.term)
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait([ended, asyncio.create_task(lost.wait())], return_when=asyncio.FIRST_COMPLETED)
    if lost.is_set():
        try:
            await store.commit([fence, Put("late", b"", None)])
        except NotLeader:
            say("lost and refused")
    await keeper.stop()


async def write(store: SqliteStore, first: str) -> None:
    """Commit records and events with growing numbers, several at once, until killed; say each acknowledged one."""
    numbers = itertools.count(int(first))

    async def one_after_another() -> None:
        for number in numbers:
            await store.commit([Put(f"k/{number}", b"x" * 100, ABSENT)], [Event(kind="k.put", subject=str(number))])
            say(number)

    await asyncio.gather(*(one_after_another() for _ in range(8)))


async def fill(store: SqliteStore, limit: str) -> None:
    """Commit until no file may grow any more, then again when it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
    for number in itertools.count():
        try:
            await store.commit([Put(f"k/{number}", b"x" * 50_000, ABSENT)])
            say("written", number)
        except StoreUnavailable as error:
            say("refused", error)
            break
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await store.commit([Put("after", b"", ABSENT)])
    say("goes on")


async def main(command: str, path: str, argument: str) -> None:
    store = SqliteStore(Path(path), busy_timeout_s=30)
    await store.start()
    try:
        await {"count": count, "watch": watch, "hold": hold, "write": write, "fill": fill}[command](store, argument)
    finally:
        await store.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
