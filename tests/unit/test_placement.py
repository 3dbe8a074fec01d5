"""Holders on several devices and in groups, as the broker books them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moc.gpu.broker import Broker, Grant
from moc.gpu.eviction import Policy, Tenant
from moc.gpu.ledger import Charge, Demand
from moc.gpu.monitor import GIVEN_UP_S, DeviceMonitor
from moc.gpu.plan import Reason
from moc.gpu.pressure import Pressure
from moc.kernel.clock import SystemClock
from moc.kernel.errors import NoCapacity
from moc.resilience.deadline import NEVER, Deadline
from moc.store.memory import MemoryStore
from moc.testing.clock import ManualClock
from moc.testing.devices import FakeDevices, fake_reading

NOW = Deadline.after(0)


class Tenants:
    """Models that leave at once, and are as urgent as can be evicted."""

    def __init__(self) -> None:
        self.broker: Broker | None = None
        self.loaded: dict[str, Demand] = {}
        self.lost: list[tuple[str, str]] = []
        self.told = asyncio.Event()

    def tenants(self) -> Sequence[Tenant]:
        assert self.broker is not None
        return [
            Tenant(holder=charge.holder, device=charge.device, bytes=charge.bytes, group=demand.group)
            for holder, demand in self.loaded.items()
            for charge in self.broker.held(holder)
        ]

    async def evict(self, holder: str, *, reason: str, because: str) -> None:
        assert self.broker is not None
        del self.loaded[holder]
        self.broker.release(holder)

    def lose(self, holder: str, *, because: str) -> None:
        self.lost.append((holder, because))
        self.told.set()


class Host:
    """Cards of so many bytes each, and main memory; all of them may be given away."""

    def __init__(self, *cards: int) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore()
        self.cards = FakeDevices(
            *(fake_reading(f"cuda:{n}", capacity_bytes=size) for n, size in enumerate(cards)), kind="cuda"
        )
        self.memory = FakeDevices(fake_reading("host", capacity_bytes=1000), kind="host")
        self.devices = DeviceMonitor(
            [self.cards, self.memory], store=self.store, clock=self.clock, poll_interval_s=3600
        )
        self.models = Tenants()
        self.broker = Broker(
            monitor=self.devices,
            tenants=self.models,
            managed=lambda: (),
            store=self.store,
            soft_limit_pct=100,
            policy=Policy(min_residency_s=0),
            clock=SystemClock(),
            on_evicted=lambda _: None,
        )
        self.models.broker = self.broker

    async def load(self, demand: Demand) -> Grant:
        """Charge a model and call it loaded."""
        grant = await self.broker.reserve(demand, NOW)
        self.models.loaded[demand.holder] = demand
        return grant

    def books(self) -> dict[tuple[str, str], int]:
        return {(charge.holder, charge.device): charge.bytes for charge in self.broker.charges()}


@asynccontextmanager
async def running(*cards: int) -> AsyncIterator[Host]:
    host = Host(*cards)
    await host.devices.start()
    try:
        yield host
    finally:
        await host.devices.stop()


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with running(100, 100, 100) as made:
        yield made


def model(name: str, size: int, *, devices: str = "cuda", shards: int = 1, group: str = "") -> Demand:
    return Demand(holder=f"model:{name}", bytes=size, devices=devices, shards=shards, group=group)


async def test_each_shard_is_charged_and_all_are_given_back(host: Host) -> None:
    grant = await host.load(model("wide", 60, shards=2))
    assert (grant.devices, grant.device, grant.bytes) == (("cuda:0", "cuda:1"), "cuda:0", 60)
    assert host.books() == {("model:wide", "cuda:0"): 60, ("model:wide", "cuda:1"): 60}
    charged = [event for event in await host.store.events() if event.kind == "device.charged"]
    assert [(each.subject, each.data["free_after_bytes"]) for each in charged] == [("cuda:0", 40), ("cuda:1", 40)]
    host.broker.release("model:wide")
    assert host.books() == {}


async def test_shards_that_fit_only_in_part_are_not_charged(host: Host) -> None:
    host.broker.adopt(Charge(holder="lease:a", device="cuda:0", bytes=50))
    host.broker.adopt(Charge(holder="lease:b", device="cuda:1", bytes=50))
    before = host.books()
    with pytest.raises(NoCapacity, match="on each of 2 devices"):
        await host.load(model("wide", 60, shards=2))
    assert host.books() == before


async def test_one_that_leaves_two_devices_is_evicted_once(host: Host) -> None:
    await host.load(model("wide", 100, shards=3))
    grant = await host.load(model("next", 80, shards=2))
    assert grant.evicted == ("model:wide",)
    evicted = [event for event in await host.store.events() if event.kind == "model.evicted"]
    assert [(each.subject, each.data["bytes"]) for each in evicted] == [("wide", 200)]


async def test_nobody_leaves_in_vain_where_one_leaves_two_devices() -> None:
    async with running(100, 100) as host:
        host.broker.adopt(Charge(holder="model:wide", device="cuda:0", bytes=60))
        host.broker.adopt(Charge(holder="model:wide", device="cuda:1", bytes=40))
        host.broker.adopt(Charge(holder="model:small", device="cuda:1", bytes=40))
        host.models.loaded = {"model:wide": model("wide", 60, shards=2), "model:small": model("small", 40)}
        grant = await host.load(model("next", 60, shards=2))
        assert grant.evicted == ("model:wide",)


async def test_what_is_held_beside_is_charged_and_given_back_too(host: Host) -> None:
    await host.load(model("a", 60))
    host.broker.observe("model:a", 300, device="host")
    host.broker.observe("model:a", 200, device="host")
    assert host.books() == {("model:a", "cuda:0"): 60, ("model:a", "host"): 300}
    assert host.broker.ledger().free_bytes("host") == 700
    host.broker.release("model:a")
    assert host.books() == {}


async def test_a_need_that_differs_by_kind_is_charged_by_kind(host: Host) -> None:
    either = Demand(holder="model:a", bytes=90, by_kind={"cuda": 90, "host": 400}, devices=("cuda", "host"))
    for number in range(3):
        host.broker.adopt(Charge(holder=f"lease:{number}", device=f"cuda:{number}", bytes=50))
    grant = await host.load(either)
    assert (grant.devices, grant.bytes) == (("host",), 400)
    assert host.books()["model:a", "host"] == 400
    host.broker.release("lease:1")
    host.broker.release("model:a")
    assert host.books() == {("lease:0", "cuda:0"): 50, ("lease:2", "cuda:2"): 50}
    assert (await host.load(either)).bytes == 90


async def test_one_of_its_group_that_is_only_loading_is_waited_for(host: Host) -> None:
    await host.broker.reserve(model("first", 10, group="g"), NOW)
    with pytest.raises(NoCapacity, match=r"never loaded beside model:first of its group 'g'") as refused:
        await host.load(model("second", 10, group="g"))
    assert refused.value.details["reason"] == Reason.HELD
    waiting = asyncio.create_task(host.broker.reserve(model("second", 10, group="g"), NEVER))
    host.broker.release("model:first")
    async with asyncio.timeout(10):
        assert (await waiting).holder == "model:second"


async def test_too_few_devices_for_the_shards_are_named(host: Host) -> None:
    with pytest.raises(NoCapacity, match=r"needs 4 device\(s\) of cuda online; .*cuda:2 \(cuda, online\)"):
        await host.load(model("wide", 1, shards=4))


async def test_models_on_a_device_that_stays_lost_are_ended(host: Host) -> None:
    await host.load(model("wide", 60, shards=2))
    await host.load(model("other", 60))
    host.broker.observe("model:other", 10, device="host")
    host.cards.readings[1] = fake_reading("cuda:1", capacity_bytes=100, lost=True, problem="fell off the bus")
    host.memory.error = OSError("nobody can say")
    await host.devices.refresh()
    host.broker.abandon()
    assert host.models.lost == []
    host.clock.advance(GIVEN_UP_S)
    pressure = Pressure(host.broker, interval_s=0.01, threshold_pct=100)
    await pressure.start()
    async with asyncio.timeout(10):
        await host.models.told.wait()
    await pressure.stop()
    assert set(host.models.lost) == {("model:wide", "its device cuda:1 is lost: fell off the bus")}


@settings(max_examples=60, deadline=None)
@given(
    cards=st.lists(st.integers(20, 100), min_size=1, max_size=4),
    steps=st.lists(
        st.one_of(
            st.tuples(
                st.just("load"),
                st.integers(0, 5),
                st.integers(1, 90),
                st.integers(1, 3),
                st.sampled_from(["", "g", "h"]),
            ),
            st.tuples(st.just("release"), st.integers(0, 5)),
            st.tuples(st.just("reserve"), st.integers(6, 8), st.integers(1, 90), st.integers(1, 3), st.just("g")),
        ),
        max_size=25,
    ),
)
async def test_whatever_comes_nobody_gets_half_and_no_device_gives_more_than_it_has(
    cards: list[int], steps: list[tuple[str, int, int, int, str]]
) -> None:
    async with running(*cards) as host:
        wanted: dict[str, Demand] = {}
        for action, number, *rest in steps:
            holder = f"model:{number}"
            if action == "release":
                host.models.loaded.pop(holder, None)
                host.broker.release(holder)
            elif not host.broker.held(holder):
                size, shards, group = rest
                wanted[holder] = model(str(number), size, shards=shards, group=group)  # type: ignore[arg-type]
                try:
                    await (host.load(wanted[holder]) if action == "load" else host.broker.reserve(wanted[holder], NOW))
                except NoCapacity:
                    assert host.broker.held(holder) == []
            check(host, wanted)


def check(host: Host, wanted: dict[str, Demand]) -> None:
    assert all(free >= 0 for free in host.broker.ledger().free().values())
    holders = {charge.holder for charge in host.broker.charges()}
    for holder in holders:
        charges = host.broker.held(holder)
        assert [charge.bytes for charge in charges] == [wanted[holder].bytes] * wanted[holder].shards
        assert len({charge.device for charge in charges}) == wanted[holder].shards
    groups = [wanted[holder].group for holder in holders if wanted[holder].group]
    assert len(groups) == len(set(groups))
