"""Leases of jobs give way to models, on a real ledger and a clock that stands still."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from moc.gpu.broker import Broker, Grant
from moc.gpu.eviction import Policy, Tenant
from moc.gpu.lease import LeaseState, Standing
from moc.gpu.leases import Leases
from moc.gpu.ledger import Demand
from moc.gpu.plan import Plan, Refusal
from moc.gpu.queue import JOB_SPARES_USED_S
from moc.kernel.errors import NoCapacity
from moc.resilience.deadline import Deadline
from tests.unit.test_leases import NEVER_S, Host, token_of

JOB = "job-1"
PATIENT_S = 60.0


class Models:
    """Those that are loaded; they leave at once."""

    def __init__(self) -> None:
        self.loaded: dict[str, Tenant] = {}
        self.release: Callable[[str], None] = lambda holder: None

    def tenants(self) -> Sequence[Tenant]:
        return list(self.loaded.values())

    async def evict(self, holder: str, *, reason: str, because: str) -> None:
        del self.loaded[holder]
        self.release(holder)

    def lose(self, holder: str, *, because: str) -> None:
        raise AssertionError(f"no device of {holder} is lost")


class SharedHost(Host):
    """A hundred bytes on a device, for models and for leases."""

    def start(self) -> None:
        super().start()
        self.models = Models()
        self.broker = Broker(
            monitor=self.devices,
            tenants=self.models,
            managed=lambda: self.leases.managed_pids(),
            store=self.store,
            soft_limit_pct=100,
            policy=Policy(min_residency_s=0),
            on_evicted=lambda _: None,
            clock=self.clock,
        )
        self.leases = Leases(
            store=self.store,
            seat=self.seat,
            broker=self.broker,
            devices=self.devices,
            clock=self.clock,
            on_waited=lambda outcome, seconds: None,
            tick_s=NEVER_S,
        )
        self.broker.join(self.leases.handover)
        self.models.release = self.broker.release

    async def job(self, size: int, **terms: Any) -> Standing:
        return await self.get(size, **{"job": JOB, "grace_s": 5.0, **terms})

    def state(self, standing: Standing) -> LeaseState:
        return self.leases.show(standing.lease.id).lease.state

    async def load(self, size: int, *, name: str = "m", priority: int = 5, patience_s: float = PATIENT_S) -> Grant:
        demand = Demand(holder=f"model:{name}", bytes=size, priority=priority)
        try:
            grant = await self.broker.reserve(demand, Deadline.after(patience_s))
        except BaseException:
            self.broker.release(demand.holder)
            raise
        now = self.clock.monotonic()
        self.models.loaded[demand.holder] = Tenant(
            holder=demand.holder, device=grant.device, bytes=size, priority=priority, loaded_at=now, last_used_at=now
        )
        return grant

    async def loading(self, size: int, preempts: Standing, **how: object) -> "asyncio.Task[Grant]":
        """A load that waits for a lease to end."""
        task = asyncio.create_task(self.load(size, **how))  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            async for event in self.store.follow(after=0):
                if (event.kind, event.subject) == ("lease.preempting", preempts.lease.id):
                    return task
        raise AssertionError("the stream of events ended")


@pytest.fixture
async def host() -> AsyncIterator[SharedHost]:
    one = SharedHost()
    async with one.running():
        yield one


async def test_a_job_gives_its_memory_to_the_model_and_to_nobody_else(host: SharedHost) -> None:
    job = await host.job(70)
    load = await host.loading(80, job)
    standing = host.leases.show(job.lease.id)
    assert (standing.lease.state, standing.evict_in_s) == (LeaseState.PREEMPTING, 5.0)
    assert host.charges() == {f"lease:{job.lease.id}": 70, "model:m": 30}, "what was free is kept for it"
    other = await host.waiting(30, priority=1)
    await host.release(job)
    await host.leases.look()
    assert (await load).bytes == 80
    assert host.charges() == {"model:m": 80}
    assert not other.done()
    other.cancel()
    assert [reason for _, reason in await host.events("lease.evicted")] == ["Preempted"]


async def test_only_what_has_to_go_goes(host: SharedHost) -> None:
    small, large = await host.job(30), await host.job(60, priority=8)
    users = await host.get(5, priority=10)
    load = await host.loading(40, large)
    assert [host.state(each) for each in (small, large, users)] == ["admitted", "preempting", "admitted"]
    await host.release(large)
    assert (await load).bytes == 40


@pytest.mark.parametrize("terms", [{"priority": 4}, {"job": ""}, {"grace_s": 3600.0}])
async def test_others_stay(host: SharedHost, terms: dict[str, object]) -> None:
    job = await host.job(70, **terms)
    with pytest.raises(NoCapacity):
        await host.load(80, patience_s=0.05)
    assert host.state(job) is LeaseState.ADMITTED
    assert host.charges() == {f"lease:{job.lease.id}": 70}


async def test_a_job_runs_its_least_time_first(host: SharedHost) -> None:
    job = await host.job(70, min_runtime_s=20.0)
    with pytest.raises(NoCapacity):
        await host.load(80, patience_s=0.05)
    assert host.state(job) is LeaseState.ADMITTED
    host.clock.advance(20)
    load = await host.loading(80, job)
    assert host.state(job) is LeaseState.PREEMPTING
    await host.release(job)
    await load


async def test_one_that_does_not_end_is_evicted_when_its_grace_is_over(host: SharedHost) -> None:
    job = await host.job(70)
    load = await host.loading(80, job)
    await host.pass_time(5)
    assert (await load).bytes == 80
    assert host.state(job) is LeaseState.EVICTED


async def test_who_no_longer_wants_it_gets_nothing(host: SharedHost) -> None:
    job = await host.job(70)
    load = await host.loading(80, job)
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    assert host.charges() == {f"lease:{job.lease.id}": 70}
    await host.release(job)
    assert host.charges() == {}


async def test_a_second_try_gets_what_leases_end_for_since_the_first(host: SharedHost) -> None:
    job = await host.job(70)
    first = await host.loading(80, job)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert "model:m" not in host.charges()
    second = await host.loading(80, job)
    async with asyncio.timeout(10):
        while "model:m" not in host.charges():  # noqa: ASYNC110 - no event tells of what is set aside
            await asyncio.sleep(0)
    other = await host.waiting(90, priority=1)
    await host.pass_time(5)
    assert (await second).bytes == 80
    assert not other.done()
    other.cancel()


async def test_idle_models_leave_before_a_job_has_to(host: SharedHost) -> None:
    await host.load(40, name="idle")
    job = await host.job(60)
    await host.load(40, name="new")
    assert (host.state(job), list(host.models.loaded)) == (LeaseState.ADMITTED, ["model:new"])


async def test_it_is_told_beforehand(host: SharedHost) -> None:
    job = await host.job(70, min_runtime_s=20.0)
    outcome, leases = host.broker.foresee(Demand(holder="model:m", bytes=80))
    assert isinstance(outcome, Plan)
    assert (outcome.placements[0].free_after_bytes, [each.job for each in leases]) == (20, [JOB])
    assert (leases[0].bytes, leases[0].grace_s) == (70, 5.0)
    outcome, leases = host.broker.foresee(Demand(holder="model:m", bytes=80, priority=6))
    assert (isinstance(outcome, Refusal), list(leases)) == (True, [])
    assert host.state(job) is LeaseState.ADMITTED


async def test_a_job_takes_no_room_from_a_model_that_is_in_use(host: SharedHost) -> None:
    await host.load(60)
    waiting = await host.waiting(60, job=JOB)
    await host.pass_time(JOB_SPARES_USED_S - 1)
    (pending,) = host.leases.standings()
    assert "60B recently used" in pending.message
    assert pending.estimated_wait_s == 1
    await host.pass_time(1)
    assert (await waiting).lease.state is LeaseState.ADMITTED
    assert not host.models.loaded


async def test_a_job_takes_room_from_a_less_urgent_model_that_is_in_use_and_from_no_other(host: SharedHost) -> None:
    await host.load(60, priority=6)
    assert (await host.job(60)).lease.state is LeaseState.ADMITTED
    assert not host.models.loaded


@pytest.mark.parametrize("every_s", [1, 7, 30])
async def test_a_job_and_a_model_in_use_do_not_swap_for_ever(host: SharedHost, every_s: int) -> None:
    """An hour in which the model is asked for every few seconds: it is loaded once, and the job waits."""
    loads, preempted = 0, 0
    job = await host.job(60, min_runtime_s=20.0)
    waiting: asyncio.Task[Standing] | None = None
    for second in range(0, 3600, every_s):
        if "model:m" in host.models.loaded:
            used = replace(host.models.loaded["model:m"], last_used_at=host.clock.monotonic())
            host.models.loaded["model:m"] = used
        elif second >= 20:
            load = await host.loading(60, job)
            preempted += host.state(job) is LeaseState.PREEMPTING
            await host.release(job)
            await load
            loads += 1
            waiting = await host.waiting(60, job=JOB, ttl_s=NEVER_S)
        await host.pass_time(every_s)
    assert (loads, preempted) == (1, 1)
    assert waiting is not None
    assert not waiting.done()
    await host.pass_time(JOB_SPARES_USED_S)
    again = await waiting
    assert token_of(again) > token_of(job), "nobody asks any more: the job goes on"
