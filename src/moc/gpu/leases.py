"""Leases: device memory for any process, waited for in a queue, kept by heartbeats, taken back by priority."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import structlog

from moc.cluster.holder import Holder
from moc.gpu.broker import Broker
from moc.gpu.eviction import Plan, Reason, Refusal
from moc.gpu.lease import ENDED, Lease, LeaseState, LeaseTerms, Standing, Token
from moc.gpu.lease_book import Held, LeaseBook
from moc.gpu.ledger import Charge, Demand
from moc.gpu.monitor import DeviceMonitor
from moc.gpu.occupant import living, occupant
from moc.gpu.ports import HostSeat
from moc.gpu.preemption import Preemptible, preempt
from moc.gpu.queue import Waiter, WaitQueue
from moc.kernel.clock import Clock
from moc.kernel.errors import Conflict, DeadlineExceeded, MocError, NoCapacity, NotFound, Unavailable
from moc.kernel.ids import new_id
from moc.kernel.records import Store
from moc.resilience.deadline import NEVER, Deadline
from moc.security.identity import Identity

log = structlog.get_logger(__name__)

TICK_S = 1.0
MARGIN_S = 1.0
"""How much longer than its holder trusts it a lease is kept, for clocks that do not run alike."""

WAITERS_MAX = 10_000
SYSTEM = "system"


class Leases:
    """Every lease of this host. Records: `leases/<id>`; events: `lease.<state>`, `lease.refused`, `lease.freed`.

    Nobody gets memory of a device that one before it in the queue waits for. The bytes of a lease stay charged
    until it is released or expires; while a process that was named for it still runs after that, they are
    charged as `quarantine:<id>`. After a restart every lease is there as it was, and its time begins anew.
    """

    def __init__(
        self,
        *,
        store: Store,
        seat: HostSeat,
        broker: Broker,
        devices: DeviceMonitor,
        clock: Clock,
        tick_s: float = TICK_S,
    ) -> None:
        self._book = LeaseBook(store=store, seat=seat)
        self._broker = broker
        self._devices = devices
        self._clock = clock
        self._tick_s = tick_s
        self._queue = WaitQueue(limit=WAITERS_MAX)
        self._hasty: list[Waiter] = []
        self._abandoned: list[str] = []
        self._held: dict[str, Held] = {}
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
        for held in await self._book.read(self._clock.monotonic()):
            self._held[held.lease.id] = held
            self._broker.adopt(held.charge)
        self._open = True
        self._task = asyncio.create_task(self._run(), name="leases")

    async def drain(self) -> None:
        """Let nobody wait any longer; what is granted stays."""
        self._open = False
        for waiter in self._queue:
            _answer(waiter, Unavailable("this coordinator is stopping; ask again shortly"))

    async def stop(self) -> None:
        """Look after them no more; they stay on record for the next start."""
        await self.drain()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._held.clear()

    # what is known

    def standings(self, *, ended: bool = False) -> Sequence[Standing]:
        """Every lease that waits or has memory, by id; with `ended` also the last ones that had."""
        found = [self._standing(held) for held in self._held.values() if ended or held.lease.state not in ENDED]
        found += [Standing(lease=waiter.lease, message=waiter.why) for waiter in self._queue]
        if ended:
            found += [Standing(lease=lease) for lease in self._book.ended]
        return sorted(found, key=lambda standing: standing.lease.id)

    def show(self, lease_id: str) -> Standing:
        """One lease; NotFound when there is none, or it ended long ago."""
        held, waiter = self._held.get(lease_id), self._queue.find(lease_id)
        if held is not None:
            return self._standing(held)
        if waiter is not None:
            return Standing(lease=waiter.lease, message=waiter.why)
        for lease in self._book.ended:
            if lease.id == lease_id:
                return Standing(lease=lease)
        raise NotFound(f"there is no lease {lease_id[:100]!r}; `moc lease list --all` shows those there are")

    def managed_pids(self) -> set[int]:
        """The processes whose memory is charged to leases: those named, and all they started. Any thread may ask."""
        return {member.pid for held in list(self._held.values()) for member in held.tree}

    # what holders ask

    async def acquire(
        self,
        terms: LeaseTerms,
        *,
        identity: Identity,
        pid: int | None = None,
        wait_s: float = 0.0,
        deadline: Deadline = NEVER,
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
            holder=identity.key_id,
            holder_name=identity.name,
            state=LeaseState.PENDING,
            created_at=self._clock.wall(),
            process="" if pid is None else str(occupant(pid)),
        )
        waiter = Waiter(lease, asked_at=now, until=now + wait_s if wait_s else None)
        try:
            return await self._wait(waiter, wait_s or None, deadline.remaining_s())
        except NoCapacity as refusal:
            await self._book.refused(lease, refusal.message)
            raise

    def renew(self, lease_id: str, token: Token) -> Standing:
        """Keep a lease for another `ttl_s`; its state says whether it is being preempted.

        Conflict when it has ended or the token is not its own; NotLeader when this coordinator may not say.
        """
        self._book.check()
        held = self._living(lease_id, token)
        held.renewed_at = self._clock.monotonic()
        return self._standing(held)

    async def occupy(self, lease_id: str, token: Token, pid: int, *, actor: str) -> Standing:
        """Say which process of this host uses a lease: what it and all it starts hold is then the lease's."""
        process = occupant(pid)
        async with self._moving:
            held = self._living(lease_id, token)
            if held.lease.process != str(process):
                await self._book.occupy(held, process, actor=actor)
        return self._standing(held)

    async def release(self, lease_id: str, token: Token, *, actor: str) -> Standing:
        """Give a lease back: its memory is used no longer. Idempotent; Conflict when the token is not its own."""
        async with self._moving:
            held = self._own(lease_id, token)
            if held is not None and held.lease.state not in ENDED:
                await self._end(held, reason="Released", actor=actor)
        return self.show(lease_id)

    async def _wait(self, waiter: Waiter, wait_s: float | None, left_s: float | None) -> Standing:
        """Stand in line for up to `wait_s`, and not beyond the deadline that is `left_s` away."""
        limit_s = min((limit for limit in (wait_s, left_s) if limit is not None), default=None)
        self._queue.add(waiter)
        if waiter.until is None:
            self._hasty.append(waiter)
        self._woken.set()
        served = False
        try:
            async with asyncio.timeout(limit_s):
                standing = await waiter.answer
                served = True
                return standing
        except TimeoutError:
            if limit_s == left_s:
                raise DeadlineExceeded("the deadline passed before a lease was granted; allow more time") from None
            raise NoCapacity(waiter.why or "no memory was free in time", details={"reason": "wait_over"}) from None
        finally:
            self._leave(waiter, served=served)

    def _leave(self, waiter: Waiter, *, served: bool) -> None:
        """It waits no longer: what was set aside for it is free, and what it was granted unseen is given back."""
        lease_id = waiter.lease.id
        if self._queue.remove(waiter) and waiter.reserved_bytes:
            self._broker.release(f"lease:{lease_id}")
        if not served:
            if lease_id in self._held:
                self._abandoned.append(lease_id)
            self._woken.set()

    def _own(self, lease_id: str, token: Token) -> Held | None:
        """The lease with this token, None when it has ended; Conflict when the token is another's."""
        if self.show(lease_id).lease.token != token:
            raise Conflict(f"{token} is not the token of lease {lease_id}; use the one it was granted with")
        return self._held.get(lease_id)

    def _living(self, lease_id: str, token: Token) -> Held:
        held = self._own(lease_id, token)
        if held is None or held.lease.state in ENDED:
            lease = self.show(lease_id).lease
            raise Conflict(
                f"lease {lease_id} is {lease.state} ({lease.reason}); acquire another one",
                details={"state": lease.state, "reason": lease.reason},
            )
        return held

    def _standing(self, held: Held) -> Standing:
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
        next_at = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_at):
                    await self._woken.wait()
            self._woken.clear()
            tend = loop.time() >= next_at
            if tend:
                next_at = loop.time() + self._tick_s
            try:
                await self.look(tend=tend)
            except Exception as error:  # whatever it is must not end the looking after all others
                log.warning("leases are looked after again in a moment", error=str(error))
                for waiter in self._taken_hasty():
                    _answer(waiter, error)

    async def _tend(self) -> None:
        trees = {key: held.tree for key, held in self._held.items() if held.tree}
        alive = await asyncio.to_thread(_survivors, trees) if trees else {}
        readings, now = self._devices.readings(), self._clock.monotonic()
        for held in [*self._held.values()]:
            async with self._moving:
                lease = held.lease
                if self._held.get(lease.id) is not held:
                    continue
                if held.tree and held.tree == trees.get(lease.id):
                    held.tree = alive[lease.id]
                reading = readings.get(lease.device)
                if reading is not None and held.tree:
                    measured = sum(reading.processes.get(member.pid, 0) for member in held.tree)
                    self._broker.observe(held.charge.holder, measured)
                await self._judge(held, now)

    async def _judge(self, held: Held, now: float) -> None:
        """Do what time, or the end of its process, asks of one lease."""
        lease = held.lease
        gone = bool(lease.process) and not held.tree
        if lease.state in ENDED:
            if gone:
                charge = held.charge
                await self._book.free(held)
                self._give_on(held, charge)
        elif gone:
            await self._end(held, reason="ProcessGone", actor=SYSTEM)
        elif held.evict_at is not None:
            if now >= held.evict_at:
                await self._end(held, reason="Preempted", actor=SYSTEM, proven=False)
        elif now >= held.renewed_at + lease.terms.ttl_s + MARGIN_S:
            await self._end(held, reason="Expired", actor=SYSTEM, proven=False)

    async def _release_abandoned(self) -> None:
        while self._abandoned:
            held = self._held.get(self._abandoned[-1])
            async with self._moving:
                if held is not None and held.lease.state not in ENDED:
                    await self._end(held, reason="Abandoned", actor=held.lease.holder)
            self._abandoned.pop()

    async def _end(self, held: Held, *, reason: str, actor: str, proven: bool = True) -> None:
        """End a lease; its memory is free unless it is not `proven` that its process uses it no longer.

        The caller has `_moving`.
        """
        state = LeaseState.EXPIRED if reason == "Expired" else LeaseState.RELEASED
        if held.lease.state is LeaseState.PREEMPTING:
            state, reason = LeaseState.EVICTED, "Preempted"
        charge = held.charge
        quarantined = not proven and bool(held.tree)
        await self._book.move(held, state, reason=reason, actor=actor, quarantined=quarantined)
        if quarantined:
            self._broker.release(charge.holder)
            self._broker.adopt(held.charge)
        else:
            self._give_on(held, charge)

    def _give_on(self, held: Held, charge: Charge) -> None:
        """Its bytes are free, or the preemptor's that waits for them."""
        self._broker.release(charge.holder)
        self._held.pop(held.lease.id, None)
        self._book.ended.append(held.lease)
        waiter = self._queue.find(held.preemptor)
        if waiter is not None:
            terms = waiter.lease.terms
            waiter.reserved_bytes = min(terms.bytes, waiter.reserved_bytes + charge.bytes)
            reserved = replace(
                charge, holder=f"lease:{waiter.lease.id}", bytes=waiter.reserved_bytes, priority=terms.priority
            )
            self._broker.adopt(reserved)
        self._woken.set()

    # granting

    async def _serve(self) -> None:
        """Give every waiter, in turn, what those before it leave."""
        hasty = self._taken_hasty()
        ledger = self._broker.ledger()
        wanted: dict[str, frozenset[str]] = {}
        blocked: set[str] = set()
        try:
            for waiter in self._queue:
                if waiter.answer.done():
                    continue
                key = waiter.device or waiter.lease.terms.devices
                if key not in wanted:
                    wanted[key] = frozenset(each.device for each in ledger.candidates(_demand(waiter, key)))
                able = wanted[key] - blocked
                if wanted[key] and not able:
                    waiter.why = waiter.why or f"others wait before it for {', '.join(sorted(wanted[key]))}"
                    continue
                if not await self._try(waiter, _demand(waiter, tuple(sorted(able)) or key)):
                    blocked |= wanted[key]
        finally:
            for waiter in hasty:
                behind = f"{len(self._queue) - 1} other leases are waited for; ask for a longer wait to stand in line"
                _answer(waiter, NoCapacity(waiter.why or behind, details={"reason": Reason.HELD}))

    async def _try(self, waiter: Waiter, demand: Demand) -> bool:
        """Whether it stands in nobody's way any more: granted, or refused because it fails or never fits.

        For one that has to wait it sees whom to preempt.
        """
        try:
            outcome = self._broker.explain(demand)
            if isinstance(outcome, Plan):
                return await self._grant(waiter, demand)
            waiter.why = outcome.message
            if outcome.reason is Reason.TOO_LARGE:
                raise NoCapacity(outcome.message, details={"reason": outcome.reason})
            await self._preempt_for(waiter, outcome)
        except MocError as error:
            _answer(waiter, error)
            return True
        return False

    async def _grant(self, waiter: Waiter, demand: Demand) -> bool:
        try:
            grant = await self._broker.reserve(demand, Deadline.after(0))
        except NoCapacity as error:  # somebody else was faster
            waiter.why = error.message
            return False
        try:
            if waiter.answer.done():
                raise Unavailable("nobody waits for it any more")
            now, wall = self._clock.monotonic(), self._clock.wall()
            held = await self._book.admit(waiter.lease, grant.device, now=now, wall=wall)
        except BaseException:
            self._broker.release(demand.holder)
            raise
        self._held[held.lease.id] = held
        self._queue.remove(waiter)
        if waiter.answer.done():
            self._abandoned.append(held.lease.id)
            self._woken.set()
        else:
            waiter.answer.set_result(self._standing(held))
        return True

    async def _preempt_for(self, waiter: Waiter, refusal: Refusal) -> None:
        """Tell less urgent leases to end if that makes room; those told before are waited for first."""
        now = self._clock.monotonic()
        if waiter.until is None or any(held.preemptor == waiter.lease.id for held in self._held.values()):
            return
        running = [
            Preemptible(id=key, device=held.lease.device, terms=held.lease.terms, ran_s=now - held.admitted_at)
            for key, held in self._held.items()
            if held.lease.state is LeaseState.ADMITTED
        ]
        chosen = preempt(waiter.lease.terms, waiter.until - now, refusal.obstacles, running)
        if chosen is None:
            return
        waiter.device = chosen.device
        async with self._moving:
            for victim in chosen.victims:
                held = self._held.get(victim)
                if held is None or held.lease.state is not LeaseState.ADMITTED:
                    continue
                grace_s = held.lease.terms.grace_s
                data = {"successor": waiter.lease.id, "grace_s": grace_s}
                await self._book.move(held, LeaseState.PREEMPTING, reason="Preempted", actor=SYSTEM, data=data)
                held.preemptor, held.evict_at = waiter.lease.id, now + grace_s

    def _taken_hasty(self) -> list[Waiter]:
        hasty, self._hasty = self._hasty, []
        return hasty


def _survivors(trees: Mapping[str, Set[Holder]]) -> dict[str, frozenset[Holder]]:
    return {key: living(tree) for key, tree in trees.items()}


def _demand(waiter: Waiter, devices: str | tuple[str, ...]) -> Demand:
    lease = waiter.lease
    return Demand(holder=f"lease:{lease.id}", bytes=lease.terms.bytes, devices=devices, priority=lease.terms.priority)


def _answer(waiter: Waiter, error: Exception) -> None:
    if not waiter.answer.done():
        waiter.answer.set_exception(error)
