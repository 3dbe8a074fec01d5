"""Decisions: where a model goes when devices are full and when they are not, and finding one that is ready.

There is no I/O in them, so what is measured is processor time: others may use the machine meanwhile. Run it with
`make bench`.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from moc.gpu.eviction import EVICTIONS_MAX, Eviction, History, Policy, Tenant, plan
from moc.gpu.ledger import Account, Charge, Demand, Ledger
from moc.gpu.plan import Plan, Refusal
from moc.kernel.clock import SystemClock
from moc.models.catalogue import Catalogue
from moc.models.footprints import Footprints
from moc.models.manager import ModelManager
from moc.models.model import ModelSpec
from moc.models.slot import Limits
from moc.resilience.deadline import NEVER
from moc.store.memory import MemoryStore
from moc.testing.seat import FakeSeat
from moc.testing.workers import FakeMemory, FakeSources, FakeWorkers

GIB = 2**30
DECISIONS = 1_000
FINDS = 20_000
HISTORY = History(tuple(Eviction(holder=f"model:x{n}@1", successor="model:y@1") for n in range(EVICTIONS_MAX)))


def crowd(devices: int, models: int, *, spare: int = 0) -> tuple[Ledger, list[Tenant]]:
    """Devices, each with its share of the models and `spare` bytes left."""
    chance = random.Random(1)
    accounts, charges, tenants = {}, [], []
    for number in range(devices):
        device, limit = f"cuda:{number}", models // devices * GIB + spare
        accounts[device] = Account(device=device, kind="cuda", capacity_bytes=limit, limit_bytes=limit)
    for number in range(models):
        holder, device = f"model:m{number}@1", f"cuda:{number % devices}"
        charges.append(Charge(holder=holder, device=device, bytes=GIB))
        used, uses, reload_s = chance.uniform(0, 900), chance.randint(1, 5000), chance.uniform(1, 60)
        tenants.append(Tenant(holder=holder, device=device, bytes=GIB, last_used_at=used, uses=uses, reload_s=reload_s))
    return Ledger(accounts, tuple(charges)), tenants


def decide(demand: Demand, ledger: Ledger, tenants: Sequence[Tenant]) -> tuple[Plan | Refusal, list[float]]:
    """The decision, and the milliseconds it took each time."""
    times = []
    for _ in range(DECISIONS):
        begun = time.thread_time()
        books = Ledger(ledger.accounts, ledger.charges)  # each decision has its own
        answer = plan(demand, books, tenants, policy=Policy(), now=1000.0, history=HISTORY)
        times.append((time.thread_time() - begun) * 1000)
    return answer, times


def decisions(devices: int, models: int) -> None:
    """What fits, what fits once others leave, and what fits nowhere."""
    full, roomy = crowd(devices, models), crowd(devices, models, spare=8 * GIB)
    demand, huge = (Demand(holder="model:new@1", bytes=size * GIB) for size in (6, 10_000))
    fits, times = decide(demand, *roomy)
    assert isinstance(fits, Plan)
    assert not fits.victims
    show(f"room, {devices} devices, {models} models", times, "ms")
    evicts, times = decide(demand, *full)
    assert isinstance(evicts, Plan)
    assert evicts.victims
    show(f"eviction, {devices} devices, {models} models", times, "ms")
    refused, times = decide(huge, *full)
    assert isinstance(refused, Refusal)
    show(f"refusal, {devices} devices, {models} models", times, "ms")


async def ready() -> None:
    """A model that is loaded, asked for as each request does."""
    store, clock = MemoryStore(), SystemClock()
    seat = FakeSeat(store)
    catalogue = Catalogue(store=store, seat=seat, clock=clock)
    manager = ModelManager(
        catalogue=catalogue,
        workers=FakeWorkers(),
        sources=FakeSources(),
        footprints=Footprints(store=store, clock=clock),
        memory=FakeMemory(),
        limits=Limits(),
        on_loaded=lambda reference, seconds: None,
    )
    for part in (store, seat, catalogue, manager):
        await part.start()
    await manager.add("a", ModelSpec(runtime="python", source="file:a.py", ttl_s=0), actor="bench")
    await manager.ensure_ready("a", NEVER)
    show("ensure_ready of a ready model", await timed(lambda: manager.ensure_ready("a", NEVER)), "µs")
    for part in (manager, store):
        await part.stop()


async def timed(work: Callable[[], Awaitable[object]]) -> list[float]:
    """The microseconds each of many goes took."""
    times = []
    for _ in range(FINDS):
        begun = time.thread_time()
        await work()
        times.append((time.thread_time() - begun) * 1e6)
    return times


def show(name: str, times: Sequence[float], unit: str) -> None:
    """One line."""
    print(f"{name:36} p50 {np.percentile(times, 50):8.2f} {unit}   p99 {np.percentile(times, 99):8.2f} {unit}")


def main() -> None:
    for models in (200, 1_600):
        decisions(8, models)
    asyncio.run(ready())


if __name__ == "__main__":
    main()
