"""Models on GPUs of a fake driver: what they are charged, what they are found to hold, what becomes of them."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from moc.gpu.broker import Broker
from moc.gpu.device import DeviceState
from moc.gpu.eviction import Policy
from moc.gpu.monitor import GIVEN_UP_S, DeviceMonitor
from moc.hardware.nvml import NvmlDevices
from moc.inference.request import Info
from moc.kernel.clock import SystemClock
from moc.kernel.errors import NoCapacity
from moc.kernel.events import Event
from moc.models.catalogue import Catalogue
from moc.models.footprints import MARGIN, Footprints
from moc.models.manager import ModelManager
from moc.models.model import ModelSpec, ModelVersion, State
from moc.models.ports import Holding
from moc.models.resident import Resident
from moc.models.slot import Limits
from moc.resilience.deadline import NEVER
from moc.service.tenancy import Tenancy
from moc.store.memory import MemoryStore
from moc.testing.clock import ManualClock
from moc.testing.devices import FakeDevices, fake_reading
from moc.testing.nvml import GIB, FakeCard, FakeNvml, FakeProcess
from moc.testing.seat import FakeSeat
from moc.testing.workers import FakeSources, FakeWorkers

MIB = 2**20
PARENT, CHILD, STRANGER = 5_000_001, 5_000_002, 5_000_003
"""Process ids that no system gives out."""

ON_GPU = ModelSpec(runtime="python", source="file:a.py", devices="cuda", memory_bytes=10 * GIB, min_residency_s=0)


class Host:
    """Three cards of 80 GiB and main memory, with all that looks after models but their processes."""

    def __init__(self, store: MemoryStore, proc: Path, *more: FakeDevices) -> None:
        self.store = store
        self.clock = ManualClock()
        self.cards = [FakeCard(uuid=f"GPU-{number}") for number in range(3)]
        memory = FakeDevices(fake_reading("host", capacity_bytes=64 * GIB), kind="host")
        self.devices = DeviceMonitor(
            [NvmlDevices(FakeNvml(*self.cards), proc=proc), memory, *more],
            store=store,
            clock=self.clock,
            poll_interval_s=3600,
        )
        self.seat = FakeSeat(store)
        self.workers = FakeWorkers()
        self.catalogue = Catalogue(store=store, seat=self.seat, clock=SystemClock())
        self.footprints = Footprints(store=store, clock=SystemClock())
        self.tenancy = Tenancy(self.devices)
        self.manager = ModelManager(
            catalogue=self.catalogue,
            workers=self.workers,
            sources=FakeSources(),
            footprints=self.footprints,
            memory=self.tenancy,
            limits=Limits(memory_wait_s=0, drain_timeout_s=5),
            on_loaded=lambda reference, seconds: None,
        )
        self.broker = Broker(
            monitor=self.devices,
            tenants=self.tenancy,
            managed=lambda: {PARENT, CHILD},
            store=store,
            soft_limit_pct=100,
            policy=Policy(),
            clock=SystemClock(),
            on_evicted=lambda _: None,
        )
        self.tenancy.join(broker=self.broker, manager=self.manager)

    async def start(self) -> "Host":
        await self.seat.start()
        await self.devices.start()
        await self.catalogue.start()
        await self.manager.start()
        return self

    async def stop(self) -> None:
        await self.manager.stop()
        await self.devices.stop()

    async def load(self, name: str, spec: ModelSpec = ON_GPU) -> Resident:
        await self.manager.add(name, spec, actor="test")
        return await self.manager.ensure_ready(name, NEVER)

    def version(self, name: str) -> ModelVersion:
        return self.catalogue.entry(name).version

    def books(self) -> dict[tuple[str, str], int]:
        return {(charge.holder, charge.device): charge.bytes // GIB for charge in self.broker.charges()}

    async def told(self, kind: str) -> Event:
        """The first event of a kind, when it is there."""
        async for event in self.store.follow(after=0):
            if event.kind == kind:
                return event
        raise AssertionError("the stream of events ended")


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    it = MemoryStore()
    await it.start()
    yield it
    await it.stop()


@pytest.fixture
async def host(store: MemoryStore, tmp_path: Path) -> AsyncIterator[Host]:
    it = await Host(store, tmp_path).start()
    yield it
    await it.stop()


async def test_a_worker_sees_the_cards_it_was_charged_and_no_other(host: Host) -> None:
    await host.load("wide", replace(ON_GPU, shards=2))
    await host.load("narrow", replace(ON_GPU, devices=["cuda:2"]))
    await host.load("main", replace(ON_GPU, devices="auto"))
    seen = {launch.model: (launch.devices, launch.gpus) for launch in host.workers.launched}
    assert seen == {
        "wide@1": (("cuda:0", "cuda:1"), ("GPU-0", "GPU-1")),
        "narrow@1": (("cuda:2",), ("GPU-2",)),
        "main@1": (("host",), ()),
    }
    assert host.books() == {
        ("model:wide@1", "cuda:0"): 5,
        ("model:wide@1", "cuda:1"): 5,
        ("model:narrow@1", "cuda:2"): 10,
        ("model:main@1", "host"): 10,
    }


async def test_an_instance_is_seen_by_its_own_name(host: Host) -> None:
    host.cards[1].mig = [FakeCard(uuid="MIG-7", total=20 * GIB, instance=0)]
    await host.devices.refresh()
    await host.load("small", replace(ON_GPU, devices=["cuda:1/mig:0"]))
    assert host.workers.launched[0].gpus == ("MIG-7",)


async def test_transformers_go_on_a_gpu_by_themselves(host: Host) -> None:
    auto = replace(ON_GPU, runtime="transformers", devices="auto")
    await host.load("fast", auto)
    await host.load("slow", replace(auto, options={"device": "cpu"}))
    assert set(host.books()) == {("model:fast@1", "cuda:0"), ("model:slow@1", "host")}


async def test_what_one_that_sleeps_keeps_of_a_card_is_not_given_away(host: Host) -> None:
    host.workers.info = Info(("chat",), "fake", sleeps=True)
    spec = replace(ON_GPU, devices=["cuda:0"], memory_bytes=60 * GIB)
    first = await host.load("first", spec)
    await host.load("second", replace(spec, source="file:b.py"))  # there is no room for both
    assert host.workers.asleep == [first.reference]
    assert host.books() == {("model:second@1", "cuda:0"): 60}
    host.cards[0].compute, host.cards[0].used = [FakeProcess(STRANGER, 15 * GIB)], 15 * GIB
    await host.devices.refresh()
    version = host.version("first")
    assert host.tenancy.has_room(version, {"cuda": 5 * GIB})
    assert not host.tenancy.has_room(version, {"cuda": 6 * GIB})
    assert not host.tenancy.is_short()
    await host.manager.ensure_ready("first", NEVER)  # awake in place of the other, which sleeps
    assert host.workers.asleep == ["second@1"]
    assert host.books() == {("model:first@1", "cuda:0"): 60}
    host.cards[0].used = 21 * GIB
    host.cards[0].compute = [FakeProcess(STRANGER, 21 * GIB)]
    await host.devices.refresh()
    assert host.tenancy.is_short()


async def test_what_its_processes_hold_of_the_cards_is_what_is_learned(host: Host) -> None:
    spec = replace(ON_GPU, shards=2, memory_bytes=None)
    resident = await host.load("wide", spec)
    first, second, _ = host.cards
    first.compute = [FakeProcess(PARENT, 7 * GIB), FakeProcess(STRANGER, 20 * GIB)]
    second.compute, second.graphics = [FakeProcess(PARENT, 5 * GIB)], [FakeProcess(CHILD, 4 * GIB)]
    first.used, second.used = 27 * GIB, 9 * GIB
    host.workers.trees[resident.worker_id] = frozenset({PARENT, CHILD})
    host.workers.resident_bytes = 3 * GIB
    await host.devices.refresh()
    version = host.version("wide")
    assert await host.footprints.beside(version, device_kind="cuda") is None
    await host.manager.unload("wide", NEVER, actor="test")
    learned = await host.footprints.known(version, device_kind="cuda")
    assert learned is not None
    assert (learned.bytes, learned.how) == (round(9 * GIB * (1 + MARGIN)), "learned")
    assert await host.footprints.beside(version, device_kind="cuda") == 3 * GIB
    on_host = await host.footprints.known(version, device_kind="host")
    assert on_host is not None
    assert on_host.how != "learned"


async def test_what_it_holds_over_its_charge_is_charged_on_every_device(host: Host) -> None:
    resident = await host.load("a")
    host.cards[0].compute, host.cards[0].used = [FakeProcess(PARENT, 12 * GIB)], 12 * GIB
    await host.devices.refresh()
    host.tenancy.measure(resident.reference, 3 * GIB, {PARENT})
    assert host.books() == {("model:a@1", "cuda:0"): 12, ("model:a@1", "host"): 3}
    assert host.broker.ledger().free_bytes("cuda:0") == 68 * GIB
    assert {tenant.device for tenant in host.tenancy.tenants()} == {"cuda:0", "host"}
    await host.manager.unload("a", NEVER, actor="test")
    assert host.books() == {}
    assert host.tenancy.measure(resident.reference, 3 * GIB, {PARENT}) is None


async def test_a_declared_device_is_charged_its_share_of_what_is_really_taken_of_main_memory(
    store: MemoryStore, tmp_path: Path
) -> None:
    declared = [fake_reading(f"declared:{n}", capacity_bytes=64 * GIB) for n in range(2)]
    host = Host(store, tmp_path, FakeDevices(*declared))
    await host.start()
    resident = await host.load("wide", replace(ON_GPU, devices="declared", memory_bytes=2 * GIB, shards=2))
    for _ in range(2):
        held = host.tenancy.measure(resident.reference, 6 * GIB, {PARENT})
        assert held == Holding(kind="declared", bytes=3 * GIB)
    whole = ("model:wide@1", "host")
    assert host.books() == {("model:wide@1", "declared:0"): 3, ("model:wide@1", "declared:1"): 3, whole: 6}
    await host.stop()


async def test_the_next_coordinator_charges_all_that_is_adopted(host: Host, tmp_path: Path) -> None:
    await host.load("wide", replace(ON_GPU, shards=3, priority=2, group="g"))
    before = host.broker.charges()
    left = host.workers.workers()
    await host.stop()
    await host.store.leave_seat((await host.store.seats())[0])
    successor = Host(host.store, tmp_path)
    successor.workers.left = left
    await successor.start()
    assert successor.broker.charges() == before
    assert [(charge.priority, charge.group) for charge in before] == [(2, "g")] * 3
    successor.manager.loaded()[0][1].enter()
    with pytest.raises(NoCapacity, match="in flight"):
        await successor.load("other", replace(ON_GPU, priority=2, group="g"))
    await successor.stop()


async def test_models_of_one_group_displace_each_other(host: Host) -> None:
    await host.load("first", replace(ON_GPU, group="g"))
    await host.load("second", replace(ON_GPU, group="g"))
    assert set(host.books()) == {("model:second@1", "cuda:0")}
    told = await host.told("model.evicted")
    assert (told.subject, told.reason) == ("first@1", "group")


async def test_its_own_residency_goes_before_the_coordinators(host: Host) -> None:
    await host.load("stays", replace(ON_GPU, memory_bytes=80 * GIB, min_residency_s=3600, devices=["cuda:0"]))
    with pytest.raises(NoCapacity, match="80GiB residency") as refused:
        await host.load("wants", replace(ON_GPU, devices=["cuda:0"]))
    assert refused.value.details["reason"] == "residency"


async def test_an_explanation_names_every_device(host: Host) -> None:
    await host.manager.add("wide", replace(ON_GPU, shards=2), actor="test")
    told = host.tenancy.explain(host.version("wide"), {"cuda": 5 * GIB})
    assert (told.fits, told.needed_bytes) == (True, 5 * GIB)
    assert [(each.device, each.free_after_bytes // GIB) for each in told.placements] == [("cuda:0", 75), ("cuda:1", 75)]
    await host.manager.add("wider", replace(ON_GPU, shards=4), actor="test")
    told = host.tenancy.explain(host.version("wider"), {"cuda": 3 * GIB})
    assert (told.fits, told.reason, told.placements) == (False, "no_device", [])
    assert "needs 4 device(s) of cuda online" in told.message


async def test_a_model_on_a_lost_card_fails_and_is_loaded_elsewhere_when_it_is_asked_for(host: Host) -> None:
    first = await host.load("a", replace(ON_GPU, devices=["cuda:0", "cuda:1"]))
    host.cards[0].fails = 15
    await host.devices.refresh()
    assert host.devices.states()["cuda:0"] is DeviceState.LOST
    host.clock.advance(GIVEN_UP_S)
    host.broker.abandon()
    assert host.manager.find("a") is None
    failed = await host.told("model.failed")
    assert failed.reason == "runtime_unhealthy"
    assert "its device cuda:0 is lost" in failed.data["message"]
    assert host.workers.stopped == [(first.worker_id, "DeviceLost")]
    assert (host.catalogue.entry("a").status.state, host.books()) == (State.FAILED, {})
    host.broker.abandon()
    again = await host.manager.ensure_ready("a", NEVER)
    assert again.worker_id != first.worker_id
    assert set(host.books()) == {("model:a@1", "cuda:1")}
