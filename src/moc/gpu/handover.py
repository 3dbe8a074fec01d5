"""Memory on its way from leases to who is more urgent: nobody else gets it in between."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from moc.gpu.broker import Broker
from moc.gpu.lease import LeaseState
from moc.gpu.lease_book import Held, LeaseBook
from moc.gpu.ledger import Charge, Demand
from moc.gpu.plan import JobLease, Obstacle, Reason, Refusal
from moc.gpu.preemption import Claim, Preemptible, Preemption, preempt
from moc.kernel.clock import Clock

SYSTEM = "system"

IN_THE_WAY = frozenset({Reason.HELD, Reason.IN_FLIGHT})
"""What a model has leases of jobs end for; what only has to stay a little longer it waits for instead."""


class Handover:
    """Whose leases end for whom. Who waits is known by the holder of its charge.

    What leases give back for one is charged to it at once, up to what it wants there, until it takes that, or is
    forgotten. A model also keeps what is free there already.
    """

    def __init__(self, *, book: LeaseBook, broker: Broker, held: Mapping[str, Held], clock: Clock) -> None:
        self._book = book
        self._broker = broker
        self._held = held
        self._clock = clock
        self._awaited: dict[str, dict[str, Charge]] = {}

    # for leases that wait

    async def to_lease(self, demand: Demand, patience_s: float, refusal: Refusal) -> str:
        """Have less urgent leases end for one that waits, if that makes room; on which device, empty when not.

        Those told before are waited for first.
        """
        if any(held.successor == demand.holder for held in self._held.values()):
            return ""
        missing = {each.device: self._missing(demand, each) for each in refusal.obstacles if each.reason is Reason.HELD}
        chosen = preempt(Claim(priority=demand.priority, patience_s=patience_s), missing, self._running())
        if not chosen:
            return ""
        self._awaited[demand.holder] = {each.device: self._wanted(demand, each.device) for each in chosen}
        await self._notify(demand.holder, chosen)
        return chosen[0].device

    # for models; see `gpu.ports.Yielding`

    def foresee(self, demand: Demand, refusal: Refusal) -> Sequence[JobLease]:
        """See `gpu.ports.Yielding`."""
        leases = [replace(lease, ran_s=math.inf) for lease in self._running()]  # it can wait until they have run
        chosen = self._choose(demand, refusal, math.inf, leases)
        return [self._job_lease(self._held[victim]) for each in chosen for victim in each.victims]

    async def to_model(self, demand: Demand, refusal: Refusal, patience_s: float) -> None:
        """See `gpu.ports.Yielding`."""
        # leases may end for it already: for this load, or for one before that was given up
        ending = {held.lease.device for held in self._held.values() if held.successor == demand.holder}
        chosen = [] if ending else self._choose(demand, refusal, patience_s, self._running())
        if chosen or demand.holder not in self._awaited:
            self._await(demand, ending | {each.device for each in chosen}, refusal)
        await self._notify(demand.holder, chosen)

    def forget(self, holder: str) -> bool:
        """See `gpu.ports.Yielding`."""
        return self._awaited.pop(holder, None) is not None

    # for those who look after leases

    def pass_on(self, held: Held) -> None:
        """A lease gave its bytes back: they are its successor's if that waits for them still."""
        wanted = self._awaited.get(held.successor, {}).get(held.lease.device)
        if wanted is not None:
            kept = sum(charge.bytes for charge in self._broker.held(wanted.holder) if charge.device == wanted.device)
            self._keep(wanted, kept + held.lease.terms.bytes)

    # how

    def _choose(
        self, demand: Demand, refusal: Refusal, patience_s: float, leases: Sequence[Preemptible]
    ) -> list[Preemption]:
        if refusal.reason not in IN_THE_WAY:
            return []
        claim = Claim(priority=demand.priority, patience_s=patience_s, serves=True)
        missing = {each.device: self._missing(demand, each) for each in refusal.obstacles if each.reason in IN_THE_WAY}
        return preempt(claim, missing, leases, devices=refusal.missing)

    def _missing(self, demand: Demand, obstacle: Obstacle) -> int:
        """What is missing on a device once all models that can have gone."""
        return self._bytes_on(demand, obstacle.device) - obstacle.free_bytes - obstacle.evictable_bytes

    def _bytes_on(self, demand: Demand, device: str) -> int:
        return demand.bytes_on(self._broker.accounts()[device].kind)

    def _running(self) -> list[Preemptible]:
        now = self._clock.monotonic()
        return [
            Preemptible(id=key, device=held.lease.device, terms=held.lease.terms, ran_s=now - held.admitted_at)
            for key, held in self._held.items()
            if held.lease.state is LeaseState.ADMITTED
        ]

    def _wanted(self, demand: Demand, device: str) -> Charge:
        size = self._bytes_on(demand, device)
        return Charge(holder=demand.holder, device=device, bytes=size, priority=demand.priority, group=demand.group)

    def _keep(self, wanted: Charge, free_bytes: int) -> None:
        self._broker.adopt(replace(wanted, bytes=max(0, min(wanted.bytes, free_bytes))))

    def _await(self, demand: Demand, devices: Collection[str], refusal: Refusal) -> None:
        """Keep what is free on these devices for a model, and what comes free."""
        self._awaited[demand.holder] = {device: self._wanted(demand, device) for device in devices}
        for each in refusal.obstacles:
            if each.device in devices:
                self._keep(self._wanted(demand, each.device), each.free_bytes)

    async def _notify(self, successor: str, chosen: Sequence[Preemption]) -> None:
        """Tell those that are to end for somebody, as long as that is waited for."""
        for victim in [victim for each in chosen for victim in each.victims]:
            held = self._held.get(victim)
            if held is None:
                continue
            async with held.moving:
                if held.lease.state is LeaseState.ADMITTED and successor in self._awaited:
                    grace_s = held.lease.terms.grace_s
                    data = {"successor": successor.removeprefix("lease:"), "grace_s": grace_s}
                    await self._book.move(held, LeaseState.PREEMPTING, reason="Preempted", actor=SYSTEM, data=data)
                    held.successor, held.evict_at = successor, self._clock.monotonic() + grace_s

    def _job_lease(self, held: Held) -> JobLease:
        terms = held.lease.terms
        return JobLease(
            job=terms.job,
            holder=held.charge.holder,
            device=held.lease.device,
            bytes=terms.bytes,
            priority=terms.priority,
            grace_s=terms.grace_s,
        )
