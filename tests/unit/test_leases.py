"""Leases on a clock that stands still, with a device whose readings are set."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from moc.gpu.broker import Broker
from moc.gpu.eviction import Policy, Tenant
from moc.gpu.lease import LeaseState, LeaseTerms, Standing, Token
from moc.gpu.lease_book import ENDED_MAX, MARGIN_S
from moc.gpu.leases import Leases
from moc.gpu.monitor import GIVEN_UP_S, DeviceMonitor
from moc.gpu.queue import AGEING_S
from moc.kernel.errors import Conflict, DeadlineExceeded, InvalidRequest, NoCapacity, NotFound, NotLeader, Unavailable
from moc.resilience.deadline import Deadline
from moc.security.identity import ANYONE
from moc.store.memory import MemoryStore
from moc.testing.clock import ManualClock
from moc.testing.devices import FakeDevices, fake_reading
from moc.testing.seat import FakeSeat

NEVER_S = 3600.0
"""A tick that does not come within a test: what time brings is seen when the test looks."""


class NoModels:
    """Nothing is loaded."""

    def tenants(self) -> Sequence[Tenant]:
        return []

    async def evict(self, holder: str, *, reason: str, because: str) -> None:
        raise AssertionError(f"{holder} is not loaded")

    def lose(self, holder: str, *, because: str) -> None:
        raise AssertionError(f"{holder} is not loaded")


class Host:
    """One device of a hundred bytes, or more devices; all of them may be given away."""

    def __init__(self, *sizes: int) -> None:
        self.store = MemoryStore()
        self.clock = ManualClock()
        self.waits: list[tuple[str, float]] = []
        self.source = FakeDevices(
            *(fake_reading(f"declared:{n}", capacity_bytes=size) for n, size in enumerate(sizes or (100,)))
        )
        self.start()

    def start(self) -> None:
        """A coordinator that has not run yet, on what the store has."""
        self.seat = FakeSeat(self.store)
        self.devices = DeviceMonitor([self.source], store=self.store, clock=self.clock, poll_interval_s=NEVER_S)
        self.broker = Broker(
            monitor=self.devices,
            tenants=NoModels(),
            managed=lambda: self.leases.managed_pids(),
            store=self.store,
            soft_limit_pct=100,
            policy=Policy(),
            clock=self.clock,
            on_evicted=lambda _: None,
        )
        self.leases = Leases(
            store=self.store,
            seat=self.seat,
            broker=self.broker,
            devices=self.devices,
            clock=self.clock,
            on_waited=lambda outcome, seconds: self.waits.append((outcome, seconds)),
            tick_s=NEVER_S,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Leases]:
        devices, leases = self.devices, self.leases  # others once it was started again
        await self.seat.start()
        await devices.start()
        await leases.start()
        try:
            yield leases
        finally:
            await leases.stop()
            await devices.stop()

    async def get(self, size: int, *, wait_s: float = 0.0, pid: int | None = None, **terms: Any) -> Standing:
        async with asyncio.timeout(10):
            return await self.leases.acquire(LeaseTerms(bytes=size, **terms), identity=ANYONE, wait_s=wait_s, pid=pid)

    async def waiting(self, size: int, **terms: Any) -> "asyncio.Task[Standing]":
        """One who stands in line."""
        task = asyncio.create_task(self.get(size, wait_s=NEVER_S, **terms))
        await asyncio.sleep(0)  # it runs until it stands in line
        await self.leases.look(tend=False)
        return task

    async def release(self, standing: Standing) -> Standing:
        return await self.leases.release(standing.lease.id, token_of(standing), actor="test")

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.leases.look()

    def charges(self) -> dict[str, int]:
        return {charge.holder: charge.bytes for charge in self.broker.charges()}

    async def events(self, kind: str) -> list[tuple[str, str]]:
        return [(each.subject, each.reason) for each in await self.store.events() if each.kind == kind]


def token_of(standing: Standing) -> Token:
    assert standing.lease.token is not None
    return standing.lease.token


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    one = Host()
    async with one.running():
        yield one


@pytest.fixture
def process() -> Any:
    """A process that runs until its input is closed."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield child
    child.kill()
    child.communicate()


