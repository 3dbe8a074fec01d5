"""Who gets device memory: the one who charges it, before anything starts, and gives it back when it is proven free.

One decision at a time. What a holder that has ended did not really give back shows in the next reading as
unmanaged, so it is never given away twice.
"""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from moc.gpu.device import DeviceStatus, unmanaged_bytes
from moc.gpu.eviction import History, Policy, plan
from moc.gpu.ledger import Account, Charge, Demand, Ledger, Placement, fit
from moc.gpu.monitor import DeviceMonitor
from moc.gpu.plan import JobLease, Plan, Reason, Refusal, Victim
from moc.gpu.ports import Tenants, Yielding
from moc.kernel.clock import Clock
from moc.kernel.errors import NoCapacity
from moc.kernel.events import Event
from moc.kernel.records import Store
from moc.resilience.deadline import Deadline

log = structlog.get_logger(__name__)

PAUSE_S = 0.25
"""How long a demand that may fit soon waits before it is looked at again, unless something is given back."""

PASSING = frozenset({Reason.RESIDENCY, Reason.IN_FLIGHT})
"""What is in the way only for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Memory that was charged: where, how much on each device, and who was evicted for it."""

    holder: str
    placements: tuple[Placement, ...]
    bytes: int
    evicted: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices."""
        return tuple(place.device for place in self.placements)

    @property
    def device(self) -> str:
        """The device; of several the first."""
        return self.devices[0]


class Broker:
    """Charges device memory to holders. `soft_limit_pct` of each device is given away at most.

    `managed` tells the process ids whose memory is charged here; what others use is unmanaged. `on_evicted` is
    called with the reason of each eviction. Charges are
    a cache of what the workers' records say: whoever starts it after a crash charges those again (`adopt`).
    """

    def __init__(
        self,
        *,
        monitor: DeviceMonitor,
        tenants: Tenants,
        managed: Callable[[], Collection[int]],
        store: Store,
        soft_limit_pct: float,
        policy: Policy,
        clock: Clock,
        on_evicted: Callable[[str], None],
    ) -> None:
        self._monitor = monitor
        self._tenants = tenants
        self._managed = managed
        self._store = store
        self._soft_limit_pct = soft_limit_pct
        self._policy = policy
        self._clock = clock
        self._charges: dict[str, dict[str, Charge]] = {}
        self._charged_bytes: Counter[str] = Counter()
        self._history = History()
        self._deciding = asyncio.Lock()
        self._freed = asyncio.Event()
        self._on_evicted = on_evicted
        self._yielding: Yielding | None = None

    def join(self, yielding: Yielding) -> None:
        """Have leases give way to models from now on."""
        self._yielding = yielding

    def adjust(self, *, soft_limit_pct: float, policy: Policy) -> None:
        """Give away so much, and evict so, from the next decision on; what is charged stays charged."""
        self._soft_limit_pct = soft_limit_pct
        self._policy = policy
        self._freed.set()

    # what is known

    def charges(self) -> list[Charge]:
        """Every charge there is."""
        return [charge for held in self._charges.values() for charge in held.values()]

    def held(self, holder: str) -> list[Charge]:
        """What one holder is charged, device by device."""
        return list(self._charges.get(holder, {}).values())

    def limit_bytes(self, status: DeviceStatus) -> int:
        """How much of a device may be in use before nothing more is given away."""
        return int(status.device.capacity_bytes * self._soft_limit_pct / 100)

    def unmanaged_bytes(self, status: DeviceStatus) -> int:
        """What processes nobody declared use of a device; 0 while it cannot be read."""
        return 0 if status.reading is None else unmanaged_bytes(status.reading, self._managed())

    def accounts(self, limit_pct: float | None = None) -> dict[str, Account]:
        """Every device's side of the ledger, by id; under another limit than the soft one, if one is given."""
        managed = self._managed()
        share = (self._soft_limit_pct if limit_pct is None else limit_pct) / 100
        return {
            status.device.id: Account(
                device=status.device.id,
                kind=status.device.kind,
                capacity_bytes=status.device.capacity_bytes,
                limit_bytes=int(status.device.capacity_bytes * share),
                unmanaged_bytes=0 if status.reading is None else unmanaged_bytes(status.reading, managed),
                state=status.state,
            )
            for status in self._monitor.statuses()
        }

    def free(self, accounts: Mapping[str, Account]) -> dict[str, int]:
        """What may still be charged on each of these devices: `Ledger.free`, however many charges there are."""
        return {
            key: each.limit_bytes - each.unmanaged_bytes - self._charged_bytes[key] for key, each in accounts.items()
        }

    def ledger(self, limit_pct: float | None = None) -> Ledger:
        """Who holds what, now; under another limit than the soft one, if one is given."""
        accounts = self.accounts(limit_pct)
        return Ledger(accounts, tuple(charge for charge in self.charges() if charge.device in accounts))

    def explain(self, demand: Demand) -> Plan | Refusal:
        """What `reserve` would do now; changes nothing."""
        return self._plan(demand, self.ledger().without([demand.holder]))

    def foresee(self, demand: Demand) -> tuple[Plan | Refusal, Sequence[JobLease]]:
        """What `reserve` would do for a model in the end, and the leases that would end for it; changes nothing."""
        outcome = self.explain(demand)
        if isinstance(outcome, Plan) or self._yielding is None:
            return outcome, ()
        leases = self._yielding.foresee(demand, outcome)
        if leases:
            gone = [demand.holder, *(lease.holder for lease in leases)]
            outcome = self._plan(demand, self.ledger().without(gone))
        return outcome, leases

    # what holders ask

    def charge(self, demand: Demand) -> Grant | Plan | Refusal:
        """Charge the demand now if it fits without anybody leaving; if not, what `reserve` would have to do.

        It counts on the latest readings, and tells nobody: its caller does both. What comes free while somebody
        is unloaded is for the one that is done for, so nothing is charged here meanwhile.
        """
        accounts = self.accounts()
        free = self.free(accounts)
        for charge in self.held(demand.holder):
            free[charge.device] = free.get(charge.device, 0) + charge.bytes
        placements = fit(demand, Ledger(accounts).candidates(demand), free)
        if not placements or demand.group or self._deciding.locked():
            return self.explain(demand)
        return self._put(demand, placements, ())

    async def reserve(self, demand: Demand, deadline: Deadline) -> Grant:
        """Charge the demand, evicting whom that takes; NoCapacity when it does not fit by the deadline.

        Where models leave too little, and there is time, leases of jobs end for it. Its holder gives it back with
        `release`, whatever becomes of it. Who was evicted in vain is named in the error's details, as `evicted`.
        """
        try:
            return await self._reserve(demand, deadline, tell=True)
        finally:
            if self._yielding is not None:
                self._yielding.forget(demand.holder)

    async def reserve_now(self, demand: Demand) -> Grant:
        """The same for a lease: at once or not at all, and its caller tells of the charge."""
        return await self._reserve(demand, Deadline.after(0), tell=False)

    async def _reserve(self, demand: Demand, deadline: Deadline, *, tell: bool) -> Grant:
        evicted: list[str] = []
        asked_at = self._clock.monotonic()
        while True:
            await self._monitor.refresh()
            async with self._deciding:
                self._freed.clear()
                demand = replace(demand, waited_s=self._clock.monotonic() - asked_at)
                outcome = self.explain(demand)
                if isinstance(outcome, Plan) and outcome.victims:
                    evicted += await self._evict(outcome)
                    outcome = self.explain(demand)  # now, before those who left can take what they made free
                if isinstance(outcome, Plan) and not outcome.victims:
                    grant = self._put(demand, outcome.placements, tuple(evicted))
                    if tell:
                        charges = self._charges[demand.holder]
                        await self._store.commit([], [_charged(charges[at.device], at) for at in grant.placements])
                    return grant
                if isinstance(outcome, Refusal):
                    await self._make_way(demand, outcome, deadline)
            if isinstance(outcome, Refusal):
                await self._wait_or_refuse(demand, outcome, deadline, evicted)

    def adopt(self, charge: Charge) -> None:
        """Charge what a holder has already, as its record says; other devices of its are charged as before."""
        held = self._charges.setdefault(charge.holder, {})
        before = held.get(charge.device)
        self._charged_bytes[charge.device] += charge.bytes - (0 if before is None else before.bytes)
        held[charge.device] = charge

    def observe(self, holder: str, measured_bytes: int, *, device: str) -> None:
        """A holder was measured to hold so much of a device: what is over its charge there is charged too.

        So is what it holds of a device that it never asked for. Nothing happens to who is charged nothing.
        """
        held = self._charges.get(holder)
        if not held:
            return
        charge = held.get(device) or replace(next(iter(held.values())), device=device, bytes=0)
        if measured_bytes > charge.bytes:
            self.adopt(replace(charge, bytes=measured_bytes))

    def release(self, holder: str) -> None:
        """Take all its charges back: the holder's process is dead. Idempotent."""
        for charge in self._charges.pop(holder, {}).values():
            self._charged_bytes[charge.device] -= charge.bytes
            self._monitor.doubt(charge.device)
            self._freed.set()

    async def relieve(self, threshold_pct: float) -> None:
        """Unload models from devices that are filled past `threshold_pct`, by outside processes or by growing."""
        async with self._deciding:
            ledger = self.ledger(threshold_pct)
            for device in [device for device, free in ledger.free().items() if free < 0]:
                demand = Demand(holder=f"outside:{device}", bytes=0, devices=(device,), priority=0)
                outcome = self._plan(demand, ledger)
                if isinstance(outcome, Plan):
                    await self._evict(outcome)

    def abandon(self) -> None:
        """Begin to end the models on devices that are given up: nobody can compute there any more."""
        lost = self._monitor.given_up()
        for tenant in self._tenants.tenants() if lost else ():
            if tenant.device in lost:
                problem = f": {lost[tenant.device]}" if lost[tenant.device] else ""
                self._tenants.lose(tenant.holder, because=f"its device {tenant.device} is lost{problem}")

    def _plan(self, demand: Demand, ledger: Ledger) -> Plan | Refusal:
        tenants, now = self._tenants.tenants(), self._clock.monotonic()
        return plan(demand, ledger, tenants, policy=self._policy, now=now, history=self._history)

    def _put(self, demand: Demand, placements: tuple[Placement, ...], evicted: tuple[str, ...]) -> Grant:
        self.release(demand.holder)
        charges = [self._charge_for(demand, place.device) for place in placements]
        for charge in charges:
            self.adopt(charge)
        largest = max(charge.bytes for charge in charges)
        return Grant(holder=demand.holder, placements=placements, bytes=largest, evicted=evicted)

    def _charge_for(self, demand: Demand, device: str) -> Charge:
        size = demand.bytes_on(self._monitor.status(device).device.kind)
        return Charge(holder=demand.holder, device=device, bytes=size, priority=demand.priority, group=demand.group)

    async def _evict(self, outcome: Plan) -> list[str]:
        self._history = self._history.after(outcome)
        for victim in outcome.victims:
            await self._tell_eviction(victim, outcome)
            await self._tenants.evict(victim.holder, reason="Evicted", because=victim.because)
            self._on_evicted(victim.reason)
        await self._monitor.refresh()
        return [victim.holder for victim in outcome.victims]

    async def _make_way(self, demand: Demand, refusal: Refusal, deadline: Deadline) -> None:
        left_s = deadline.remaining_s()
        if self._yielding is not None and (left_s is None or left_s > 0):
            await self._yielding.to_model(demand, refusal, math.inf if left_s is None else left_s)

    async def _wait_or_refuse(self, demand: Demand, refusal: Refusal, deadline: Deadline, evicted: list[str]) -> None:
        left_s = deadline.remaining_s()
        too_late = left_s is not None and (left_s <= 0 or (refusal.retry_after_s or 0.0) > left_s)
        if too_late or not self._may_pass(refusal):
            await self._tell("device.refused", demand.holder, reason=refusal.reason, message=refusal.message)
            raise NoCapacity(
                refusal.message,
                details={
                    "reason": refusal.reason,
                    "devices": [str(obstacle) for obstacle in refusal.obstacles],
                    "evicted": evicted,
                },
                retry_after_s=refusal.retry_after_s,
            )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PAUSE_S if left_s is None else min(PAUSE_S, left_s)):
                await self._freed.wait()

    def _may_pass(self, refusal: Refusal) -> bool:
        """Whether waiting can help: a model has to stay a little longer, or one is only just being loaded."""
        if refusal.reason in PASSING:
            return True
        loaded = {tenant.holder for tenant in self._tenants.tenants()}
        return refusal.reason is Reason.HELD and any(holder not in loaded for holder in self._charges)

    async def _tell_eviction(self, victim: Victim, outcome: Plan) -> None:
        await self._tell(
            "model.evicted",
            victim.holder.removeprefix("model:"),
            reason=victim.reason,
            successor=outcome.holder,
            device=victim.device,
            bytes=victim.bytes,
            score=victim.score,
            because=victim.because,
            after_drain=victim.after_drain,
        )

    async def _tell(self, kind: str, subject: str, *, reason: str, **data: Any) -> None:
        await self._store.commit([], [Event(kind=kind, subject=subject, reason=reason, data=data)])


def _charged(charge: Charge, place: Placement) -> Event:
    data = {
        "holder": charge.holder,
        "bytes": charge.bytes,
        "free_before_bytes": place.free_before_bytes,
        "free_after_bytes": place.free_after_bytes,
    }
    return Event(kind="device.charged", subject=place.device, reason="Placed", data=data)
