"""Whom to unload so that somebody else fits. Pure.

`plan` answers with a Plan (where the demand goes, and who has to leave) or a Refusal that says what is in the way.

Nobody is unloaded who is pinned; who is more urgent than the demand; who has requests in flight, unless the
demand is more urgent or has waited long, and then only after they have ended; who has not stayed the minimum
residency; for as long as its loading took, the one for whom the one who asks was itself unloaded; and an equal that
was used of late, if the demand spares those. Of the rest idle ones go before busy ones, less urgent before more
urgent, and then those of least worth:

    worth = log2(1 + min(uses, 8)) * seconds to load again / GiB / (1 + idle seconds) ** 0.6

That is GreedyDual-Size-Frequency but for its ageing, which there comes of evictions: each raises the bar for
whatever is not used again. Models are evicted too rarely for that: one that answered ten thousand requests this
morning would take as many evictions to grow old. So idle time ages, and uses count by the logarithm of a few.
`make bench-eviction` shows what either is worth.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate
from math import inf, log2, pow
from typing import NamedTuple

from moc.gpu.ledger import Demand, Ledger, Placement, fit
from moc.gpu.plan import Guard, Obstacle, Plan, Reason, Refusal, Victim
from moc.kernel.units import Bytes

GIB = 2**30
AGEING = 0.6
USES_MAX = 8
"""How idle time and uses weigh. In `bench/eviction.py` the best lies flat around 0.6 and 8; less ageing or more
uses fails agents that come and go, more ageing or fewer uses forgets what is asked for steadily."""
EVICTIONS_MAX = 256


class Order(StrEnum):
    """Which of equally urgent models goes first: the one of least worth, or the one unused for longest."""

    COST = "cost"
    LRU = "lru"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How eviction chooses.

    `min_residency_s` is how long a model stays at least once it is loaded, whoever asks; a tenant's own value
    goes before it. `swap_back_reloads` times its own loading time is how long it stays at least when the one
    who asks was unloaded for it: at 1, two models that displace each other spend half the time loading at most.
    For who has waited `drain_after_s` even equals leave that always have requests in flight.
    """

    order: Order = Order.COST
    min_residency_s: float = 5.0
    drain_after_s: float = 10.0
    swap_back_reloads: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A model that is loaded, as eviction sees it. Seconds are on one monotonic clock, `now`'s.

    `reload_s` is what loading it again costs (measured), `uses` how often it was used while loaded. `bytes` is
    what it was measured to hold; what its eviction gives is what the ledger charges it on `device`. A model on
    several devices is a tenant of each. `min_residency_s` goes before the policy's. Models of one `group` are
    never loaded together; empty is no group.
    """

    holder: str
    device: str
    bytes: int
    priority: int = 5
    pinned: bool = False
    in_flight: int = 0
    loaded_at: float = 0.0
    last_used_at: float = 0.0
    uses: int = 0
    reload_s: float = 1.0
    min_residency_s: float | None = None
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """One that happened: `holder` left for `successor`."""

    holder: str
    successor: str


@dataclass(frozen=True, slots=True)
class History:
    """The last evictions, oldest first. Losing them costs a swap back and forth at most."""

    evictions: tuple[Eviction, ...] = ()

    def after(self, plan: Plan) -> "History":
        """The history once a plan's victims are unloaded; the last EVICTIONS_MAX are kept."""
        new = (Eviction(holder=victim.holder, successor=plan.holder) for victim in plan.victims)
        return History((*self.evictions, *new)[-EVICTIONS_MAX:])

    def displaced_by(self, holder: str) -> str:
        """For whom a holder was evicted last; empty when it was not."""
        return next((each.successor for each in reversed(self.evictions) if each.holder == holder), "")


