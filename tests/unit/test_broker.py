"""The broker against devices whose readings the test sets: charging, evicting, waiting, refusing, relieving."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest

from moc.gpu.broker import Broker, Grant
from moc.gpu.eviction import Order, Policy, Tenant
from moc.gpu.ledger import Charge, Demand
from moc.gpu.monitor import DeviceMonitor
from moc.gpu.plan import Plan, Refusal
from moc.gpu.pressure import Pressure
from moc.kernel.clock import SystemClock
from moc.kernel.errors import NoCapacity
from moc.resilience.deadline import NEVER, Deadline
from moc.store.memory import MemoryStore
from moc.testing.devices import FakeDevices, fake_reading

MIB = 2**20
LIMIT = 900 * MIB
OURS = 4711
DRAIN_AFTER_S = 0.5


@dataclass
class Models:
    """The Tenants port: models that leave when asked, after `gate` opens."""

    loaded: dict[str, Tenant] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    broker: Broker | None = None

    def tenants(self) -> Sequence[Tenant]:
        return list(self.loaded.values())

    async def evict(self, holder: str, *, reason: str, because: str) -> None:
        await self.gate.wait()
        del self.loaded[holder]
        self.left.append(holder)
        assert self.broker is not None
        self.broker.release(holder)

    def lose(self, holder: str, *, because: str) -> None:
        self.lost[holder] = because


class Host:
    """One device of 1000 MiB, 900 of which are given away at most."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.source = FakeDevices(fake_reading(capacity_bytes=1000 * MIB))
        self.monitor = DeviceMonitor([self.source], store=self.store, clock=SystemClock(), poll_interval_s=60)
        self.models = Models()
        self.models.gate.set()
        self.counted: list[str] = []
        self.broker = Broker(
            monitor=self.monitor,
            tenants=self.models,
            managed=lambda: {OURS},
            store=self.store,
            soft_limit_pct=90,
            policy=Policy(min_residency_s=0, drain_after_s=DRAIN_AFTER_S),
            clock=SystemClock(),
            on_evicted=self.counted.append,
        )
        self.models.broker = self.broker

    def use(self, used_mib: int, ours_mib: int = 0) -> None:
        """What the device says is in use, and how much of it by us."""
        processes = {OURS: ours_mib * MIB} if ours_mib else {}
        self.source.readings = [fake_reading(capacity_bytes=1000 * MIB, used_bytes=used_mib * MIB, processes=processes)]

    async def load(self, name: str, mib: int, **traits: int | bool) -> None:
        """Charge a model and call it loaded."""
        holder = f"model:{name}"
        grant = await self.broker.reserve(demand(name, mib), NEVER)
        self.models.loaded[holder] = Tenant(holder=holder, device=grant.device, bytes=grant.bytes, **traits)  # type: ignore[arg-type]

    async def kinds(self) -> list[str]:
        return [event.kind for event in await self.store.events()]


def demand(name: str, mib: int, priority: int = 5) -> Demand:
    return Demand(holder=f"model:{name}", bytes=mib * MIB, priority=priority)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()
    await host.monitor.start()
    yield host
    await host.monitor.stop()


async def test_a_charge_is_there_before_anything_is_loaded_and_until_it_is_released(host: Host) -> None:
    grant = await host.broker.reserve(demand("a", 300), NEVER)
    assert (grant.device, grant.bytes, grant.evicted) == ("declared:0", 300 * MIB, ())
    assert host.broker.ledger().free() == {"declared:0": LIMIT - 300 * MIB}
    host.broker.release("model:a")
    host.broker.release("model:a")
    assert host.broker.ledger().free() == {"declared:0": LIMIT}


async def test_what_others_use_is_never_given_away(host: Host) -> None:
    host.use(500)
    with pytest.raises(NoCapacity, match="500MiB unmanaged"):
        await host.broker.reserve(demand("a", 500), Deadline.after(0))
    await host.broker.reserve(demand("a", 400), NEVER)


async def test_what_a_charged_process_uses_is_not_counted_twice(host: Host) -> None:
    await host.load("a", 300)
    host.use(250, ours_mib=250)
    await host.broker.reserve(demand("b", 600), Deadline.after(0))


async def test_a_holder_that_grew_is_charged_what_it_holds(host: Host) -> None:
    await host.load("a", 300)
    host.broker.observe("model:a", 350 * MIB, device="declared:0")
    host.broker.observe("model:a", 200 * MIB, device="declared:0")
    host.broker.observe("model:b", 10 * MIB, device="declared:0")
    assert host.broker.charges() == [Charge(holder="model:a", device="declared:0", bytes=350 * MIB)]


async def test_how_much_is_given_away_and_who_leaves_for_it_may_change_meanwhile(host: Host) -> None:
    await host.load("costly", 400, reload_s=1000, uses=1000, last_used_at=1)
    await host.load("recent", 400, last_used_at=2)
    host.broker.adjust(soft_limit_pct=95, policy=Policy(order=Order.LRU, min_residency_s=0))
    await host.broker.reserve(demand("next", 550), NEVER)
    assert host.models.left == ["model:costly"]


async def test_pressure_goes_by_another_threshold_at_once(host: Host) -> None:
    await host.load("a", 500)
    pressure = Pressure(host.broker, interval_s=3600, threshold_pct=90)
    await pressure.start()
    pressure.adjust(interval_s=0.01, threshold_pct=40)
    async with asyncio.timeout(10):
        async for event in host.store.follow(after=0):
            if event.kind == "model.evicted":
                break
    await pressure.stop()