async def test_a_lease_is_charged_until_it_is_released(host: Host) -> None:
    got = await host.get(60)
    assert (got.lease.state, got.lease.device, got.lease.reason) == (LeaseState.ADMITTED, "declared:0", "Granted")
    assert host.charges() == {f"lease:{got.lease.id}": 60}
    with pytest.raises(NoCapacity, match="40B free"):
        await host.get(41)
    assert (await host.release(got)).lease.state is LeaseState.RELEASED
    assert (await host.release(got)).lease.reason == "Released"
    assert host.charges() == {}
    assert len(await host.events("lease.released")) == len(await host.events("lease.refused")) == 1
    assert [each.lease.state for each in host.leases.standings(ended=True)] == [LeaseState.RELEASED]
    assert host.leases.standings() == []


async def test_those_that_ask_together_are_granted_in_one_commit(host: Host) -> None:
    granted = await asyncio.gather(*(host.get(30) for _ in range(4)), return_exceptions=True)
    leases = [each.lease for each in granted if isinstance(each, Standing)]
    assert [type(each) for each in granted if not isinstance(each, Standing)] == [NoCapacity]
    assert host.charges() == {f"lease:{lease.id}": 30 for lease in leases}
    assert len({lease.token for lease in leases}) == 3
    records = [await host.store.get(f"leases/{lease.id}") for lease in leases]
    assert len({record.revision for record in records if record is not None}) == 1
    assert [subject for subject, _ in await host.events("lease.admitted")] == [lease.id for lease in leases]


async def test_a_grant_that_cannot_be_recorded_is_none(host: Host) -> None:
    host.seat.lose()
    for outcome in await asyncio.gather(host.get(30), host.get(30), return_exceptions=True):
        assert isinstance(outcome, NotLeader)
    assert (host.charges(), host.leases.standings()) == ({}, [])


async def test_a_device_is_read_again_before_what_was_given_back_is_given_on(host: Host) -> None:
    got = await host.get(80)
    host.source.readings = [fake_reading(capacity_bytes=100, used_bytes=70)]
    await host.release(got)
    with pytest.raises(NoCapacity, match="70B unmanaged"):
        await host.get(50)
    await host.get(30)


async def test_how_long_it_took_is_told(host: Host) -> None:
    got = await host.get(100)
    with pytest.raises(NoCapacity):
        await host.get(1)
    task = await host.waiting(100)
    host.clock.advance(5)
    assert host.leases.count() == {"pending": 1, "admitted": 1, "preempting": 0}
    await host.release(got)
    await task
    assert host.waits == [("granted", 0.0), ("refused", 0.0), ("granted", 5.0)]


async def test_only_the_last_that_ended_are_kept(host: Host) -> None:
    first = await host.get(1)
    await host.release(first)
    for _ in range(ENDED_MAX):
        await host.release(await host.get(1))
    with pytest.raises(NotFound):
        host.leases.show(first.lease.id)
    assert len(await host.store.list("leases/")) == len(host.leases.standings(ended=True)) == ENDED_MAX


async def test_what_never_fits_is_refused_even_if_it_would_wait(host: Host) -> None:
    with pytest.raises(NoCapacity, match="even when it is empty"):
        await host.get(101, wait_s=NEVER_S)


