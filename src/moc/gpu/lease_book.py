"""What is written down of leases: every move in one commit with its event, and the count behind their tokens."""

from collections import deque
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from moc.cluster.holder import Holder
from moc.gpu.lease import ENDED, MOVES, Lease, LeaseState, Token
from moc.gpu.ledger import Charge
from moc.gpu.occupant import remembered
from moc.gpu.ports import HostSeat
from moc.kernel.errors import Conflict
from moc.kernel.events import Event
from moc.kernel.records import ABSENT, Op, Store, Table

ENDED_MAX = 1_000
"""How many leases that have ended are still told of."""

_COUNTER = "count"


@dataclass(slots=True)
class Held:
    """A lease that has memory, with what only this run of the coordinator knows; times are monotonic.

    `tree` are the processes that use it, as last seen; `preemptor` is the lease that it ends for.
    """

    lease: Lease
    revision: int | None
    renewed_at: float
    admitted_at: float
    tree: frozenset[Holder] = frozenset()
    evict_at: float | None = None
    preemptor: str = ""

    @property
    def charge(self) -> Charge:
        """What it is charged."""
        kind, terms = "quarantine" if self.lease.quarantined else "lease", self.lease.terms
        return Charge(
            holder=f"{kind}:{self.lease.id}", device=self.lease.device, bytes=terms.bytes, priority=terms.priority
        )


class LeaseBook:
    """The records of leases. One caller at a time changes any one lease; the seat keeps other coordinators out."""

    def __init__(self, *, store: Store, seat: HostSeat) -> None:
        self._store = store
        self._seat = seat
        self._table: Table[Lease] = Table(store, "leases/", Lease)
        self._counts: Table[int] = Table(store, "lease-", int)
        self._count: tuple[int, int | None] = (0, ABSENT)
        self.ended: deque[Lease] = deque()

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
        self.ended = deque(sorted(ended, key=lambda lease: lease.granted_at))
        return found

    def check(self) -> None:
        """NotLeader when this coordinator may not speak for the leases any more."""
        self._seat.fence()

    async def admit(self, pending: Lease, device: str, *, now: float, wall: float) -> Held:
        """Give a lease its memory and its token."""
        fence = self._seat.fence()
        count, revision = self._count
        lease = replace(
            pending,
            state=LeaseState.ADMITTED,
            reason="Granted",
            device=device,
            token=Token(fence.term, count + 1),
            granted_at=wall,
        )
        held = Held(lease, ABSENT, renewed_at=now, admitted_at=now, tree=remembered(lease.process))
        counted = self._counts.put(_COUNTER, count + 1, expect=revision)
        self._count = (count + 1, None)  # whether it was counted is not known if this fails; skipping one does no harm
        held.revision = await self._store.commit(
            [fence, counted, self._table.put(lease.id, lease, expect=ABSENT)],
            [_event(lease, lease.holder, {"wait_s": round(wall - lease.created_at, 3)})],
        )
        self._count = (count + 1, held.revision)
        return held

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
        spare = max(0, len(self.ended) - ENDED_MAX + 1)
        ops += [self._table.delete(old.id, expect=None) for old in islice(self.ended, spare)]
        held.revision = None  # until it is known whether this one was made
        held.revision = await self._store.commit(ops, [event])
        for _ in range(spare):
            self.ended.popleft()
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
