"""Whom to unload so that somebody else fits. Pure.

`plan` answers with a Plan (a device, and who has to leave it) or a Refusal that says what is in the way.

Never unloaded: what is pinned; what is more urgent than the demand; what has requests in flight, unless the
demand is more urgent, and then only after they have ended; what has not stayed its minimum residency; and,
for a while longer, the model that the one who asks was itself unloaded for. Of the rest idle ones go before
busy ones, less urgent before more urgent, and then those of least value, which is GreedyDual-Size-Frequency:

    value = inflation when last used + log2(1 + uses) * seconds to load again / GiB

Every eviction raises its device's inflation to the value of what was evicted, so that whatever is not used
again grows old. Uses count by their logarithm because evictions are rare and requests are not: a model that
answered ten thousand requests this morning must not take ten thousand evictions to grow old.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import log2

from moc.gpu.ledger import Account, Demand, Ledger, place
from moc.kernel.units import Bytes

GIB = 2**30
EVICTIONS_MAX = 256


class Order(StrEnum):
    """Which of equally urgent models goes first: the one of least value, or the one unused for longest."""

    COST = "cost"
    LRU = "lru"


class Guard(StrEnum):
    """What keeps a tenant where it is, the most lasting first."""

    PINNED = "pinned"
    PRIORITY = "priority"
    IN_FLIGHT = "in_flight"
    SWAP_BACK = "swap_back"
    RESIDENCY = "residency"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How eviction chooses.

    `min_residency_s` is how long a model stays at least once it is loaded, whoever asks; a tenant's own value
    goes before it. `swap_back_reloads` times its own loading time is how long it stays at least when the one
    who asks was unloaded for it: at 1, two models that displace each other spend half the time loading at most.
    """

    order: Order = Order.COST
    min_residency_s: float = 5.0
    swap_back_reloads: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A model that is loaded, as eviction sees it. Seconds are on one monotonic clock, `now`'s.

    `reload_s` is what loading it again costs (measured), `uses` how often it was used while loaded. `bytes` is
    what it was measured to hold; what its eviction gives is what the ledger charges it. Models of one `group`
    are never loaded together; empty is no group. `min_residency_s` goes before the policy's.
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
    """One that happened: `holder` left `device` at `at` for `successor`, which raised inflation to `inflation`."""

    at: float
    holder: str
    device: str
    successor: str
    inflation: float


@dataclass(frozen=True, slots=True)
class History:
    """The last evictions, oldest first: all that eviction remembers. Losing it costs good choices, no promise."""

    evictions: tuple[Eviction, ...] = ()

    def after(self, plan: "Plan", now: float) -> "History":
        """The history once a plan's victims are unloaded; only the last EVICTIONS_MAX are kept."""
        new = tuple(
            Eviction(
                at=now, holder=victim.holder, device=victim.device, successor=plan.holder, inflation=plan.inflation
            )
            for victim in plan.victims
        )
        return replace(self, evictions=(*self.evictions, *new)[-EVICTIONS_MAX:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """Who has to leave. `bytes` is what that gives back; of equally urgent ones the lowest `score` goes first.

    `reason` is `capacity`, `priority` (less urgent than the demand) or `group` (may not be loaded beside it);
    `because` says it in words and numbers. `after_drain`: requests are in flight and must end first.
    """

    holder: str
    device: str
    bytes: int
    reason: str
    because: str
    score: float
    after_drain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where the demand of `holder` goes, and who leaves for it.

    `free_before_bytes` is what is free on the device now, `free_after_bytes` what is when the victims are gone
    and the demand is charged. `inflation` is for `History.after`.
    """

    holder: str
    device: str
    victims: tuple[Victim, ...] = ()
    free_before_bytes: int
    free_after_bytes: int
    inflation: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why a demand fits no device of these: what is free, what could be freed, and who holds the rest and why."""

    device: str
    reason: str
    limit_bytes: int
    unmanaged_bytes: int
    free_bytes: int
    evictable_bytes: int
    guarded_bytes: Mapping[Guard, int] = field(default_factory=dict)
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a demand fits nowhere.

    `reason` is of the most promising device: `residency` (it will fit in `retry_after_s`, if nothing else
    happens), `in_flight` (when requests have ended), `held` (by what is pinned, more urgent, leased or
    unmanaged), `too_large` (not even on an empty device), `no_device` (none that it accepts is online).
    """

    reason: str
    message: str
    obstacles: tuple[Obstacle, ...] = ()
    retry_after_s: float | None = None


def plan(
    demand: Demand, ledger: Ledger, tenants: Sequence[Tenant], *, policy: Policy, now: float, history: History
) -> Plan | Refusal:
    """Where a demand goes and who leaves for it, or why it fits nowhere. The same facts give the same answer.

    Nobody leaves while there is a device it fits on. Otherwise, of the devices it may be put on, the one where
    eviction loses least; there no victim could be spared. A Plan leaves the device at or under its limit.
    """
    accounts = ledger.candidates(demand)
    if not accounts:
        wanted = demand.devices if isinstance(demand.devices, str) else ", ".join(demand.devices)
        known = ", ".join(f"{each.device} ({each.state})" for each in ledger.accounts.values()) or "none"
        return Refusal(
            reason="no_device", message=f"{demand.holder} wants {wanted}, and no such device is online; known: {known}"
        )
    scene = _Scene(demand, ledger, policy, now, history)
    stays = scene.judge(tenants)
    mates = [tenant for tenant in stays if demand.group and tenant.tenant.group == demand.group]
    if any(mate.guard for mate in mates):
        return scene.refusal([scene.obstacle(ledger.accounts[mate.tenant.device], [mate]) for mate in mates])
    scene.dismiss(mates)
    fit = place(demand, scene.ledger)
    if fit:
        return scene.plan(fit, [])
    by_device: dict[str, list[_Stay]] = defaultdict(list)
    for stay in stays:
        by_device[stay.tenant.device].append(stay)
    choices = []
    for account in accounts:
        victims = scene.cheapest(account.device, by_device[account.device])
        if victims:
            choices.append((scene.price(victims), account.device, victims))
    if choices:
        _, device, victims = min(choices, key=lambda choice: choice[:2])
        return scene.plan(device, victims)
    return scene.refusal([scene.obstacle(account, by_device[account.device]) for account in accounts])
