"""Leases: device memory for any process, waited for in a queue, kept by heartbeats, taken back by priority."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import structlog

from moc.cluster.holder import Holder
from moc.gpu.broker import Broker
from moc.gpu.eviction import Plan, Reason, Refusal
from moc.gpu.ledger import Charge, Demand, Ledger
from moc.gpu.lease import ENDED, MOVES, Lease, LeaseState, LeaseTerms, Standing, Token
from moc.gpu.monitor import DeviceMonitor
from moc.gpu.occupant import living, occupant, remembered
from moc.gpu.ports import HostSeat
from moc.gpu.preemption import Preemptible, preempt
from moc.gpu.queue import Waiter, WaitQueue
from moc.kernel.clock import Clock
from moc.kernel.errors import Conflict, MocError, NoCapacity, NotFound, Unavailable
from moc.kernel.events import Event
from moc.kernel.ids import new_id
from moc.kernel.records import ABSENT, Op, Store, Table
from moc.resilience.deadline import NEVER, Deadline

log = structlog.get_logger(__name__)

TICK_S = 1.0
MARGIN_S = 1.0
"""How much longer than its holder trusts it a lease is kept, for clocks that do not run alike."""

WAITERS_MAX = 10_000
ENDED_MAX = 1_000
"""How many leases that have ended are still told of."""

_COUNTER = "count"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: a key's id and name."""

    id: str
    name: str


SYSTEM = Actor("system", "system")


@dataclass(slots=True)
class _Held:
    """A lease that has memory, with what only this run of the coordinator knows; times are monotonic."""

    lease: Lease
    revision: int | None
    renewed_at: float
    admitted_at: float
    tree: frozenset[Holder] = frozenset()
    evict_at: float | None = None
    preemptor: str = ""

    @property
    def charge(self) -> str:
        """The name its bytes are charged under."""
        return f"{'quarantine' if self.lease.quarantined else 'lease'}:{self.lease.id}"