async def test_tokens_only_grow_and_only_the_right_one_counts(host: Host) -> None:
    first, second = await host.get(10), await host.get(10)
    assert token_of(first) < token_of(second)
    with pytest.raises(Conflict, match="not the token"):
        host.leases.renew(second.lease.id, token_of(first))
    with pytest.raises(Conflict, match="not the token"):
        await host.leases.release(second.lease.id, token_of(first), actor="test")
    with pytest.raises(NotFound):
        host.leases.renew("lse-none", token_of(first))
    host.seat.lose()
    with pytest.raises(NotLeader):
        host.leases.renew(first.lease.id, token_of(first))
    assert Token.parse(str(token_of(first))) == token_of(first)
    assert Token(2, 1) > Token(1, 9)
    with pytest.raises(InvalidRequest):
        Token.parse("3")


async def test_a_lease_expires_unless_it_is_renewed(host: Host) -> None:
    kept, lost = await host.get(50, ttl_s=10), await host.get(50, ttl_s=10)
    await host.pass_time(9)
    assert host.leases.renew(kept.lease.id, token_of(kept)).expires_at == host.clock.wall() + 10
    await host.pass_time(1 + MARGIN_S / 2)
    assert host.leases.show(lost.lease.id).lease.state is LeaseState.ADMITTED
    await host.pass_time(MARGIN_S / 2)
    assert host.leases.show(lost.lease.id).lease.state is LeaseState.EXPIRED
    assert host.charges() == {f"lease:{kept.lease.id}": 50}
    with pytest.raises(Conflict, match="expired"):
        host.leases.renew(lost.lease.id, token_of(lost))
    assert await host.events("lease.expired") == [(lost.lease.id, "Expired")]


async def test_the_more_urgent_go_first_then_the_older(host: Host) -> None:
    got = await host.get(100)
    tasks = [await host.waiting(100, priority=priority, grace_s=9999.0) for priority in (5, 5, 1, 9)]
    order = []
    for _ in tasks:
        await host.release(got)
        done, _ = await asyncio.wait([*tasks], return_when=asyncio.FIRST_COMPLETED, timeout=10)
        (task,) = done
        order.append(tasks.index(task))
        got = task.result()
        tasks[order[-1]] = asyncio.create_task(asyncio.Event().wait())  # type: ignore[arg-type]
    assert order == [2, 0, 1, 3]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_waiting_makes_up_for_priority(host: Host) -> None:
    got = await host.get(100, grace_s=9999.0)
    old = await host.waiting(100, priority=6)
    host.clock.advance(5 * AGEING_S + 1)
    new = await host.waiting(100, priority=1)
    await host.release(got)
    first = await asyncio.wait_for(old, 10)
    assert not new.done()
    await host.release(first)
    await asyncio.wait_for(new, 10)


async def test_nobody_overtakes_one_that_waits_for_the_same_device() -> None:
    host = Host(100, 50)
    async with host.running():
        got = await host.get(60, devices="declared:0")
        large = await host.waiting(80, devices="declared:0")
        with pytest.raises(NoCapacity):
            await host.get(10, devices="declared:0")
        other = await host.get(10)
        assert other.lease.device == "declared:1"
        await host.release(got)
        assert (await asyncio.wait_for(large, 10)).lease.device == "declared:0"


async def test_who_stops_waiting_leaves_the_line_and_keeps_nothing(host: Host) -> None:
    got = await host.get(100)
    first, second = await host.waiting(100), await host.waiting(100)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await host.release(got)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await host.leases.look()
    await host.leases.look()
    assert (host.charges(), host.leases.standings()) == ({}, [])
    with pytest.raises(NoCapacity):
        await asyncio.gather(host.get(100), host.get(100, wait_s=0.01))


async def test_a_deadline_ends_the_wait(host: Host) -> None:
    await host.get(100)
    with pytest.raises(DeadlineExceeded):
        await host.leases.acquire(LeaseTerms(bytes=1), identity=ANYONE, wait_s=NEVER_S, deadline=Deadline.after(0.01))
    assert len(host.leases.standings()) == 1


