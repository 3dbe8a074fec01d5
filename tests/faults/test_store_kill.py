"""A writer is killed in the middle, again and again: what it was told is written, is written."""

import asyncio
import random
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from moc.store.sqlite import SqliteStore

SCRIPT = Path(__file__).parents[1] / "store_process.py"
ROUNDS = 20


async def acknowledged_before_kill(path: Path, first: int, acknowledgements: int) -> set[int]:
    """The numbers a writer said were written before it was killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, SCRIPT, "write", path, str(first), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        lines = [await process.stdout.readline() for _ in range(acknowledgements)]
        process.kill()
        rest, _ = await process.communicate()
    assert process.returncode == -9
    # The last line may be torn: the kill came while it was written, and nobody was told.
    return {int(line) for line in [*lines, *rest.splitlines(keepends=True)] if line.endswith(b"\n")}


async def check_consistent(path: Path, acknowledged: set[int]) -> int:
    """Everything acknowledged is there, every commit is whole; how many there are."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store = SqliteStore(path)
    await store.start()
    try:
        records = {int(record.key.removeprefix("k/")) for record in await store.list("k/")}
        events = await store.events(limit=1_000_000)
    finally:
        await store.stop()
    assert acknowledged <= records
    assert {int(event.subject) for event in events} == records
    assert [event.id for event in events] == list(range(1, len(records) + 1))
    return len(records)


async def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "moc.db"
    chance = random.Random(20)
    acknowledged: set[int] = set()
    for round_number in range(ROUNDS):
        wanted = chance.randrange(1, 400)
        acknowledged |= await acknowledged_before_kill(path, round_number * 100_000, wanted)
        await check_consistent(path, acknowledged)
    assert len(acknowledged) >= ROUNDS
