"""Leases over REST: one acquired and released by one client, by sixteen, and while ten thousand others wait.

Records are in SQLite, every one on the disk before it is told of; beside that, what the same disk takes for a bare
commit of SQLite. Coordinator on processor 0, the generator on processor 1. Run it with `make bench`.
"""

import asyncio
import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import uvloop

from bench.load import Ask, Outcome, turns
from moc.cluster.holder import Holder
from moc.cluster.seat import SeatKeeper
from moc.gpu.broker import Broker
from moc.gpu.device import Device
from moc.gpu.eviction import Policy, Tenant
from moc.gpu.lease import LeaseState, LeaseTerms
from moc.gpu.leases import Leases
from moc.gpu.monitor import DeviceMonitor
from moc.hardware.declared import DeclaredDevices
from moc.kernel.clock import SystemClock
from moc.kernel.component import Stack
from moc.security.identity import ANYONE
from moc.store.sqlite import SqliteStore
from tests.coordinator import Coordinator

ROUNDS = 3
DEVICES = 8
HELD = 1_000
WAITING = 9_999
PAIRS = 500
GIB = 2**30
DAY_S = 86_400.0

CONFIG = {
    "devices": [{"id": "host", "kind": "host"}]
    + [{"id": f"declared:{number}", "kind": "declared", "memory": "64GiB"} for number in range(DEVICES)],
    "resources": {"soft_limit_pct": 100},
}


