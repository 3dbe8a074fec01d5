"""What the monitor makes of sources that answer, hang, fail and forget."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from moc.gpu.device import DeviceState, Fault, in_order, unmanaged_bytes
from moc.gpu.monitor import DeviceMonitor
from moc.kernel.errors import NotFound
from moc.kernel.events import Event
from moc.store.memory import MemoryStore
from moc.testing.clock import ManualClock
from moc.testing.devices import FakeDevices, fake_reading
from moc.testing.seat import FakeSeat

NEVER_S = 3600.0
TIMEOUT_S = 0.5


class Bench:
    """A monitor over a card that the test breaks and memory that stays well."""

    def __init__(self, *, poll_interval_s: float = 3600.0) -> None:
        self.store = MemoryStore(ManualClock())
        self.seat = FakeSeat(self.store)
        self.card = FakeDevices(fake_reading("cuda:0", used_bytes=7), kind="cuda")
        self.memory = FakeDevices(fake_reading("host", used_bytes=5), kind="host")
        self.monitor = self.another(poll_interval_s=poll_interval_s)

    def another(self, *, poll_interval_s: float = 3600.0) -> DeviceMonitor:
        """As the next coordinator would have it."""
        return DeviceMonitor(
            [self.card, self.memory],
            store=self.store,
            seat=self.seat,
            clock=ManualClock(),
            poll_interval_s=poll_interval_s,
            read_timeout_s=TIMEOUT_S,
        )

    async def events(self) -> list[tuple[str, str, str]]:
        """Kind, subject and reason of all that happened, without the beginning."""
        return [(event.kind, event.subject, event.reason) for event in (await self.store.events())[2:]]

    async def awaited(self, kind: str) -> Event:
        """The first event of a kind, when it is there."""
        async with asyncio.timeout(10):
            async for event in self.store.follow(after=0):
                if event.kind == kind:
                    return event
        raise AssertionError("the stream of events ended")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    await made.store.start()
    await made.seat.start()
    await made.monitor.start()
    yield made
    made.card.gate.set()
    await made.monitor.stop()
    await made.store.stop()


async def test_what_is_found_is_online_and_recorded(bench: Bench) -> None:
    assert bench.monitor.states() == {"cuda:0": DeviceState.ONLINE, "host": DeviceState.ONLINE}
    assert {key: reading.used_bytes for key, reading in bench.monitor.readings().items()} == {"cuda:0": 7, "host": 5}
    found = {(event.kind, event.subject, event.reason) for event in await bench.store.events()}
    assert found == {("device.online", "cuda:0", "Found"), ("device.online", "host", "Found")}
    await bench.monitor.refresh()
    assert await bench.events() == []


async def test_a_source_that_hangs_loses_its_devices_and_nothing_else_waits(bench: Bench) -> None:
    bench.card.gate.clear()
    bench.memory.readings = [fake_reading("host", used_bytes=6)]
    await bench.monitor.refresh("host")
    async with asyncio.timeout(20 * TIMEOUT_S):
        readings = await bench.monitor.refresh()
    assert {key: reading.used_bytes for key, reading in readings.items()} == {"host": 6}
    lost = bench.monitor.status("cuda:0")
    assert (lost.state, lost.reading, lost.problem) == (DeviceState.LOST, None, "no answer within 0.5 s")
    reads = bench.card.reads
    await asyncio.gather(*(bench.monitor.refresh() for _ in range(20)))
    assert bench.card.reads == reads, "nothing more is asked of a driver that hangs"
    assert await bench.events() == [("device.lost", "cuda:0", "Unresponsive")]

    bench.card.gate.set()
    while bench.monitor.states()["cuda:0"] is DeviceState.LOST:  # the read that hung may end after this one began
        await bench.monitor.refresh()
    assert (await bench.events())[1:] == [("device.online", "cuda:0", "Answered")]


async def test_a_source_that_fails_says_why_and_comes_back(bench: Bench) -> None:
    bench.card.error = RuntimeError("the driver is gone")
    await bench.monitor.refresh()
    assert bench.monitor.status("cuda:0").problem == "RuntimeError: the driver is gone"
    assert bench.monitor.states() == {"cuda:0": DeviceState.LOST, "host": DeviceState.ONLINE}
    bench.card.error = None
    assert set(await bench.monitor.refresh("cuda:0")) == {"cuda:0", "host"}
    assert bench.monitor.status("cuda:0").problem == ""
    assert await bench.events() == [
        ("device.lost", "cuda:0", "ReadFailed"),
        ("device.online", "cuda:0", "Answered"),
    ]


async def test_a_device_the_driver_gives_up_or_forgets_is_lost(bench: Bench) -> None:
    bench.card.readings = [fake_reading("cuda:0", capacity_bytes=0, lost=True, problem="GPU is lost")]
    await bench.monitor.refresh()
    lost = bench.monitor.status("cuda:0")
    assert (lost.state, lost.problem, lost.device.capacity_bytes) == (DeviceState.LOST, "GPU is lost", 2**30)
    bench.card.readings = [fake_reading("cuda:1")]
    await bench.monitor.refresh()
    assert bench.monitor.states()["cuda:0"] is DeviceState.LOST
    assert "does not list it" in bench.monitor.status("cuda:0").problem
    assert [status.device.id for status in bench.monitor.statuses()] == ["cuda:0", "cuda:1", "host"]
    bench.card.readings = [fake_reading("cuda:0")]
    await bench.monitor.refresh()
    assert bench.monitor.states()["cuda:0"] is DeviceState.ONLINE


async def test_a_problem_is_told_once(bench: Bench) -> None:
    for problem in ("XID 79", "XID 79", "", "XID 48"):
        bench.card.readings = [fake_reading("cuda:0", problem=problem)]
        await bench.monitor.refresh()
    told = [event for event in await bench.store.events() if event.kind == "device.problem"]
    assert [event.data["problem"] for event in told] == ["XID 79", "XID 48"]
    assert bench.monitor.states()["cuda:0"] is DeviceState.ONLINE


async def test_a_cordon_is_idempotent_and_survives_a_restart(bench: Bench) -> None:
    for _ in range(2):
        assert (await bench.monitor.cordon("cuda:0", actor="key-1")).state is DeviceState.CORDONED
    assert bench.monitor.readings()["cuda:0"].used_bytes == 7
    await bench.monitor.stop()
    bench.monitor = bench.another()
    await bench.monitor.start()
    assert bench.monitor.states() == {"cuda:0": DeviceState.CORDONED, "host": DeviceState.ONLINE}
    await bench.monitor.uncordon("cuda:0", actor="key-1")
    assert await bench.events() == [
        ("device.cordoned", "cuda:0", "Cordoned"),
        ("device.online", "cuda:0", "Uncordoned"),
    ]
    assert (await bench.store.events())[-1].actor == "key-1"
    with pytest.raises(NotFound, match="no device 'cuda:7'"):
        await bench.monitor.cordon("cuda:7", actor="key-1")


async def test_a_cordon_lasts_while_the_device_is_lost(bench: Bench) -> None:
    bench.card.error = RuntimeError("gone")
    await bench.monitor.refresh()
    assert (await bench.monitor.cordon("cuda:0", actor="key-1")).state is DeviceState.LOST
    bench.card.error = None
    await bench.monitor.refresh()
    assert bench.monitor.states()["cuda:0"] is DeviceState.CORDONED


ECC = Fault(number=1, reason="Xid48", problem="XID 48: memory error", advice="reset it", critical=True)
OFF_THE_BUS = Fault(number=3, reason="Xid79", problem="XID 79: gone", advice="restart", critical=True)
KERNEL = Fault(number=2, reason="Xid13", problem="XID 13: a program's kernel failed")


async def test_a_critical_fault_cordons_until_an_operator_lets_it_go_on(bench: Bench) -> None:
    bench.card.readings = [fake_reading("cuda:0", faults=[ECC, KERNEL])]
    for _ in range(2):
        await bench.monitor.refresh()
    told = (await bench.store.events())[2:]
    assert [(event.kind, event.reason, event.data) for event in told] == [
        ("device.cordoned", "Xid48", {"problem": "XID 48: memory error", "advice": "reset it"}),
        ("device.xid", "Xid13", {"problem": "XID 13: a program's kernel failed"}),
    ]
    await bench.monitor.stop()
    bench.card.readings = [fake_reading("cuda:0")]  # the driver tells a new listener nothing of before
    bench.monitor = bench.another()
    await bench.monitor.start()
    kept = bench.monitor.status("cuda:0")
    assert (kept.state, kept.problem) == (DeviceState.CORDONED, "XID 48: memory error; reset it")
    after = await bench.monitor.uncordon("cuda:0", actor="key-1")
    assert (after.state, after.problem) == (DeviceState.ONLINE, "")


async def test_a_fault_that_was_dealt_with_does_not_cordon_again_and_a_new_one_does(bench: Bench) -> None:
    bench.card.readings = [fake_reading("cuda:0", faults=[ECC])]
    await bench.monitor.refresh()
    await bench.monitor.uncordon("cuda:0", actor="key-1")
    await bench.monitor.refresh()
    assert bench.monitor.states()["cuda:0"] is DeviceState.ONLINE
    bench.card.readings = [fake_reading("cuda:0", faults=[ECC, OFF_THE_BUS])]
    await bench.monitor.refresh()
    assert bench.monitor.states()["cuda:0"] is DeviceState.CORDONED
    assert [reason for _, _, reason in await bench.events()] == ["Xid48", "Uncordoned", "Xid79"]


async def test_faults_of_programs_cordon_nothing(bench: Bench) -> None:
    bench.card.readings = [fake_reading("cuda:0", faults=[KERNEL])]
    await bench.monitor.refresh()
    assert bench.monitor.states()["cuda:0"] is DeviceState.ONLINE
    assert await bench.events() == [("device.xid", "cuda:0", "Xid13")]


async def test_a_device_lost_to_a_fault_is_cordoned_when_it_is_back(bench: Bench) -> None:
    bench.card.readings = [fake_reading("cuda:0", faults=[OFF_THE_BUS], problem="GPU is lost", lost=True)]
    await bench.monitor.refresh()
    lost = bench.monitor.status("cuda:0")
    assert (lost.state, lost.problem) == (DeviceState.LOST, "GPU is lost; XID 79: gone; restart")
    bench.card.readings = [fake_reading("cuda:0", faults=[OFF_THE_BUS])]
    await bench.monitor.refresh()
    assert await bench.events() == [
        ("device.cordoned", "cuda:0", "Xid79"),
        ("device.lost", "cuda:0", "DriverLost"),
        ("device.cordoned", "cuda:0", "Answered"),
    ]


async def test_a_fault_that_cannot_be_recorded_counts_at_once_and_is_recorded_later(bench: Bench) -> None:
    bench.seat.lose()
    bench.card.readings = [fake_reading("cuda:0", faults=[ECC])]
    await bench.monitor.refresh()
    assert bench.monitor.states()["cuda:0"] is DeviceState.CORDONED
    assert await bench.events() == []
    await bench.seat.start()
    await bench.monitor.refresh()
    assert await bench.events() == [("device.cordoned", "cuda:0", "Xid48")]


async def test_a_device_on_record_that_cannot_be_read_at_the_start_is_known_as_lost(bench: Bench) -> None:
    await bench.monitor.stop()
    bench.card.error = RuntimeError("gone")
    bench.monitor = bench.another()
    await bench.monitor.start()
    assert bench.monitor.states() == {"cuda:0": DeviceState.LOST, "host": DeviceState.ONLINE}
    assert bench.monitor.status("cuda:0").device.capacity_bytes == 2**30


async def test_what_cannot_be_recorded_counts_at_once_and_is_recorded_later(bench: Bench) -> None:
    bench.seat.lose()
    bench.card.error = RuntimeError("gone")
    await bench.monitor.refresh()
    assert bench.monitor.states()["cuda:0"] is DeviceState.LOST
    assert await bench.events() == []
    bench.seat.held = True
    await bench.monitor.refresh()
    assert await bench.events() == [("device.lost", "cuda:0", "ReadFailed")]


async def test_it_goes_on_reading_by_itself() -> None:
    bench = Bench(poll_interval_s=0.01)
    await bench.store.start()
    await bench.seat.start()
    await bench.monitor.start()
    try:
        bench.card.error = RuntimeError("gone")
        assert (await bench.awaited("device.lost")).data == {"problem": "RuntimeError: gone"}
    finally:
        await bench.monitor.stop()
        await bench.store.stop()


async def test_another_interval_counts_at_once(bench: Bench) -> None:
    bench.card.error = RuntimeError("gone")
    bench.monitor.adjust(poll_interval_s=0.01)
    assert (await bench.awaited("device.lost")).subject == "cuda:0"


async def test_stopping_ends_the_threads_and_closes_the_sources(bench: Bench) -> None:
    await bench.monitor.stop()
    await bench.monitor.stop()
    assert bench.card.closed
    assert bench.memory.closed
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("devices-")] == []


async def test_only_what_is_doubted_or_old_is_read_again(bench: Bench) -> None:
    reads = bench.card.reads, bench.memory.reads
    await bench.monitor.settle(NEVER_S)
    assert (bench.card.reads, bench.memory.reads) == reads
    bench.monitor.doubt("cuda:0")
    bench.monitor.doubt("cuda:7")
    await bench.monitor.settle(NEVER_S)
    await bench.monitor.settle(NEVER_S)
    assert (bench.card.reads, bench.memory.reads) == (reads[0] + 1, reads[1])
    await bench.monitor.settle(0)
    assert (bench.card.reads, bench.memory.reads) == (reads[0] + 2, reads[1] + 1)


async def test_what_cannot_be_read_now_is_left_to_the_poll(bench: Bench) -> None:
    bench.card.error = OSError("gone")
    await bench.monitor.refresh()
    reads = bench.card.reads
    bench.monitor.doubt("cuda:0")
    await bench.monitor.settle(0)
    assert bench.card.reads == reads


async def test_a_refresh_never_gives_what_was_read_before_it(bench: Bench) -> None:
    bench.card.asked.clear()
    bench.card.gate.clear()
    early = asyncio.create_task(bench.monitor.refresh("cuda:0"))
    await asyncio.to_thread(bench.card.asked.wait, 10)
    late = asyncio.create_task(bench.monitor.refresh("cuda:0"))
    await asyncio.sleep(0)
    bench.card.gate.set()
    await asyncio.gather(early, late)
    assert bench.card.reads == 3


def test_unmanaged_is_what_others_use_and_never_negative() -> None:
    reading = fake_reading(used_bytes=100, processes={1: 30, 2: 50})
    assert unmanaged_bytes(reading, {1}) == 70
    assert unmanaged_bytes(reading, {1, 2, 3}) == 20
    assert unmanaged_bytes(fake_reading(used_bytes=10, processes={1: 30}), {1}) == 0


def test_ids_are_in_the_order_people_expect() -> None:
    ids = ["host", "cuda:10", "cuda:2", "cuda:2/mig:10", "cuda:2/mig:9", "declared:a"]
    assert sorted(ids, key=in_order) == ["cuda:2", "cuda:2/mig:9", "cuda:2/mig:10", "cuda:10", "declared:a", "host"]