def plan(
    demand: Demand, ledger: Ledger, tenants: Sequence[Tenant], *, policy: Policy, now: float, history: History
) -> Plan | Refusal:
    """Where a demand goes and who leaves for it, or why it fits nowhere. The same facts give the same answer.

    Those of its group leave in any case. Then it takes the device where nobody else has to leave and least is
    left over, or else the one where eviction loses least; there no victim could be spared. A demand of no bytes
    on one device asks whom to unload so that a device which is too full is within its limit, or as near as can be.
    """
    accounts = ledger.candidates(demand)
    if len(accounts) < demand.shards:
        return _offline(demand, ledger)
    if not demand.group and (placements := fit(demand, accounts, ledger.free())):
        return Plan(holder=demand.holder, placements=placements, victims=())
    scene = _Scene(demand, ledger, policy, now)
    stays = scene.judge(tenants, history.displaced_by(demand.holder))
    mates = [stay for stay in stays if demand.group and stay.tenant.group == demand.group]
    staying = [mate for mate in mates if mate.guard]
    if staying:
        return scene.refuse_beside(staying)
    moving = scene.moving_mates(tenants)
    if moving:
        message = f"{scene.beside(moving)}, which is being loaded or ended"
        return Refusal(holder=demand.holder, reason=Reason.HELD, message=message)
    gone = {mate.tenant.holder for mate in mates}
    scene = replace(scene, ledger=ledger.without(gone))
    there: dict[str, list[_Stay]] = defaultdict(list)
    for stay in stays:
        if stay.tenant.holder not in gone:
            there[stay.tenant.device].append(stay)
    free = scene.ledger.free()
    offers = [offer for each in accounts if (offer := scene.offer(each.device, free[each.device], there[each.device]))]
    if len(offers) >= demand.shards:
        return scene.accept(sorted(offers)[: demand.shards], mates)
    able = {offer.device for offer in offers}
    obstacles = [scene.obstacle(each.device, there[each.device]) for each in accounts if each.device not in able]
    return scene.refuse(obstacles, missing=demand.shards - len(offers))


class _Stay(NamedTuple):
    """A tenant judged for one demand: what its leaving gives, what forbids that and until when."""

    tenant: Tenant
    gives: int
    guard: Guard | None
    until: float


class _Offer(NamedTuple):
    """A device that can be had, the cheapest first; of those at one price the one that it leaves the least free."""

    price: tuple[float, ...]
    left_bytes: int
    device: str
    victims: tuple[_Stay, ...]