class Leases:
    """Every lease of this host. Records: `leases/<id>`; events: `lease.<state>`, `lease.refused`, `lease.freed`.

    Nobody gets memory of a device that one before it in the queue waits for. The bytes of a lease stay charged
    until it is released or expires; while a process that was named for it still runs after that, they are
    charged as `quarantine:<id>`. After a restart every lease is there as it was, and its time begins anew.
    """

    def __init__(
        self, *, store: Store, seat: HostSeat, broker: Broker, devices: DeviceMonitor, clock: Clock, tick_s: float = TICK_S
    ) -> None:
        self._store = store
        self._seat = seat
        self._broker = broker
        self._devices = devices
        self._clock = clock
        self._tick_s = tick_s
        self._table: Table[Lease] = Table(store, "leases/", Lease)
        self._counts: Table[int] = Table(store, "lease-", int)
        self._count: tuple[int, int | None] = (0, ABSENT)
        self._queue = WaitQueue(limit=WAITERS_MAX)
        self._hasty: list[Waiter] = []
        self._abandoned: list[str] = []
        self._held: dict[str, _Held] = {}
        self._ended: deque[Lease] = deque()
        self._moving = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._woken = asyncio.Event()
        self._open = False
        self._task: asyncio.Task[None] | None = None

    # life

    async def start(self) -> None:
        """Read what there is, charge it again, and look after it."""
        if self._task is not None:
            return
        now = self._clock.monotonic()
        count = await self._counts.find(_COUNTER)
        self._count = (0, ABSENT) if count is None else count
        ended = []
        for _, lease, revision in await self._table.list():
            if lease.state in ENDED and not lease.quarantined:
                ended.append(lease)
                continue
            held = _Held(lease, revision, renewed_at=now, admitted_at=now, tree=remembered(lease.process))
            if lease.state is LeaseState.PREEMPTING:
                held.evict_at = now + lease.terms.grace_s
            self._held[lease.id] = held
            self._broker.adopt(_charge(held))
        self._ended = deque(sorted(ended, key=lambda lease: lease.granted_at))
        self._open = True
        self._task = asyncio.create_task(self._run(), name="leases")

    async def drain(self) -> None:
        """Let nobody wait any longer; what is granted stays."""
        self._open = False
        for waiter in self._queue:
            _answer(waiter, Unavailable("this coordinator is stopping; ask again shortly"))

    async def stop(self) -> None:
        await self.drain()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._held.clear()
        self._ended.clear()

    # what is known

    def list(self, *, ended: bool = False) -> list[Standing]:
        """Every lease that waits or has memory, by id; with `ended` also the last that did."""
        found = [self._standing(held) for held in self._held.values() if held.lease.state not in ENDED]
        found += [Standing(lease=waiter.lease, message=waiter.why) for waiter in self._queue]
        if ended:
            found += [self._standing(held) for held in self._held.values() if held.lease.state in ENDED]
            found += [Standing(lease=lease) for lease in self._ended]
        return sorted(found, key=lambda standing: standing.lease.id)

    def show(self, lease_id: str) -> Standing:
        """One lease; NotFound when there is none, or it ended long ago."""
        held, waiter = self._held.get(lease_id), self._queue.find(lease_id)
        if held is not None:
            return self._standing(held)
        if waiter is not None:
            return Standing(lease=waiter.lease, message=waiter.why)
        for lease in self._ended:
            if lease.id == lease_id:
                return Standing(lease=lease)
        raise NotFound(f"there is no lease {lease_id[:100]!r}; `moc lease list --all` shows those there are")

    def roots(self) -> list[int]:
        """The processes that were named for leases that have memory, as they were last seen."""
        return [self._pid(held) for held in list(self._held.values()) if held.tree]

    def managed_pids(self) -> set[int]:
        """The processes whose memory is charged to leases: those named, and all they started."""
        return {member.pid for held in self._held.values() for member in held.tree}

    # what holders ask

    async def acquire(
        self, terms: LeaseTerms, *, actor: Actor, pid: int | None = None, wait_s: float = 0.0, deadline: Deadline = NEVER
    ) -> Standing:
        """A lease of these terms, granted; NoCapacity when it cannot be within `wait_s`, saying why.

        `pid` is the process of this host that will use it. Cancelled it waits no longer, and what was granted
        meanwhile is given back.
        """
        if not self._open:
            raise Unavailable("this coordinator grants no leases now; ask again shortly")
        now = self._clock.monotonic()
        lease = Lease(
            id=new_id("lse"),
            terms=terms,
            holder=actor.id,
            holder_name=actor.name,
            state=LeaseState.PENDING,
            created_at=self._clock.wall(),
            process="" if pid is None else str(occupant(pid)),
        )
        waiter = Waiter(lease, asked_at=now, until=now + wait_s if wait_s else None)
        self._queue.add(waiter)
        if not wait_s:
            self._hasty.append(waiter)
        self._woken.set()
        try:
            async with asyncio.timeout(_sooner(wait_s or None, deadline.remaining_s())):
                return await waiter.answer
        except TimeoutError:
            deadline.check("while a lease waited for memory")
            refusal = NoCapacity(waiter.why or "nobody came to look at it", details={"reason": "wait_over"})
            await self._tell_refusal(waiter, refusal)
            raise refusal from None
        finally:
            self._leave(waiter)

    def renew(self, lease_id: str, token: Token) -> Standing:
        """Keep a lease for another `ttl_s`; its state says whether it is being preempted.

        Conflict when it has ended or the token is not its own; NotLeader when this coordinator may not say.
        """
        self._seat.fence()
        held = self._own(lease_id, token)
        if held is None or held.lease.state in ENDED:
            lease = self.show(lease_id).lease
            raise Conflict(
                f"lease {lease_id} is {lease.state} ({lease.reason}); acquire another one",
                details={"state": lease.state, "reason": lease.reason},
            )
        held.renewed_at = self._clock.monotonic()
        return self._standing(held)

    async def name_process(self, lease_id: str, token: Token, pid: int, *, actor: Actor) -> Standing:
        """Say which process of this host uses a lease; what it and all it starts hold is then the lease's."""
        process = occupant(pid)
        async with self._moving:
            held = self._own(lease_id, token)
            if held is None or held.lease.state in ENDED:
                raise Conflict(f"lease {lease_id} has ended; acquire another one")
            if held.lease.process != str(process):
                event = Event(kind="lease.occupied", subject=lease_id, actor=actor.id, data={"pid": pid})
                await self._write(held, replace(held.lease, process=str(process)), event)
                held.tree = frozenset({process})
            return self._standing(held)

    async def release(self, lease_id: str, token: Token, *, actor: Actor) -> Standing:
        """Give a lease back: its memory is used no longer. Idempotent; Conflict when the token is not its own."""
        async with self._moving:
            held = self._own(lease_id, token)
            if held is None or held.lease.state in ENDED:
                return self.show(lease_id)
            await self._end(held, reason="Released", actor=actor)
        return self.show(lease_id)

    # looking after them

    async def look(self, *, tend: bool = True) -> None:
        """Grant what can be granted; with `tend` first see who is late, who is gone and whose grace is over."""
        async with self._looking:
            await self._release_abandoned()
            if tend:
                await self._tend()
            await self._serve()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        tended_at = loop.time() - self._tick_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(tended_at + self._tick_s):
                    await self._woken.wait()
            self._woken.clear()
            tend = loop.time() >= tended_at + self._tick_s
            if tend:
                tended_at = loop.time()
            try:
                await self.look(tend=tend)
            except Exception as error:  # whatever it is must not end the looking after all others
                log.warning("leases are looked after again in a moment", error=str(error))
                for waiter in self._taken_hasty():
                    _answer(waiter, error)

    async def _tend(self) -> None:
        trees = {held.lease.id: held.tree for held in self._held.values() if held.tree}
        alive = await asyncio.to_thread(_living, trees) if trees else {}
        readings = self._devices.readings()
        now = self._clock.monotonic()
        for held in [*self._held.values()]:
            async with self._moving:
                if self._held.get(held.lease.id) is not held:
                    continue
                tree = alive.get(held.lease.id)
                if tree is not None and held.tree == trees[held.lease.id]:
                    held.tree = tree
                reading = readings.get(held.lease.device)
                if reading is not None and held.tree:
                    measured = sum(reading.processes.get(member.pid, 0) for member in held.tree)
                    self._broker.observe(held.charge, measured)
                await self._judge(held, now)

    async def _judge(self, held: _Held, now: float) -> None:
        """Do what time or the end of its process asks of one lease."""
        lease = held.lease
        gone = bool(lease.process) and not held.tree
        if lease.state in ENDED:
            if gone:
                await self._free(held)
        elif gone:
            await self._end(held, reason="ProcessGone")
        elif held.evict_at is not None and now >= held.evict_at:
            await self._end(held, reason="Preempted", proven=False)
        elif held.evict_at is None and now >= held.renewed_at + lease.terms.ttl_s + MARGIN_S:
            await self._end(held, reason="Expired", proven=False)

    async def _release_abandoned(self) -> None:
        while self._abandoned:
            held = self._held.get(self._abandoned[-1])
            if held is not None:
                async with self._moving:
                    if held.lease.state not in ENDED:
                        await self._end(held, reason="Abandoned")
            self._abandoned.pop()

    # granting

    async def _serve(self) -> None:
        """Give every waiter, in turn, what those before it leave."""
        hasty = self._taken_hasty()
        blocked: set[str] = set()
        for waiter in self._queue:
            ledger = self._broker.ledger()
            if blocked and blocked.issuperset(ledger.accounts):
                break
            if waiter.answer.done():
                continue
            try:
                blocked |= await self._try(waiter, ledger, blocked)
            except MocError as error:
                _answer(waiter, error)
        for waiter in hasty:
            if not waiter.answer.done():
                refusal = NoCapacity(
                    waiter.why or f"{len(self._queue)} leases wait before this one; ask again with a longer wait",
                    details={"reason": "held"},
                )
                await self._tell_refusal(waiter, refusal)
                _answer(waiter, refusal)

    async def _try(self, waiter: Waiter, ledger: Ledger, blocked: set[str]) -> set[str]:
        """Grant it if it fits; else the devices that it waits for."""
        lease = waiter.lease
        demand = Demand(
            holder=f"lease:{lease.id}",
            bytes=lease.terms.bytes,
            devices=waiter.device or lease.terms.devices,
            priority=lease.terms.priority,
        )
        wanted = {account.device for account in ledger.candidates(demand)}
        able = wanted - blocked
        if wanted and not able:
            waiter.why = f"{lease.id} waits behind others for {', '.join(sorted(wanted))}"
            return wanted
        if able:
            demand = replace(demand, devices=tuple(sorted(able)))
        outcome = self._broker.explain(demand)
        if isinstance(outcome, Plan):
            await self._grant(waiter, demand)
            return set()
        waiter.why = outcome.message
        if outcome.reason is Reason.TOO_LARGE:
            raise NoCapacity(outcome.message, details={"reason": outcome.reason})
        await self._preempt_for(waiter, outcome)
        return wanted

    async def _grant(self, waiter: Waiter, demand: Demand) -> None:
        try:
            grant = await self._broker.reserve(demand, Deadline.after(0))
        except NoCapacity as error:  # somebody else was faster
            waiter.why = error.message
            return
        try:
            if waiter.answer.done():
                raise Unavailable("nobody waits for it any more")
            held = await self._record(waiter.lease, grant.device)
        except BaseException:
            self._broker.release(demand.holder)
            raise
        self._queue.remove(waiter)
        if waiter.answer.done():
            self._abandoned.append(held.lease.id)
            self._woken.set()
        else:
            waiter.answer.set_result(self._standing(held))

    async def _record(self, pending: Lease, device: str) -> _Held:
        fence = self._seat.fence()
        count, revision = self._count
        lease = replace(
            pending,
            state=LeaseState.ADMITTED,
            reason="Granted",
            device=device,
            token=Token(fence.term, count + 1),
            granted_at=self._clock.wall(),
        )
        now = self._clock.monotonic()
        held = _Held(lease, ABSENT, renewed_at=now, admitted_at=now, tree=remembered(lease.process))
        counted = self._counts.put(_COUNTER, count + 1, expect=revision)
        self._count = (count + 1, None)  # whether it was counted is not known if this fails; skipping one does no harm
        held.revision = await self._store.commit(
            [fence, counted, self._table.put(lease.id, lease, expect=ABSENT)],
            [_event(lease, lease.holder, {"wait_s": round(lease.granted_at - lease.created_at, 3)})],
        )
        self._count = (count + 1, held.revision)
        self._held[lease.id] = held
        return held

    async def _preempt_for(self, waiter: Waiter, refusal: Refusal) -> None:
        """Tell less urgent leases to end, if that makes room; they are waited for as long as their grace."""
        now = self._clock.monotonic()
        if waiter.until is None or any(held.preemptor == waiter.lease.id for held in self._held.values()):
            return
        running = [
            Preemptible(id=lease_id, device=held.lease.device, terms=held.lease.terms, ran_s=now - held.admitted_at)
            for lease_id, held in self._held.items()
            if held.lease.state is LeaseState.ADMITTED
        ]
        chosen = preempt(waiter.lease.terms, waiter.until - now, refusal.obstacles, running)
        if chosen is None:
            return
        waiter.device = chosen.device
        async with self._moving:
            for victim in chosen.victims:
                held = self._held.get(victim)
                if held is not None and held.lease.state is LeaseState.ADMITTED:
                    data = {"successor": waiter.lease.id, "grace_s": held.lease.terms.grace_s}
                    await self._move(held, LeaseState.PREEMPTING, reason="Preempted", actor=SYSTEM, **data)
                    held.preemptor = waiter.lease.id
                    held.evict_at = now + held.lease.terms.grace_s

    def _leave(self, waiter: Waiter) -> None:
        """It waits no longer: what was set aside for it is free, and what it was granted unseen is given back."""
        lease_id = waiter.lease.id
        if self._queue.remove(waiter) and waiter.reserved_bytes:
            self._broker.release(f"lease:{lease_id}")
        task = asyncio.current_task()
        if task is not None and task.cancelling() and lease_id in self._held:
            self._abandoned.append(lease_id)
        self._woken.set()

    # ending

    async def _end(self, held: _Held, *, reason: str, actor: Actor = SYSTEM, proven: bool = True) -> None:
        """End a lease; its memory is free unless it is not `proven` that its process uses it no longer."""
        state = {"Expired": LeaseState.EXPIRED, "Preempted": LeaseState.EVICTED}.get(reason, LeaseState.RELEASED)
        if held.lease.state is LeaseState.PREEMPTING:
            state, reason = LeaseState.EVICTED, "Preempted"
        before = held.charge
        quarantined = not proven and bool(held.tree)
        await self._move(held, state, reason=reason, actor=actor, quarantined=quarantined)
        self._broker.release(before)
        if quarantined:
            self._broker.adopt(_charge(held))
        else:
            self._give_on(held)

    async def _free(self, held: _Held) -> None:
        """The process of a lease that ended before it is gone now."""
        before, lease = held.charge, replace(held.lease, quarantined=False)
        event = Event(kind="lease.freed", subject=lease.id, reason="ProcessGone", data=_numbers(lease))
        await self._write(held, lease, event)
        self._broker.release(before)
        self._give_on(held)

    def _give_on(self, held: _Held) -> None:
        """Its bytes are free, or the preemptor's that waits for them."""
        del self._held[held.lease.id]
        self._ended.append(held.lease)
        waiter = self._queue.find(held.preemptor)
        if waiter is not None:
            terms = waiter.lease.terms
            waiter.reserved_bytes = min(terms.bytes, waiter.reserved_bytes + held.lease.terms.bytes)
            self._broker.adopt(
                Charge(
                    holder=f"lease:{waiter.lease.id}",
                    device=held.lease.device,
                    bytes=waiter.reserved_bytes,
                    priority=terms.priority,
                )
            )
        self._woken.set()

    # records

    async def _move(
        self, held: _Held, state: LeaseState, *, reason: str, actor: Actor, quarantined: bool = False, **data: Any
    ) -> None:
        """Record a move; the caller has `_moving`."""
        if state not in MOVES[held.lease.state]:
            raise Conflict(f"lease {held.lease.id} is {held.lease.state} and cannot become {state}")
        lease = replace(held.lease, state=state, reason=reason, quarantined=quarantined)
        await self._write(held, lease, _event(lease, actor.id, data))

    async def _write(self, held: _Held, lease: Lease, event: Event) -> None:
        ops: list[Op] = [self._seat.fence(), self._table.put(lease.id, lease, expect=held.revision)]
        ops += [self._table.delete(old.id, expect=None) for old in [*self._ended][: len(self._ended) - ENDED_MAX + 1]]
        held.revision = None  # until it is known whether this one was made
        held.revision = await self._store.commit(ops, [event])
        while len(self._ended) >= ENDED_MAX:
            self._ended.popleft()
        held.lease = lease

    async def _tell_refusal(self, waiter: Waiter, refusal: NoCapacity) -> None:
        lease = waiter.lease
        event = Event(
            kind="lease.refused",
            subject=lease.id,
            reason="NoCapacity",
            actor=lease.holder,
            data={**_numbers(lease), "message": refusal.message},
        )
        await self._store.commit([self._seat.fence()], [event])

    def _own(self, lease_id: str, token: Token) -> _Held | None:
        """The lease with this token, None when it has ended; Conflict when the token is another's."""
        held = self._held.get(lease_id)
        lease = self.show(lease_id).lease if held is None else held.lease
        if lease.token != token:
            raise Conflict(f"{token} is not the token of lease {lease_id}; use the one it was granted with")
        return held

    def _standing(self, held: _Held) -> Standing:
        if held.lease.state in ENDED:
            return Standing(lease=held.lease)
        now, wall = self._clock.monotonic(), self._clock.wall()
        left_s = None if held.evict_at is None else max(0.0, held.evict_at - now)
        return Standing(
            lease=held.lease,
            expires_at=wall + held.renewed_at + held.lease.terms.ttl_s - now,
            evict_at=None if left_s is None else wall + left_s,
            evict_in_s=left_s,
        )

    def _pid(self, held: _Held) -> int:
        return next(member.pid for member in held.tree)

    def _taken_hasty(self) -> list[Waiter]:
        hasty, self._hasty = self._hasty, []
        return hasty


def _living(trees: dict[str, frozenset[Holder]]) -> dict[str, frozenset[Holder]]:
    return {key: living(tree) for key, tree in trees.items()}


def _charge(held: _Held) -> Charge:
    terms = held.lease.terms
    return Charge(holder=held.charge, device=held.lease.device, bytes=terms.bytes, priority=terms.priority)


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


def _answer(waiter: Waiter, error: Exception) -> None:
    if not waiter.answer.done():
        waiter.answer.set_exception(error)


def _sooner(*limits_s: float | None) -> float | None:
    return min((limit for limit in limits_s if limit is not None), default=None)