async def test_one_leaves_so_that_another_fits_and_the_log_says_why(host: Host) -> None:
    await host.load("a", 500)
    grant = await host.broker.reserve(demand("b", 600), NEVER)
    assert grant.evicted == ("model:a",)
    assert host.models.left == ["model:a"]
    assert host.counted == ["capacity"]
    evicted = next(event for event in await host.store.events() if event.kind == "model.evicted")
    assert (evicted.subject, evicted.data["successor"]) == ("a", "model:b")
    assert evicted.data["because"]


async def test_who_leaves_does_not_take_the_room_it_made(host: Host) -> None:
    await host.load("a", 600)
    host.models.gate.clear()
    comes = asyncio.create_task(host.broker.reserve(demand("b", 600), Deadline.after(5)))
    async with asyncio.timeout(10):
        async for event in host.store.follow(after=0):
            if event.kind == "model.evicted":
                break
    back = asyncio.create_task(host.broker.reserve(demand("a", 600), Deadline.after(0)))
    host.models.gate.set()
    assert (await comes).evicted == ("model:a",)
    with pytest.raises(NoCapacity):
        await back
    assert host.models.left == ["model:a"]


async def test_equals_that_are_always_busy_leave_for_who_has_waited_long(host: Host) -> None:
    await host.load("a", 600, in_flight=1)
    with pytest.raises(NoCapacity, match="in flight"):
        await host.broker.reserve(demand("b", 600), Deadline.after(DRAIN_AFTER_S / 10))
    assert (await host.broker.reserve(demand("b", 600), Deadline.after(60))).evicted == ("model:a",)


async def test_memory_that_is_not_really_free_is_not_given_again(host: Host) -> None:
    await host.load("a", 500)
    host.use(500)  # its process is gone from the books, but the device still says 500 MiB are in use
    with pytest.raises(NoCapacity) as refused:
        await host.broker.reserve(demand("b", 600), Deadline.after(0))
    assert host.models.left == []
    assert refused.value.details["evicted"] == []


async def test_the_pinned_stay_and_the_refusal_says_so(host: Host) -> None:
    await host.load("a", 500, pinned=True)
    with pytest.raises(NoCapacity, match="500MiB pinned"):
        await host.broker.reserve(demand("b", 600), NEVER)
    assert "device.refused" in await host.kinds()


async def test_a_charge_made_at_once_takes_no_room_from_whom_others_leave_for(host: Host) -> None:
    await host.load("a", 600)
    host.models.gate.clear()
    plan = host.broker.charge(demand("b", 600))
    assert isinstance(plan, Plan)
    assert [victim.holder for victim in plan.victims] == ["model:a"]
    comes = asyncio.create_task(host.broker.reserve(demand("b", 600), Deadline.after(5)))
    async with asyncio.timeout(10):
        async for event in host.store.follow(after=0):
            if event.kind == "model.evicted":
                break
    assert isinstance(host.broker.charge(demand("c", 100)), Plan)
    host.models.gate.set()
    await comes
    assert isinstance(host.broker.charge(demand("c", 100)), Grant)
    assert isinstance(host.broker.charge(demand("d", 1000)), Refusal)
    assert {charge.holder for charge in host.broker.charges()} == {"model:b", "model:c"}


async def test_what_is_free_is_known_without_counting_every_charge(host: Host) -> None:
    dice = random.Random(3)
    for _ in range(300):
        name, size = dice.choice("abcdef"), dice.randint(1, 300)
        match dice.randrange(4):
            case 0:
                host.broker.adopt(Charge(holder=f"model:{name}", device="declared:0", bytes=size))
            case 1:
                host.broker.observe(f"model:{name}", size, device="declared:0")
            case 2:
                host.broker.charge(demand(name, size))
            case _:
                host.broker.release(f"model:{name}")
        assert host.broker.free(host.broker.accounts()) == host.broker.ledger().free()


async def test_a_demand_waits_for_a_model_that_is_only_loading(host: Host) -> None:
    await host.broker.reserve(demand("a", 500), NEVER)
    waiting = asyncio.create_task(host.broker.reserve(demand("b", 600), NEVER))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    host.broker.release("model:a")
    async with asyncio.timeout(5):
        assert (await waiting).bytes == 600 * MIB


async def test_two_demands_never_get_the_same_bytes(host: Host) -> None:
    results = await asyncio.gather(
        *(host.broker.reserve(demand(name, 400), Deadline.after(0.2)) for name in "abcd"), return_exceptions=True
    )
    assert sum(1 for result in results if not isinstance(result, BaseException)) == 2
    assert host.broker.ledger().charged_bytes("declared:0") == 800 * MIB


async def test_explaining_changes_nothing(host: Host) -> None:
    await host.load("a", 500)
    before = host.broker.charges(), await host.kinds()
    told = host.broker.explain(demand("b", 600))
    assert isinstance(told, Plan)
    assert [victim.holder for victim in told.victims] == ["model:a"]
    assert (host.broker.charges(), await host.kinds()) == before


async def test_models_leave_before_outside_processes_fill_the_device(host: Host) -> None:
    await host.load("a", 300)
    await host.load("b", 300)
    host.use(700, ours_mib=300)  # 400 MiB by nobody we know; 600 charged
    await host.monitor.refresh()
    await host.broker.relieve(90)
    assert len(host.models.left) == 1
    assert host.broker.ledger(90).free()["declared:0"] >= 0
    await host.broker.relieve(90)
    assert len(host.models.left) == 1
