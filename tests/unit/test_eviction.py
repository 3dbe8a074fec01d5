"""Eviction: whom it may never touch, that it takes no more than it must, and that it explains itself."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moc.gpu.device import DeviceState
from moc.gpu.eviction import (
    EVICTIONS_MAX,
    GIB,
    Eviction,
    History,
    Order,
    Policy,
    Tenant,
    plan,
)
from moc.gpu.ledger import Account, Charge, Demand, Ledger
from moc.gpu.plan import Guard, Plan, Reason, Refusal

NOW = 1000.0
AT_ONCE = Policy(min_residency_s=0)


@dataclass(frozen=True)
class Room:
    """Devices, those on them, and the memory of who was evicted for whom."""

    ledger: Ledger
    tenants: tuple[Tenant, ...]
    policy: Policy
    history: History

    def plan(self, demand: Demand, now: float = NOW) -> Plan | Refusal:
        return plan(demand, self.ledger, self.tenants, policy=self.policy, now=now, history=self.history)

    def granted(self, demand: Demand, now: float = NOW) -> Plan:
        decision = self.plan(demand, now)
        assert isinstance(decision, Plan), decision
        return decision

    def refused(self, demand: Demand, now: float = NOW) -> Refusal:
        decision = self.plan(demand, now)
        assert isinstance(decision, Refusal), decision
        return decision

    def leaving(self, demand: Demand, now: float = NOW) -> list[str]:
        return [victim.holder for victim in self.granted(demand, now).victims]


def room(*tenants: Tenant, limits: Sequence[int] = (100,), unmanaged: int = 0) -> Room:
    accounts = {
        f"cuda:{n}": Account(
            device=f"cuda:{n}", kind="cuda", capacity_bytes=limit, limit_bytes=limit, unmanaged_bytes=unmanaged
        )
        for n, limit in enumerate(limits)
    }
    charges = tuple(
        Charge(holder=each.holder, device=each.device, bytes=each.bytes, priority=each.priority) for each in tenants
    )
    return Room(Ledger(accounts, charges), tenants, AT_ONCE, History())


def tenant(holder: str, size: int = 50, **facts: object) -> Tenant:
    known = {"device": "cuda:0", "last_used_at": NOW - 60, "uses": 4, "reload_s": 5.0} | facts
    return Tenant(holder=holder, bytes=size, **known)  # type: ignore[arg-type]


def demand(size: int = 50, **facts: object) -> Demand:
    return Demand(holder="new", bytes=size, **facts)  # type: ignore[arg-type]


# What it chooses


def test_nobody_leaves_while_there_is_room() -> None:
    decision = room(tenant("a", 40), tenant("b", 50, device="cuda:1"), limits=(100, 120)).granted(demand(60))
    assert (decision.device, decision.victims) == ("cuda:0", ())
    assert (decision.placements[0].free_before_bytes, decision.placements[0].free_after_bytes) == (60, 0)


def test_of_equals_the_one_that_loads_faster_leaves() -> None:
    assert room(tenant("slow", reload_s=30), tenant("fast", reload_s=2)).leaving(demand()) == ["fast"]


def test_of_equals_the_one_that_is_used_less_leaves() -> None:
    assert room(tenant("once", uses=1), tenant("often", uses=6)).leaving(demand()) == ["once"]


def test_idle_time_outweighs_past_use() -> None:
    retired = tenant("retired", uses=100_000, last_used_at=NOW - 7200)
    assert room(tenant("fresh", uses=1, last_used_at=NOW - 5), retired).leaving(demand()) == ["retired"]


def test_a_busy_morning_is_forgotten_like_any_other() -> None:
    steady = tenant("steady", uses=8, reload_s=5.1)
    assert room(steady, tenant("morning", uses=10_000)).leaving(demand()) == ["morning"]


def test_of_one_worth_the_longer_unused_leaves() -> None:
    full = room(tenant("a", uses=0), tenant("b", uses=0, last_used_at=NOW - 90))
    assert full.leaving(demand()) == ["b"]


def test_names_break_a_tie() -> None:
    for twins in (("a", "b"), ("b", "a")):
        assert room(*map(tenant, twins)).leaving(demand()) == ["a"]


def test_it_goes_where_the_less_urgent_are() -> None:
    full = room(
        tenant("a", priority=6, reload_s=0.1), tenant("b", device="cuda:1", priority=9, reload_s=900), limits=(50, 50)
    )
    assert full.granted(demand()).device == "cuda:1"


def test_seconds_of_loading_count_not_worth_per_byte() -> None:
    full = room(tenant("small", 1, reload_s=5), tenant("large", 50, device="cuda:1", reload_s=50), limits=(1, 50))
    assert full.leaving(demand(1)) == ["small"]


def test_by_lru_only_time_counts() -> None:
    full = room(tenant("costly", reload_s=900, last_used_at=NOW - 61), tenant("cheap", reload_s=0.1))
    assert replace(full, policy=Policy(order=Order.LRU)).leaving(demand()) == ["costly"]
    assert full.leaving(demand()) == ["cheap"]


def test_one_that_was_loaded_just_now_is_not_idle() -> None:
    assert room(tenant("preloaded", last_used_at=0, loaded_at=NOW - 1), tenant("idle")).leaving(demand()) == ["idle"]


def test_the_less_urgent_leave_first_whatever_they_are_worth() -> None:
    full = room(tenant("urgent", reload_s=0.1), tenant("patient", priority=9, reload_s=900))
    (victim,) = full.granted(demand()).victims
    assert (victim.holder, victim.reason) == ("patient", "priority")


def test_the_idle_leave_before_the_busy() -> None:
    full = room(tenant("busy", in_flight=1, priority=9), tenant("idle", priority=3))
    assert full.leaving(demand(priority=1)) == ["idle"]


def test_a_victim_that_a_larger_one_makes_needless_is_spared() -> None:
    full = room(tenant("small", 20, reload_s=0.1), tenant("large", 80, reload_s=30))
    assert full.leaving(demand(70)) == ["large"]


def test_it_goes_where_eviction_loses_least() -> None:
    full = room(tenant("a", reload_s=60), tenant("b", device="cuda:1", reload_s=3), limits=(50, 50))
    assert full.granted(demand()).device == "cuda:1"


def test_a_device_where_nobody_waits_is_better_than_one_to_drain() -> None:
    full = room(tenant("a", in_flight=1), tenant("b", device="cuda:1", reload_s=900), limits=(50, 50))
    assert full.leaving(demand(priority=1)) == ["b"]


def test_what_counts_is_what_the_ledger_charges() -> None:
    full = room(tenant("a", 60), tenant("b", 40, reload_s=900))
    measured_less = replace(full, tenants=(replace(full.tenants[0], bytes=1), full.tenants[1]))
    (victim,) = measured_less.granted(demand(60)).victims
    assert (victim.holder, victim.bytes) == ("a", 60)
    never_charged = replace(full, tenants=(*full.tenants, tenant("ghost", reload_s=0)))
    assert never_charged.leaving(demand(60)) == ["a"]


def test_who_asks_is_never_its_own_victim() -> None:
    assert room(tenant("new", 60, reload_s=0), tenant("a", 40)).leaving(demand(40)) == ["a"]


def test_a_demand_of_nothing_brings_a_device_back_within_its_limit() -> None:
    squeezed = room(tenant("a", 40), tenant("b", 40, reload_s=1), unmanaged=30)
    relief = Demand(holder="outside", bytes=0, devices="cuda:0")
    placed = [(at.free_before_bytes, at.free_after_bytes) for at in squeezed.granted(relief).placements]
    assert (squeezed.leaving(relief), placed) == (["b"], [(-10, 30)])
    hopeless = room(tenant("a", 20, min_residency_s=2 * NOW), tenant("b", 90, pinned=True), unmanaged=90)
    assert hopeless.leaving(relief) == ["a"]


def test_a_victim_explains_itself_in_numbers() -> None:
    (victim,) = room(tenant("a", 80)).granted(demand(30)).victims
    assert victim.because == "priority 5, idle 60s, 4 uses, 5.0s to load again, 80B"
    assert (victim.reason, victim.after_drain) == ("capacity", False)


# What it never does


@pytest.mark.parametrize(
    ("guarded", "guard", "reason"),
    [
        (tenant("a", 100, pinned=True, priority=9), Guard.PINNED, Reason.HELD),
        (tenant("a", 100, priority=4), Guard.PRIORITY, Reason.HELD),
        (tenant("a", 100, in_flight=1), Guard.IN_FLIGHT, Reason.IN_FLIGHT),
        (tenant("a", 100, loaded_at=NOW - 10, min_residency_s=30), Guard.RESIDENCY, Reason.RESIDENCY),
    ],
)
def test_what_is_guarded_stays(guarded: Tenant, guard: Guard, reason: Reason) -> None:
    refusal = room(guarded).refused(demand())
    assert refusal.reason is reason
    assert refusal.obstacles[0].guarded_bytes == {guard: 100}
    assert refusal.retry_after_s == (20 if reason is Reason.RESIDENCY else None)


def test_the_busy_leave_for_the_more_urgent_only_and_after_their_requests() -> None:
    full = room(tenant("busy", 100, in_flight=3))
    (victim,) = full.granted(demand(priority=4)).victims
    assert victim.after_drain
    assert "3 in flight" in victim.because
    assert full.refused(demand(priority=5)).reason is Reason.IN_FLIGHT


def test_leases_are_not_evicted() -> None:
    full = room(tenant("a", 30))
    leased = replace(full, ledger=full.ledger.with_charge(Charge(holder="lease:l", device="cuda:0", bytes=60)))
    assert leased.leaving(demand(40)) == ["a"]
    assert leased.refused(demand(50)).reason is Reason.HELD


def test_minimum_residency_is_the_policys_unless_the_tenant_has_its_own() -> None:
    young = replace(room(tenant("a", 100, loaded_at=NOW - 10)), policy=Policy(min_residency_s=15))
    assert young.refused(demand()).retry_after_s == 5
    assert young.leaving(demand(), now=NOW + 5) == ["a"]
    impatient = replace(young, tenants=(replace(young.tenants[0], min_residency_s=0.0),))
    assert impatient.leaving(demand()) == ["a"]


def test_a_model_may_not_evict_the_one_it_was_evicted_for_at_once() -> None:
    history = History((Eviction(holder="new", successor="a"), Eviction(holder="other", successor="b")))
    full = replace(room(tenant("a", 100, loaded_at=NOW - 10, reload_s=30)), history=history)
    refusal = full.refused(demand())
    assert refusal.obstacles[0].guarded_bytes == {Guard.SWAP_BACK: 100}
    assert refusal.retry_after_s == 20
    assert full.leaving(replace(demand(), holder="other")) == ["a"]
    assert full.leaving(demand(), now=NOW + 20) == ["a"]


def test_two_models_that_displace_each_other_load_half_the_time_at_most() -> None:
    limit, reload_s, now, loading_s = 100, 4.0, 0.0, 0.0
    resident, history = tenant("a", limit, reload_s=reload_s, last_used_at=0), History()
    while now < 1000:
        now += 0.5
        wanted = Demand(holder="b" if resident.holder == "a" else "a", bytes=limit)
        decision = replace(room(resident), history=history).plan(wanted, now)
        if isinstance(decision, Plan):
            history = history.after(decision)
            now += reload_s
            loading_s += reload_s
            resident = tenant(wanted.holder, limit, reload_s=reload_s, loaded_at=now, last_used_at=now)
    assert 0 < loading_s <= now / 2


def test_history_is_bounded_and_keeps_the_last() -> None:
    history = History(tuple(Eviction(holder=f"m{n}", successor="x") for n in range(EVICTIONS_MAX)))
    history = history.after(room(tenant("a", 100)).granted(demand()))
    assert len(history.evictions) == EVICTIONS_MAX
    again = history.after(replace(room(tenant("a", 100)).granted(demand()), holder="newer"))
    assert again.displaced_by("a") == "newer"
    assert (history.displaced_by("a"), history.displaced_by("m1"), history.displaced_by("m0")) == ("new", "x", "")


# Refusals


def test_a_refusal_says_what_there_is_in_numbers() -> None:
    full = room(
        tenant("pinned", 30 * GIB, pinned=True),
        tenant("free", 10 * GIB),
        limits=(72 * GIB, 20 * GIB),
        unmanaged=5 * GIB,
    )
    refusal = full.refused(demand(50 * GIB))
    assert refusal.reason is Reason.HELD
    assert refusal.message == (
        "new needs 50GiB at priority 5 and nothing that could make room for it may be unloaded; "
        "cuda:0 of 72GiB: 27GiB free, 10GiB evictable, 30GiB pinned, 5GiB unmanaged; "
        "cuda:1 of 20GiB: 15GiB free, 0B evictable, 5GiB unmanaged"
    )
    assert [each.reason for each in refusal.obstacles] == [Reason.HELD, Reason.TOO_LARGE]


def test_too_large_for_every_device() -> None:
    assert room(limits=(100, 90)).refused(demand(101)).reason is Reason.TOO_LARGE


def test_no_device_names_those_there_are() -> None:
    away = Account(device="cuda:0", kind="cuda", capacity_bytes=1, limit_bytes=1, state=DeviceState.LOST)
    refusal = replace(room(), ledger=Ledger({"cuda:0": away})).refused(demand(devices=("cuda:0", "cuda:1")))
    assert refusal.reason is Reason.NO_DEVICE
    assert refusal.message == "new needs 1 device(s) of cuda:0, cuda:1 online; there are: cuda:0 (cuda, lost)"


def test_the_most_promising_device_gives_the_reason() -> None:
    pinned, busy = tenant("a", pinned=True), tenant("b", device="cuda:1", in_flight=1)
    full = room(pinned, busy, tenant("c", device="cuda:2", loaded_at=NOW), limits=(50, 50, 50))
    refusal = replace(full, policy=Policy(min_residency_s=7)).refused(demand())
    assert (refusal.reason, refusal.retry_after_s) == (Reason.RESIDENCY, 7)


# Groups and shards


def test_those_of_its_group_leave_even_where_there_is_room() -> None:
    shared = room(tenant("mate", 10, group="g"), tenant("other", 10), limits=(100,))
    (victim,) = shared.granted(demand(20, group="g")).victims
    assert (victim.holder, victim.reason) == ("mate", "group")
    assert shared.leaving(demand(20, group="h")) == []


def test_what_its_group_gives_back_is_used() -> None:
    full = room(tenant("mate", 60, group="g", reload_s=900), tenant("other", 40, reload_s=0))
    assert full.leaving(demand(60, group="g")) == ["mate"]
    assert full.leaving(demand(70, group="g")) == ["mate", "other"]


def test_one_of_its_group_that_may_not_leave_refuses_it() -> None:
    busy = tenant("busy", 10, group="g", in_flight=1)
    young = tenant("young", 10, group="g", loaded_at=NOW, min_residency_s=9, device="cuda:1")
    assert room(busy, young, limits=(100, 5)).refused(demand(20, group="g")).reason is Reason.IN_FLIGHT
    refusal = room(young, limits=(100, 5)).refused(demand(20, group="g"))
    assert (refusal.reason, refusal.retry_after_s) == (Reason.RESIDENCY, 9)


def test_shards_take_the_cheapest_devices() -> None:
    full = room(tenant("a", reload_s=900), tenant("b", device="cuda:1"), limits=(50, 50, 60))
    decision = full.granted(demand(40, shards=2))
    assert [each.device for each in decision.placements] == ["cuda:2", "cuda:1"]
    assert [victim.holder for victim in decision.victims] == ["b"]
    assert full.refused(demand(55, shards=2)).reason is Reason.TOO_LARGE
    assert full.refused(demand(40, shards=4)).reason is Reason.NO_DEVICE


def test_a_model_on_two_devices_gives_back_both() -> None:
    full = room(tenant("wide"), tenant("wide", device="cuda:1"), limits=(50, 50))
    decision = full.granted(demand(40, shards=2))
    assert [(each.device, each.free_after_bytes) for each in decision.placements] == [("cuda:0", 10), ("cuda:1", 10)]
    assert [(each.holder, each.device, each.bytes) for each in decision.victims] == [("wide", "cuda:0", 100)]


# Properties


def tenants_on(devices: int) -> st.SearchStrategy[list[Tenant]]:
    one = st.builds(
        Tenant,
        holder=st.sampled_from([f"m{n}" for n in range(7)]),
        device=st.sampled_from([f"cuda:{n}" for n in range(devices)]),
        bytes=st.integers(1, 30),
        priority=st.integers(4, 6),
        pinned=st.sampled_from([False, False, False, True]),
        in_flight=st.sampled_from([0, 0, 0, 2]),
        loaded_at=st.integers(960, 1000).map(float),
        last_used_at=st.integers(900, 1000).map(float),
        uses=st.integers(0, 20),
        reload_s=st.integers(0, 40).map(float),
        min_residency_s=st.none() | st.integers(0, 30).map(float),
    )
    return st.lists(one, max_size=6, unique_by=lambda each: each.holder)


@st.composite
def rooms(draw: st.DrawFn) -> Room:
    """Up to three devices, all tenants charged, and a lease."""
    devices = draw(st.integers(1, 3))
    limits = draw(st.lists(st.integers(0, 60), min_size=devices, max_size=devices))
    made = room(*draw(tenants_on(devices)), limits=limits, unmanaged=draw(st.integers(0, 10)))
    lease = Charge(holder="lease:l", device="cuda:0", bytes=draw(st.integers(0, 10)))
    evictions = st.builds(Eviction, holder=st.sampled_from(["new", "m0"]), successor=st.sampled_from(["m0", "m1"]))
    return replace(
        made,
        ledger=made.ledger.with_charge(lease),
        policy=Policy(order=draw(st.sampled_from(Order)), min_residency_s=draw(st.sampled_from([0.0, 10.0]))),
        history=History(tuple(draw(st.lists(evictions, max_size=3)))),
    )


DEMANDS = st.builds(Demand, holder=st.just("new"), bytes=st.integers(1, 60), priority=st.integers(4, 6))


def may_leave(where: Room, wanted: Demand, each: Tenant) -> bool:
    """The rules once more, as they are promised."""
    stay_s = where.policy.min_residency_s if each.min_residency_s is None else each.min_residency_s
    evicted_for = [eviction.successor for eviction in where.history.evictions if eviction.holder == wanted.holder]
    if evicted_for[-1:] == [each.holder]:
        stay_s = max(stay_s, where.policy.swap_back_reloads * each.reload_s)
    return (
        not each.pinned
        and each.priority >= wanted.priority
        and (not each.in_flight or each.priority > wanted.priority)
        and each.loaded_at + stay_s <= NOW
    )


def enough(where: Room, wanted: Demand, device: str, leaving: Sequence[str]) -> bool:
    return where.ledger.without(leaving).free_bytes(device) >= wanted.bytes


@given(rooms(), DEMANDS)
def test_a_plan_frees_enough_and_takes_nobody_it_may_not(where: Room, wanted: Demand) -> None:
    decision = where.plan(wanted)
    assume(isinstance(decision, Plan))
    assert isinstance(decision, Plan)
    by_holder = {each.holder: each for each in where.tenants}
    leaving = [by_holder[victim.holder] for victim in decision.victims]
    assert all(may_leave(where, wanted, each) and each.device == decision.device for each in leaving)
    assert [victim.after_drain for victim in decision.victims] == [each.in_flight > 0 for each in leaving]
    after = where.ledger.without(each.holder for each in leaving)
    after = after.with_charge(Charge(holder=wanted.holder, device=decision.device, bytes=wanted.bytes))
    (placement,) = decision.placements
    assert placement.free_before_bytes == where.ledger.free_bytes(decision.device)
    assert placement.free_after_bytes == after.free_bytes(decision.device) >= 0


@given(rooms(), DEMANDS)
def test_no_victim_could_be_spared(where: Room, wanted: Demand) -> None:
    decision = where.plan(wanted)
    assume(isinstance(decision, Plan))
    assert isinstance(decision, Plan)
    victims = [victim.holder for victim in decision.victims]
    for spared in victims:
        assert not enough(where, wanted, decision.device, [each for each in victims if each != spared])
    if not victims:
        free = where.ledger.free()
        fits = [(free[each.device], each.device) for each in where.ledger.candidates(wanted)]
        assert decision.device == min(each for each in fits if each[0] >= wanted.bytes)[1]


@given(rooms(), DEMANDS)
def test_it_refuses_exactly_when_no_set_of_victims_would_do(where: Room, wanted: Demand) -> None:
    able = [each for each in where.tenants if may_leave(where, wanted, each)]
    possible = any(
        enough(where, wanted, device, [each.holder for each in some])
        for device in where.ledger.accounts
        for size in range(len(able) + 1)
        for some in combinations([each for each in able if each.device == device], size)
    )
    assert isinstance(where.plan(wanted), Plan) is possible


@given(rooms(), DEMANDS, st.randoms(use_true_random=False))
def test_the_same_facts_in_any_order_give_the_same_answer(where: Room, wanted: Demand, chance: random.Random) -> None:
    shuffled = replace(
        where,
        tenants=tuple(chance.sample(where.tenants, len(where.tenants))),
        ledger=replace(where.ledger, charges=tuple(chance.sample(where.ledger.charges, len(where.ledger.charges)))),
    )
    assert shuffled.plan(wanted) == where.plan(wanted)


@given(tenants_on(1), st.integers(1, 30))
def test_what_is_to_be_tried_again_fits_then_and_not_before(tenants: list[Tenant], size: int) -> None:
    young = [replace(each, pinned=False, in_flight=0, priority=5, loaded_at=NOW) for each in tenants]
    where = room(*young, limits=(max(size, sum(each.bytes for each in young)),))
    decision = where.plan(demand(size))
    if isinstance(decision, Refusal):
        assert decision.reason is Reason.RESIDENCY
        assert decision.retry_after_s is not None
        where.granted(demand(size), NOW + decision.retry_after_s)
        assert where.refused(demand(size), NOW + decision.retry_after_s - 0.5).reason is Reason.RESIDENCY


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_no_device_ever_passes_its_limit_in_a_long_life(seed: int) -> None:
    chance, now, history = random.Random(seed), 0.0, History()
    policy = Policy(order=chance.choice(list(Order)))
    loaded: dict[str, Tenant] = {}
    for _ in range(500):
        now += chance.uniform(0, 10)
        wanted = Demand(holder=f"m{chance.randrange(12)}", bytes=chance.randint(1, 70), priority=chance.randint(4, 6))
        if known := loaded.get(wanted.holder):
            loaded[wanted.holder] = replace(known, last_used_at=now, uses=known.uses + 1)
            continue
        full = replace(room(*loaded.values(), limits=(100, 60)), history=history, policy=policy)
        decision = full.plan(wanted, now)
        if isinstance(decision, Refusal):
            outranked = any(each.priority < wanted.priority for each in loaded.values())
            assert outranked or decision.retry_after_s is not None
            continue
        history = history.after(decision)
        for victim in decision.victims:
            assert loaded.pop(victim.holder).priority >= wanted.priority
        loaded[wanted.holder] = Tenant(
            holder=wanted.holder,
            device=decision.device,
            bytes=wanted.bytes,
            priority=wanted.priority,
            loaded_at=now,
            last_used_at=now,
            reload_s=chance.uniform(1, 30),
        )
        assert min(room(*loaded.values(), limits=(100, 60)).ledger.free().values()) >= 0