async def test_leases_survive_a_restart_and_tokens_do_not_go_back(host: Host) -> None:
    kept, ended = await host.get(60, ttl_s=10), await host.get(10)
    await host.release(ended)
    host.clock.advance(9)
    await host.leases.stop()
    await host.devices.stop()
    host.start()
    async with host.running():
        assert host.charges() == {f"lease:{kept.lease.id}": 60}
        assert host.leases.show(ended.lease.id).lease.state is LeaseState.RELEASED
        await host.pass_time(9)
        later = await host.get(10)
        assert token_of(later) > token_of(ended)
        assert host.leases.renew(kept.lease.id, token_of(kept)).lease.state is LeaseState.ADMITTED


async def test_memory_of_a_process_that_outlives_its_lease_is_not_given_away(
    host: Host, process: "subprocess.Popen[bytes]"
) -> None:
    got = await host.get(80, ttl_s=1, pid=process.pid)
    assert host.leases.managed_pids() == {process.pid}
    await host.pass_time(1 + MARGIN_S)
    assert host.leases.show(got.lease.id).lease.quarantined
    assert host.charges() == {f"quarantine:{got.lease.id}": 80}
    with pytest.raises(Conflict) as over:
        host.leases.renew(got.lease.id, token_of(got))
    assert over.value.details == {"state": "expired", "reason": "Expired", "quarantined": True}
    await host.leases.stop()
    await host.devices.stop()
    host.start()
    async with host.running():
        assert host.charges() == {f"quarantine:{got.lease.id}": 80}
        process.communicate()
        await host.leases.look()
        assert host.charges() == {}
        assert await host.events("lease.freed") == [(got.lease.id, "ProcessGone")]


async def test_a_lease_ends_with_its_process(host: Host, process: "subprocess.Popen[bytes]") -> None:
    got = await host.get(80)
    await host.leases.occupy(got.lease.id, token_of(got), process.pid, actor="test")
    host.source.readings = [fake_reading(capacity_bytes=100, used_bytes=90, processes={process.pid: 90})]
    await host.devices.refresh()
    await host.leases.look()
    assert host.charges() == {f"lease:{got.lease.id}": 90}
    assert host.broker.ledger().free_bytes("declared:0") == 10
    process.communicate()
    await host.leases.look()
    assert host.leases.show(got.lease.id).lease.reason == "ProcessGone"
    with pytest.raises(InvalidRequest, match="no process"):
        await host.get(1, pid=process.pid)


async def test_a_more_urgent_one_preempts_after_notice_and_grace(host: Host) -> None:
    low, high = await host.get(60, priority=8, grace_s=5), await host.get(40, priority=2)
    task = await host.waiting(50, priority=3)
    told = host.leases.renew(low.lease.id, token_of(low))
    assert (told.lease.state, told.evict_in_s) == (LeaseState.PREEMPTING, 5)
    assert host.leases.show(high.lease.id).lease.state is LeaseState.ADMITTED
    await host.pass_time(4)
    assert not task.done()
    await host.pass_time(1)
    assert (await asyncio.wait_for(task, 10)).lease.state is LeaseState.ADMITTED
    assert host.leases.show(low.lease.id).lease.state is LeaseState.EVICTED
    assert await host.events("lease.evicted") == [(low.lease.id, "Preempted")]
    assert sum(host.charges().values()) == 90


async def test_what_is_freed_for_a_preemptor_is_kept_for_it(host: Host) -> None:
    victims = [await host.get(50, priority=8, grace_s=grace_s) for grace_s in (1.0, 5.0)]
    task = await host.waiting(100, priority=3)
    await host.release(victims[0])
    with pytest.raises(NoCapacity):
        await host.get(10, priority=1)
    assert sum(host.charges().values()) == 100
    assert not task.done()
    await host.pass_time(5)
    await asyncio.wait_for(task, 10)
    assert list(host.charges().values()) == [100]