class Caller:
    """Writes requests as they go over the wire."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.port = coordinator.port
        self._head = f"Host: 127.0.0.1:{coordinator.port}\r\nAuthorization: Bearer {coordinator.key}\r\n"

    def acquire(self, **wish: object) -> bytes:
        """The request for a lease."""
        body = json.dumps(wish)
        head = f"{self._head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return f"POST /api/v1/leases HTTP/1.1\r\n{head}\r\n{body}".encode()

    def release(self, granted: bytes) -> bytes:
        """The request that gives back what was granted with this answer."""
        lease = json.loads(granted)
        return f"DELETE /api/v1/leases/{lease['id']}?token={lease['token']} HTTP/1.1\r\n{self._head}\r\n".encode()

    async def pairs(self, *, clients: int, seconds: float, **wish: object) -> Outcome:
        """Leases acquired and released, one after the other."""
        wanted = self.acquire(**wish)

        async def turn(ask: Ask) -> None:
            await ask(self.release(await ask(wanted)))

        outcome = await turns(self.port, turn, clients=clients, seconds=seconds)
        assert not outcome.failures
        return outcome


def bare_commits(folder: Path) -> list[float]:
    """Milliseconds that each of many commits takes with nothing but SQLite."""
    times = []
    db = sqlite3.connect(folder / "bare.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE records (id INTEGER PRIMARY KEY, value BLOB)")
    for _ in range(1000):
        begun = time.perf_counter()
        db.execute("INSERT INTO records (value) VALUES (?)", (bytes(400),))
        times.append((time.perf_counter() - begun) * 1000)
    db.close()
    return times


async def measure(coordinator: Coordinator) -> dict[str, float]:
    """One round with nobody else there."""
    caller = Caller(coordinator)
    await caller.pairs(clients=4, seconds=1, memory="1GiB", device="declared")
    one = await caller.pairs(clients=1, seconds=4, memory="1GiB", device="declared")
    sixteen = await caller.pairs(clients=16, seconds=4, memory="1GiB", device="declared")
    host = await caller.pairs(clients=1, seconds=2, memory="1MiB", device="host")
    return {
        "1 client, p50 ms": one.ms(50),
        "1 client, p99 ms": one.ms(99),
        "16 clients, pairs/s": sixteen.rate,
        "16 clients, p99 ms": sixteen.ms(99),
        "1 client, main memory, p50 ms": host.ms(50),
    }


class NoModels:
    """Nothing is loaded."""

    def tenants(self) -> Sequence[Tenant]:
        return []

    async def evict(self, holder: str, *, reason: str, because: str) -> None:
        raise NotImplementedError

    def lose(self, holder: str, *, because: str) -> None:
        raise NotImplementedError


@asynccontextmanager
async def leases_of(folder: Path) -> AsyncIterator[Leases]:
    """The leases of eight declared devices, in this process."""
    clock, store = SystemClock(), SqliteStore(folder / "moc.db")
    declared = [
        Device(id=f"declared:{number}", kind="declared", name="declared", capacity_bytes=64 * GIB)
        for number in range(DEVICES)
    ]
    seat = SeatKeeper(store, "host/bench", holder=str(Holder.here()), on_lost=print, clock=clock)
    devices = DeviceMonitor([DeclaredDevices(declared)], store=store, seat=seat, clock=clock, poll_interval_s=5)
    broker = Broker(
        monitor=devices,
        tenants=NoModels(),
        managed=set,
        store=store,
        soft_limit_pct=100,
        policy=Policy(),
        clock=clock,
        on_evicted=print,
    )
    leases = Leases(
        store=store, seat=seat, broker=broker, devices=devices, clock=clock, on_waited=lambda outcome, seconds: None
    )
    stack = Stack([store, seat, devices, leases])
    await stack.start()
    try:
        yield leases
    finally:
        await stack.stop()


async def pairs_of(leases: Leases, count: int) -> list[float]:
    """Milliseconds each of `count` small and urgent leases took, acquired and released one after the other."""
    times = []
    terms = LeaseTerms(bytes=2**20, priority=1)
    for _ in range(count):
        begun = time.perf_counter()
        lease = (await leases.acquire(terms, identity=ANYONE)).lease
        assert lease.token is not None
        await leases.release(lease.id, lease.token, actor="bench")
        times.append((time.perf_counter() - begun) * 1000)
    return times


async def crowded(folder: Path) -> dict[str, float]:
    """Without a network: with nobody else there, and beside leases that stay and others that are waited for."""
    async with leases_of(folder) as leases:
        alone = await pairs_of(leases, PAIRS)
        share = LeaseTerms(bytes=(DEVICES * 64 - DEVICES) * GIB // HELD, ttl_s=DAY_S, priority=3)
        for _ in range(HELD):
            await leases.acquire(share, identity=ANYONE)
        large = [LeaseTerms(bytes=32 * GIB, priority=5, devices=f"declared:{n % DEVICES}") for n in range(WAITING)]
        waiting = [asyncio.ensure_future(leases.acquire(each, identity=ANYONE, wait_s=DAY_S)) for each in large]
        await asyncio.sleep(0)
        beside = await pairs_of(leases, PAIRS)
        assert leases.count()[LeaseState.PENDING] == WAITING
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return {
        "no network, p50 ms": percentile(alone, 50),
        "no network, p99 ms": percentile(alone, 99),
        "beside the crowd, p50 ms": percentile(beside, 50),
        "beside the crowd, p99 ms": percentile(beside, 99),
    }


def round_of_figures() -> dict[str, float]:
    """All figures, once."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        coordinator = Coordinator(home / "data", config=CONFIG, prefix=["taskset", "-c", "0"])
        try:
            coordinator.start()
            figures = uvloop.run(measure(coordinator))
        finally:
            coordinator.close()
        bare = bare_commits(home)
        bare_figures = {"bare commit, p50 ms": percentile(bare, 50), "bare commit, p99 ms": percentile(bare, 99)}
        return figures | uvloop.run(crowded(home)) | bare_figures


def percentile(times: Sequence[float], share: float) -> float:
    """A percentile of some times."""
    return float(np.percentile(times, share))


def main() -> None:
    os.sched_setaffinity(0, {1})
    rounds = [round_of_figures() for _ in range(ROUNDS)]
    for name in rounds[0]:
        values = [figures[name] for figures in rounds]
        print(f"{name:30} median {statistics.median(values):10.2f}   from {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
