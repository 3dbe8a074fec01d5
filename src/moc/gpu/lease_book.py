"""What is written down of leases: every move in one commit with its event, and the count behind their tokens."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moc.cluster.holder import Holder
from moc.gpu.lease import ENDED, MOVES, Lease, LeaseState, Token
from moc.gpu.ledger import Charge, Placement
from moc.gpu.occupant import remembered
from moc.gpu.ports import HostSeat
from moc.kernel.errors import Conflict
from moc.kernel.events import Event
from moc.kernel.records import ABSENT, Op, Store, Table

MARGIN_S = 1.0
"""How much longer than its holder trusts it a lease is kept, for clocks that do not run alike."""

ENDED_MAX = 1_000
"""How many leases that have ended are still told of."""

_COUNTER = "count"


@dataclass(slots=True)
class Held:
    """A lease that has memory, with what only this run of the coordinator knows; times are monotonic.

    `tree` are the processes that use it, as last seen; `successor` is the holder of charges that it ends for. Whoever
    changes its state has `moving`.
    """

    lease: Lease
    revision: int | None
    renewed_at: float
    admitted_at: float
    tree: frozenset[Holder] = frozenset()
    evict_at: float | None = None
    successor: str = ""
    moving: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def charge(self) -> Charge:
        """What it is charged."""
        kind, terms = "quarantine" if self.lease.quarantined else "lease", self.lease.terms
        return Charge(
            holder=f"{kind}:{self.lease.id}", device=self.lease.device, bytes=terms.bytes, priority=terms.priority
        )

    @property
    def due_at(self) -> float:
        """When it expires unless it is renewed."""
        return self.renewed_at + self.lease.terms.ttl_s + MARGIN_S

    @property
    def ends_at(self) -> float | None:
        """When its memory is free again; None when that is not known, as of one that is renewed: it goes on."""
        if self.lease.quarantined:
            return None
        if self.evict_at is not None:
            return self.evict_at
        return self.due_at if self.renewed_at == self.admitted_at else None


@dataclass(frozen=True, slots=True)
class Admission:
    """A lease that is to have memory, and where."""

    pending: Lease
    place: Placement

    def numbers(self, wall: float) -> dict[str, Any]:
        """What its event tells."""
        return {
            "wait_s": round(wall - self.pending.created_at, 3),
            "free_before_bytes": self.place.free_before_bytes,
            "free_after_bytes": self.place.free_after_bytes,
        }


class LeaseBook:
    """The records of leases. Any one lease has one writer at a time, `admit` one caller; the seat keeps others out."""

    def __init__(self, *, store: Store, seat: HostSeat) -> None:
        self._store = store
        self._seat = seat
        self._table: Table[Lease] = Table(store, "leases/", Lease)
        self._counts: Table[int] = Table(store, "lease-", int)
        self._count: tuple[int, int | None] = (0, ABSENT)
        self.ended: OrderedDict[str, Lease] = OrderedDict()

    async def read(self, now: float) -> list[Held]:
        """The leases that have memory; what has ended is in `ended`, oldest first."""
        self._count = await self._counts.find(_COUNTER) or (0, ABSENT)
        found, ended = [], []
        for _, lease, revision in await self._table.list():
            if lease.state in ENDED and not lease.quarantined:
                ended.append(lease)
                continue
            held = Held(lease, revision, renewed_at=now, admitted_at=now, tree=remembered(lease.process))
            if lease.state is LeaseState.PREEMPTING:
                held.evict_at = now + lease.terms.grace_s
            found.append(held)
        self.ended = OrderedDict((each.id, each) for each in sorted(ended, key=lambda each: each.granted_at))
        return found

    def check(self) -> None:
        """NotLeader when this coordinator may not speak for the leases any more."""
        self._seat.fence()

    async def admit(self, admissions: Sequence[Admission], *, now: float, wall: float) -> list[Held]:
        """Give leases their memory and their tokens: all of them or none."""
        fence = self._seat.fence()
        first, revision = self._count
        leases = [
            replace(
                each.pending,
                state=LeaseState.ADMITTED,
                reason="Granted",
                device=each.place.device,
                token=Token(fence.term, seq),
                granted_at=wall,
            )
            for seq, each in enumerate(admissions, first + 1)
        ]
        count = first + len(leases)
        counted = self._counts.put(_COUNTER, count, expect=revision)
        self._count = (count, None)  # whether it was counted is not known if this fails; skipping some does no harm
        made = await self._store.commit(
            [fence, counted, *(self._table.put(lease.id, lease, expect=ABSENT) for lease in leases)],
            [_event(lease, lease.holder, each.numbers(wall)) for lease, each in zip(leases, admissions, strict=True)],
        )
        self._count = (count, made)
        return [Held(lease, made, renewed_at=now, admitted_at=now, tree=remembered(lease.process)) for lease in leases]

    async def move(
        self,
        held: Held,
        state: LeaseState,
        *,
        reason: str,
        actor: str,
        quarantined: bool = False,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Record that a lease is in another state; Conflict when it cannot be."""
        if state not in MOVES[held.lease.state]:
            raise Conflict(f"lease {held.lease.id} is {held.lease.state} and cannot become {state}")
        lease = replace(held.lease, state=state, reason=reason, quarantined=quarantined)
        await self._write(held, lease, _event(lease, actor, data or {}))

    async def occupy(self, held: Held, process: Holder, *, actor: str) -> None:
        """Record which process uses a lease."""
        lease = replace(held.lease, process=str(process))
        event = Event(kind="lease.occupied", subject=lease.id, actor=actor, data={"pid": process.pid})
        await self._write(held, lease, event)
        held.tree = frozenset({process})

    async def free(self, held: Held) -> None:
        """Record that the process of a lease that ended before it is gone."""
        lease = replace(held.lease, quarantined=False)
        await self._write(
            held, lease, Event(kind="lease.freed", subject=lease.id, reason="ProcessGone", data=_numbers(lease))
        )

    async def refused(self, lease: Lease, message: str) -> None:
        """Record that a lease was not granted."""
        event = Event(
            kind="lease.refused",
            subject=lease.id,
            reason="NoCapacity",
            actor=lease.holder,
            data={**_numbers(lease), "message": message},
        )
        await self._store.commit([self._seat.fence()], [event])

    async def _write(self, held: Held, lease: Lease, event: Event) -> None:
        ops: list[Op] = [self._seat.fence(), self._table.put(lease.id, lease, expect=held.revision)]
        spare = [self.ended.popitem(last=False) for _ in range(len(self.ended) - ENDED_MAX + 1)]
        ops += [self._table.delete(old, expect=None) for old, _ in spare]
        held.revision = None  # until it is known whether this one was made
        try:
            held.revision = await self._store.commit(ops, [event])
        except BaseException:
            self.ended = OrderedDict([*spare, *self.ended.items()])
            raise
        held.lease = lease


def _numbers(lease: Lease) -> dict[str, Any]:
    return {"bytes": lease.terms.bytes, "priority": lease.terms.priority, "device": lease.device or lease.terms.devices}


def _event(lease: Lease, actor: str, data: dict[str, Any]) -> Event:
    if lease.quarantined:
        data = {**data, "quarantined": True}
    return Event(
        kind=f"lease.{lease.state}",
        subject=lease.id,
        reason=lease.reason,
        actor=actor,
        data={**_numbers(lease), "token": str(lease.token), **data},
    )