@pytest.mark.parametrize("terms", [{"priority": 3}, {"min_runtime_s": 60.0}, {"grace_s": 2 * NEVER_S}], ids=str)
async def test_some_are_not_preempted(host: Host, terms: dict[str, Any]) -> None:
    kept = await host.get(100, **{"priority": 8, **terms})
    task = await host.waiting(100, priority=3)
    await host.leases.look()
    assert host.leases.show(kept.lease.id).lease.state is LeaseState.ADMITTED
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_evicted_process_that_stays_keeps_its_memory_charged(
    host: Host, process: "subprocess.Popen[bytes]"
) -> None:
    await host.get(100, priority=8, grace_s=1, pid=process.pid)
    task = await host.waiting(100, priority=3)
    await host.pass_time(1)
    await host.leases.look()
    assert not task.done()
    process.communicate()
    await host.leases.look()
    await asyncio.wait_for(task, 10)


async def test_what_its_process_takes_of_another_device_is_charged_there(process: "subprocess.Popen[bytes]") -> None:
    host = Host(100, 50)
    async with host.running():
        got = await host.get(60, devices="declared:0", pid=process.pid)
        host.source.readings[1] = fake_reading(
            "declared:1", capacity_bytes=50, used_bytes=40, processes={process.pid: 40}
        )
        await host.devices.refresh()
        await host.leases.look()
        held = host.broker.held(f"lease:{got.lease.id}")
        assert {charge.device: charge.bytes for charge in held} == {"declared:0": 60, "declared:1": 40}
        assert host.broker.ledger().free_bytes("declared:1") == 10
        await host.release(got)
        assert host.broker.charges() == []


async def test_a_lease_ends_with_its_device(host: Host, process: "subprocess.Popen[bytes]") -> None:
    idle, busy = await host.get(30), await host.get(30, pid=process.pid, grace_s=600, priority=8)
    task = await host.waiting(50, priority=3)
    assert host.leases.show(busy.lease.id).lease.state is LeaseState.PREEMPTING
    host.source.readings = [fake_reading(capacity_bytes=100, lost=True, problem="fell off the bus")]
    await host.devices.refresh()
    await host.pass_time(GIVEN_UP_S / 2)
    assert host.leases.show(idle.lease.id).lease.state is LeaseState.ADMITTED
    await host.pass_time(GIVEN_UP_S / 2)
    ended = [host.leases.show(each.lease.id).lease for each in (idle, busy)]
    assert [(lease.state, lease.reason, lease.quarantined) for lease in ended] == [
        (LeaseState.EVICTED, "NodeLost", False),
        (LeaseState.EVICTED, "NodeLost", True),
    ]
    assert host.charges() == {f"quarantine:{busy.lease.id}": 30}
    assert {reason for _, reason in await host.events("lease.evicted")} == {"NodeLost"}
    with pytest.raises(Conflict, match="NodeLost"):
        host.leases.renew(idle.lease.id, token_of(idle))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_device_that_is_silent_for_a_moment_costs_nobody_a_lease(host: Host) -> None:
    got = await host.get(30, ttl_s=999)
    for problem in (OSError("the driver is busy"), None, OSError("again")):
        host.source.error = problem
        await host.devices.refresh()
        await host.pass_time(GIVEN_UP_S - 1)
    assert host.leases.show(got.lease.id).lease.state is LeaseState.ADMITTED


async def test_a_coordinator_that_stops_lets_nobody_wait(host: Host) -> None:
    await host.get(100)
    task = await host.waiting(10)
    await host.leases.drain()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(task, 10)
    with pytest.raises(Unavailable):
        await host.get(1)


async def test_ten_thousand_may_wait(host: Host) -> None:
    got = await host.get(100)
    tasks = [asyncio.create_task(host.get(100, wait_s=NEVER_S)) for _ in range(10_000)]
    await asyncio.sleep(0)  # they run until they stand in line
    assert len(host.leases.standings()) == 10_001
    await host.leases.look()
    await host.release(got)
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