@dataclass(frozen=True, slots=True)
class _Scene:
    """One demand and the facts it is judged by."""

    demand: Demand
    ledger: Ledger
    policy: Policy
    now: float

    def judge(self, tenants: Iterable[Tenant], displaced_by: str) -> list[_Stay]:
        """Every tenant that holds something, and is not the one who asks."""
        charged: dict[tuple[str, str], int] = defaultdict(int)
        for charge in self.ledger.charges:
            charged[charge.holder, charge.device] += charge.bytes
        stays = []
        for tenant in tenants:
            gives = charged.get((tenant.holder, tenant.device), 0)
            if gives and tenant.holder != self.demand.holder:
                guard, until = self.guard(tenant, displaced_by)
                stays.append(_Stay(tenant, gives, guard, until))
        return stays

    def guard(self, tenant: Tenant, displaced_by: str) -> tuple[Guard | None, float]:
        """What forbids a tenant's eviction, and until when; for ever where time alone does not end it."""
        if tenant.pinned:
            return Guard.PINNED, inf
        if tenant.priority < self.demand.priority:
            return Guard.PRIORITY, inf
        patient = self.demand.waited_s < self.policy.drain_after_s
        if tenant.in_flight and tenant.priority == self.demand.priority and patient:
            return Guard.IN_FLIGHT, inf
        if not self.demand.bytes:  # the device is too full already: nobody is spared for having come lately
            return None, self.now
        guard, stay_s = Guard.RESIDENCY, tenant.min_residency_s
        if stay_s is None:
            stay_s = self.policy.min_residency_s
        if tenant.holder == displaced_by and self.policy.swap_back_reloads * tenant.reload_s > stay_s:
            guard, stay_s = Guard.SWAP_BACK, self.policy.swap_back_reloads * tenant.reload_s
        until = tenant.loaded_at + stay_s
        used_at = self.now if tenant.in_flight else max(tenant.last_used_at, tenant.loaded_at)
        spared_until = used_at + self.demand.spares_used_s
        if tenant.priority == self.demand.priority and self.demand.spares_used_s and spared_until > until:
            guard, until = Guard.RECENT, spared_until
        return (guard if self.now < until else None), until

    def rank(self, stay: _Stay) -> tuple[bool, int, float, float, str]:
        """Who goes first: idle, less urgent, of less worth, longer unused; names break what is still a tie."""
        tenant = stay.tenant
        return tenant.in_flight > 0, -tenant.priority, self.score(stay), tenant.last_used_at, tenant.holder

    def score(self, stay: _Stay) -> float:
        """What a tenant is worth by the policy's order."""
        tenant, idle_s = stay.tenant, self.idle_s(stay.tenant)
        if self.policy.order is Order.LRU:
            return -idle_s
        established = log2(1 + min(tenant.uses, USES_MAX))
        return established * tenant.reload_s * GIB / stay.gives / pow(1 + idle_s, AGEING)

    def idle_s(self, tenant: Tenant) -> float:
        """Seconds since a tenant was used, or loaded."""
        return max(self.now - max(tenant.last_used_at, tenant.loaded_at), 0.0)

    def bytes_on(self, device: str) -> int:
        """What the demand needs of a device."""
        return self.demand.bytes_on(self.ledger.accounts[device].kind)

    def offer(self, device: str, free: int, stays: Iterable[_Stay]) -> _Offer | None:
        """What the demand costs on a device: the first in rank that give enough together, less any to spare."""
        short = self.bytes_on(device) - free
        victims: list[_Stay] = []
        if short > 0:
            able = [stay for stay in stays if stay.guard is None]
            most = sum(stay.gives for stay in able)
            if not most or (most < short and self.demand.bytes):
                return None
            short = min(short, most)
            ranked = sorted(able, key=self.rank)
            totals = list(accumulate(stay.gives for stay in ranked))
            last = bisect_left(totals, short)
            spare = totals[last] - short
            for stay in reversed(ranked[: last + 1]):
                if stay.gives <= spare:
                    spare -= stay.gives
                else:
                    victims.append(stay)
        left = free + sum(victim.gives for victim in victims) - self.bytes_on(device)
        return _Offer(self.price(victims), left, device, tuple(reversed(victims)))

    def price(self, victims: Sequence[_Stay]) -> tuple[float, ...]:
        """What evicting these costs, compared in this order: requests to wait for, urgency, worth, number."""
        if not victims:
            return ()
        if self.policy.order is Order.LRU:
            worth = max(self.score(victim) for victim in victims)
        else:
            worth = sum(self.score(victim) * victim.gives for victim in victims)
        draining = any(victim.tenant.in_flight for victim in victims)
        return draining, -min(victim.tenant.priority for victim in victims), worth, len(victims)

    def accept(self, offers: Sequence[_Offer], mates: Sequence[_Stay]) -> Plan:
        """The plan that takes these offers."""
        chosen = _by_holder(stay for offer in offers for stay in offer.victims)
        if len(offers) > 1:
            self.spare(chosen, [offer.device for offer in offers])
        after = self.ledger.without(chosen)
        placements = [
            Placement(
                device=offer.device,
                free_before_bytes=self.ledger.free_bytes(offer.device),
                free_after_bytes=after.free_bytes(offer.device) - self.bytes_on(offer.device),
            )
            for offer in offers
        ]
        victims = [self.victim(stays) for stays in (*_by_holder(mates).values(), *chosen.values())]
        return Plan(holder=self.demand.holder, placements=tuple(placements), victims=tuple(victims))

    def spare(self, chosen: dict[str, list[_Stay]], devices: Sequence[str]) -> None:
        """Take out who need not leave, because others that do leave several of the devices."""
        for holder in reversed([*chosen]):
            after = self.ledger.without(each for each in chosen if each != holder)
            if all(after.free_bytes(device) >= self.bytes_on(device) for device in devices):
                del chosen[holder]

    def victim(self, stays: Sequence[_Stay]) -> Victim:
        """A tenant that has to leave one device or several, and why."""
        stay, gives = stays[0], sum(each.gives for each in stays)
        tenant = stay.tenant
        reason = "priority" if tenant.priority > self.demand.priority else "capacity"
        if self.demand.group and tenant.group == self.demand.group:
            reason = "group"
        parts = [
            f"priority {tenant.priority}",
            f"{tenant.in_flight} in flight" if tenant.in_flight else f"idle {self.idle_s(tenant):.0f}s",
            f"{tenant.uses} uses",
            f"{tenant.reload_s:.1f}s to load again",
            str(Bytes(gives)),
        ]
        return Victim(
            holder=tenant.holder,
            device=tenant.device,
            bytes=gives,
            reason=reason,
            because=", ".join(parts),
            score=self.score(stay),
            after_drain=tenant.in_flight > 0,
        )

    def obstacle(self, device: str, stays: Sequence[_Stay]) -> Obstacle:
        """Why the demand does not fit on a device, and when it may."""
        evictable = sum(stay.gives for stay in stays if stay.guard is None)
        short = self.bytes_on(device) - self.ledger.free_bytes(device) - evictable
        too_large = self.bytes_on(device) > self.ledger.accounts[device].limit_bytes
        return self.explain(device, stays, short, Reason.TOO_LARGE if too_large else Reason.HELD)

    def moving_mates(self, tenants: Iterable[Tenant]) -> list[str]:
        """Those of the demand's group that have memory and are no tenants: being loaded, or ending."""
        group = self.demand.group
        holders = {charge.holder for charge in self.ledger.charges if group and charge.group == group}
        return sorted(holders - {self.demand.holder} - {tenant.holder for tenant in tenants})

    def beside(self, holders: Iterable[str]) -> str:
        """Says that the demand has to wait for others of its group."""
        names = ", ".join(holders)
        return f"{self.asks()} and is never loaded beside {names} of its group {self.demand.group!r}"

    def refuse_beside(self, mates: Sequence[_Stay]) -> Refusal:
        """The refusal while these of the demand's group may not be unloaded."""
        obstacles = [self.explain(mate.tenant.device, [mate], mate.gives, Reason.HELD) for mate in mates]
        refusal = self.refuse(obstacles, missing=len(obstacles))
        held = "; ".join(map(str, obstacles))
        message = f"{self.beside(_by_holder(mates))}, which may not be unloaded now; {held}"
        return replace(refusal, message=message, missing=0)

    def asks(self) -> str:
        """What the demand wants, in words."""
        sizes = dict.fromkeys(Bytes(self.bytes_on(each.device)) for each in self.ledger.candidates(self.demand))
        on_each = f" on each of {self.demand.shards} devices" if self.demand.shards > 1 else ""
        size = " or ".join(map(str, sizes or [Bytes(self.demand.bytes)]))
        return f"{self.demand.holder} needs {size} at priority {self.demand.priority}{on_each}"

    def explain(self, device: str, stays: Sequence[_Stay], short: int, otherwise: Reason) -> Obstacle:
        """The obstacle while `short` bytes of what is guarded are missing, for a reason that may end or `otherwise`."""
        guarded: dict[Guard, int] = defaultdict(int)
        for stay in stays:
            if stay.guard is not None:
                guarded[stay.guard] += stay.gives
        ends = sorted((stay.until, stay.gives) for stay in stays if stay.guard is not None and stay.until < inf)
        totals = list(accumulate(gives for _, gives in ends))
        enough = bisect_left(totals, short)
        reason = otherwise
        if enough < len(ends):
            reason = Reason.RESIDENCY
        elif sum(totals[-1:]) + guarded[Guard.IN_FLIGHT] >= short:
            reason = Reason.IN_FLIGHT
        account = self.ledger.accounts[device]
        return Obstacle(
            device=device,
            reason=reason,
            limit_bytes=account.limit_bytes,
            unmanaged_bytes=account.unmanaged_bytes,
            free_bytes=self.ledger.free_bytes(device),
            evictable_bytes=sum(stay.gives for stay in stays if stay.guard is None),
            guarded_bytes={guard: guarded[guard] for guard in Guard if guarded[guard]},
            retry_after_s=ends[enough][0] - self.now if reason is Reason.RESIDENCY else None,
        )

    def refuse(self, obstacles: Sequence[Obstacle], missing: int) -> Refusal:
        """The refusal while `missing` of these obstacles have to go, for the reason of the last of the best ones."""
        hope = list(Reason)
        ranked = sorted(obstacles, key=lambda each: (hope.index(each.reason), each.retry_after_s or 0.0, each.device))
        last = ranked[missing - 1]
        return Refusal(
            holder=self.demand.holder,
            reason=last.reason,
            message=f"{self.asks()}{_ADVICE[last.reason]}; {'; '.join(map(str, obstacles))}",
            obstacles=tuple(obstacles),
            missing=missing,
            retry_after_s=last.retry_after_s,
        )


_ADVICE = {
    Reason.RESIDENCY: " and has to wait until a model has stayed its time",
    Reason.IN_FLIGHT: " and has to wait until requests have ended",
    Reason.HELD: " and nothing that could make room for it may be unloaded",
    Reason.TOO_LARGE: " and fits on no device even when it is empty",
}


def _by_holder(stays: Iterable[_Stay]) -> dict[str, list[_Stay]]:
    """In the order of the first of each."""
    found: dict[str, list[_Stay]] = {}
    for stay in stays:
        found.setdefault(stay.tenant.holder, []).append(stay)
    return found


def _offline(demand: Demand, ledger: Ledger) -> Refusal:
    accepts = demand.devices if isinstance(demand.devices, str) else ", ".join(demand.devices)
    known = ", ".join(f"{each.device} ({each.kind}, {each.state})" for each in ledger.accounts.values()) or "none"
    message = f"{demand.holder} needs {demand.shards} device(s) of {accepts} online; there are: {known}"
    return Refusal(holder=demand.holder, reason=Reason.NO_DEVICE, message=message)
