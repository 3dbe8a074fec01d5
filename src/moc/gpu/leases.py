"""Leases: device memory for any process, waited for in a queue, kept by heartbeats, taken back by priority."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from moc.gpu.broker import Broker, Grant
from moc.gpu.handover import SYSTEM, Handover
from moc.gpu.lease import ENDED, HOLDING, Lease, LeaseState, LeaseTerms, Standing, Token
from moc.gpu.lease_book import Admission, Held, LeaseBook
from moc.gpu.ledger import Charge, Demand, Ledger
from moc.gpu.monitor import DeviceMonitor
from moc.gpu.occupant import occupant, survivors
from moc.gpu.outlook import Outlook
from moc.gpu.plan import Plan, Reason, Refusal
from moc.gpu.ports import HostSeat
from moc.gpu.queue import Waiter, WaitQueue
from moc.kernel.clock import Clock
from moc.kernel.errors import Conflict, DeadlineExceeded, MocError, NoCapacity, NotFound, Unavailable
from moc.kernel.ids import new_id
from moc.kernel.records import Store
from moc.kernel.routine import Routine
from moc.resilience.deadline import NEVER, Deadline
from moc.security.identity import Identity

log = structlog.get_logger(__name__)

TICK_S = 1.0
_ENDS = {"Expired": LeaseState.EXPIRED, "Preempted": LeaseState.EVICTED, "NodeLost": LeaseState.EVICTED}
"""The states that leases end in for these reasons; for all others they are released."""

FRESH_S = 1.0
"""How old what a device said may be when a lease is granted on it, if nothing was given back there since.

Only what nobody declared can have grown meanwhile, as it can the moment after; `gpu.pressure` is there for that.
"""

WAITERS_MAX = 10_000


class Leases:
    """Every lease of this host. Records: `leases/<id>`; events: `lease.<state>`, `lease.refused`, `lease.freed`.

    Nobody gets memory of a device that one before it in the queue waits for. The bytes of a lease stay charged
    until it is released or expires; while a process that was named for it still runs after that, they are
    charged as `quarantine:<id>`. After a restart every lease is there as it was, and its time begins anew.
    `on_waited` is called with the outcome, `granted` or `refused`, and the seconds it took.
    """

    def __init__(
        self,
        *,
        store: Store,
        seat: HostSeat,
        broker: Broker,
        devices: DeviceMonitor,
        clock: Clock,
        on_waited: Callable[[str, float], None],
        tick_s: float = TICK_S,
    ) -> None:
        self._book = LeaseBook(store=store, seat=seat)
        self._broker = broker
        self._devices = devices
        self._clock = clock
        self._on_waited = on_waited
        self._tick_s = tick_s
        self._queue = WaitQueue(limit=WAITERS_MAX)
        self._hasty: list[Waiter] = []
        self._abandoned: list[str] = []
        self._held: dict[str, Held] = {}
        self._outlook = Outlook(self._queue, self._held, clock)
        self.handover = Handover(book=self._book, broker=broker, held=self._held, clock=clock)
        self._looking = asyncio.Lock()
        self._woken = asyncio.Event()
        self._open = False
        self._routine = Routine("leases", self._run)

    # life

    async def start(self) -> None:
        """Read what there is, charge it again, and look after it."""
        if self._routine.runs:
            return
        for held in await self._book.read(self._clock.monotonic()):
            self._held[held.lease.id] = held
            self._broker.adopt(held.charge)
        self._open = True
        self._routine.start()

    async def drain(self) -> None:
        """Let nobody wait any longer; what is granted stays."""
        self._open = False
        for waiter in self._queue:
            waiter.refuse(Unavailable("this coordinator is stopping; ask again shortly"))

    async def stop(self) -> None:
        """Look after them no more; they stay on record for the next start."""
        await self.drain()
        await self._routine.stop()
        self._held.clear()

    # what is known

    def standings(self, *, ended: bool = False) -> Sequence[Standing]:
        """Every lease that waits or has memory, by id; with `ended` also the last ones that had."""
        found = [self._standing(held) for held in self._held.values() if ended or held.lease.state not in ENDED]
        found += [self._outlook.standing(waiter) for waiter in self._queue]
        if ended:
            found += [Standing(lease=lease) for lease in self._book.ended.values()]
        return sorted(found, key=lambda standing: standing.lease.id)

    def count(self) -> dict[str, int]:
        """How many leases wait or have memory, by state."""
        held = Counter(held.lease.state for held in self._held.values() if held.lease.state not in ENDED)
        return {LeaseState.PENDING: len(self._queue), **{state: held[state] for state in HOLDING}}

    def show(self, lease_id: str) -> Standing:
        """One lease; NotFound when there is none, or it ended long ago."""
        held, waiter = self._held.get(lease_id), self._queue.find(lease_id)
        if held is not None:
            return self._standing(held)
        if waiter is not None:
            return self._outlook.standing(waiter)
        if lease_id in self._book.ended:
            return Standing(lease=self._book.ended[lease_id])
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
        lease_id: str | None = None,
    ) -> Standing:
        """A lease of these terms, granted; NoCapacity when it cannot be within `wait_s`, saying why.

        `pid` is the process of this host that will use it; `lease_id` a new id, for who wants to look at it while it
        waits. Cancelled it waits no longer, and what was granted
        meanwhile is given back.
        """
        if not self._open:
            raise Unavailable("this coordinator grants no leases now; ask again shortly")
        now = self._clock.monotonic()
        lease = Lease(
            id=lease_id or new_id("lse"),
            terms=terms,
            holder=identity.key_id,
            holder_name=identity.name,
            state=LeaseState.PENDING,
            created_at=self._clock.wall(),
            process="" if pid is None else str(occupant(pid)),
        )
        waiter = Waiter(lease, asked_at=now, until=now + wait_s if wait_s else None)
        try:
            standing = await self._wait(waiter, wait_s or None, deadline.remaining_s())
        except MocError as refusal:
            self._on_waited("refused", self._clock.monotonic() - now)
            if isinstance(refusal, NoCapacity):
                await self._book.refused(lease, refusal.message)
            raise
        self._on_waited("granted", self._clock.monotonic() - now)
        return standing

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
        held = self._living(lease_id, token)
        async with held.moving:
            self._living(lease_id, token)
            if held.lease.process != str(process):
                await self._book.occupy(held, process, actor=actor)
        return self._standing(held)

    async def release(self, lease_id: str, token: Token, *, actor: str) -> Standing:
        """Give a lease back: its memory is used no longer. Idempotent; Conflict when the token is not its own."""
        held = self._own(lease_id, token)
        if held is not None:
            async with held.moving:
                if held.lease.state not in ENDED:
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
            raise NoCapacity(waiter.why, details={"reason": "wait_over"}) from None
        finally:
            self._leave(waiter, served=served)

    def _leave(self, waiter: Waiter, *, served: bool) -> None:
        """It waits no longer: what was set aside for it is free, and what it was granted unseen is given back."""
        if self._queue.remove(waiter) and self.handover.forget(waiter.holder):
            self._broker.release(waiter.holder)
        if not served:
            if waiter.lease.id in self._held:
                self._abandoned.append(waiter.lease.id)
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
                details={"state": lease.state, "reason": lease.reason, "quarantined": lease.quarantined},
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
            await self._serve(thoroughly=tend)

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
                hasty, self._hasty = self._hasty, []
                for waiter in hasty:
                    waiter.refuse(error)

    async def _tend(self) -> None:
        trees = {key: held.tree for key, held in self._held.items() if held.tree}
        alive = await asyncio.to_thread(survivors, trees) if trees else {}
        readings, lost, now = self._devices.readings(), self._devices.given_up(), self._clock.monotonic()
        for held in [*self._held.values()]:
            async with held.moving:
                lease = held.lease
                if self._held.get(lease.id) is not held:
                    continue
                if held.tree and held.tree == trees.get(lease.id):
                    held.tree = alive[lease.id]
                for device, reading in readings.items() if held.tree else ():
                    measured = sum(reading.processes.get(member.pid, 0) for member in held.tree)
                    self._broker.observe(held.charge.holder, measured, device=device)
                await self._judge(held, now, is_lost=lease.device in lost)

    async def _judge(self, held: Held, now: float, *, is_lost: bool) -> None:
        """Do what time, the end of its process or the loss of its device asks of one lease."""
        lease = held.lease
        gone = bool(lease.process) and not held.tree
        if lease.state in ENDED:
            if gone:
                charge = held.charge
                await self._book.free(held)
                self._give_on(held, charge)
        elif gone:
            await self._end(held, reason="ProcessGone", actor=SYSTEM)
        elif is_lost:
            await self._end(held, reason="NodeLost", actor=SYSTEM, proven=False)
        elif held.evict_at is not None:
            if now >= held.evict_at:
                await self._end(held, reason="Preempted", actor=SYSTEM, proven=False)
        elif now >= held.due_at:
            await self._end(held, reason="Expired", actor=SYSTEM, proven=False)

    async def _release_abandoned(self) -> None:
        while self._abandoned:
            held = self._held.get(self._abandoned[-1])
            if held is not None:
                async with held.moving:
                    if held.lease.state not in ENDED:
                        await self._end(held, reason="Abandoned", actor=held.lease.holder)
            self._abandoned.pop()

    async def _end(self, held: Held, *, reason: str, actor: str, proven: bool = True) -> None:
        """End a lease; its memory is free unless it is not `proven` that its process uses it no longer.

        The caller has its `moving`.
        """
        state = _ENDS.get(reason, LeaseState.RELEASED)
        if held.lease.state is LeaseState.PREEMPTING and state is not LeaseState.EVICTED:
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
        """Its bytes are free, or the successor's that waits for them."""
        self._broker.release(charge.holder)
        self._held.pop(held.lease.id, None)
        self._book.ended[held.lease.id] = held.lease
        self.handover.pass_on(held)
        waiter = self._queue.find(held.successor.removeprefix("lease:"))
        if waiter is not None:
            waiter.found_bytes.clear()
        self._woken.set()

    # granting

    async def _serve(self, *, thoroughly: bool) -> None:
        """Give every waiter, in turn, what those before it leave.

        Unless it is done `thoroughly` one that has waited is left to wait while no more is free than it found:
        what else may help it, such as a model that has stayed its time, is seen soon enough.
        """
        hasty, self._hasty = self._hasty, []
        try:
            if self._queue:
                await self._devices.settle(FRESH_S)
                await self._serve_queue(thoroughly)
        finally:
            for waiter in hasty:
                waiter.refuse(NoCapacity(waiter.why, details={"reason": Reason.HELD}))

    async def _serve_queue(self, thoroughly: bool) -> None:
        accounts = self._broker.accounts()
        free_bytes = self._broker.free(accounts)
        wanted: dict[str, frozenset[str]] = {}
        blocked: set[str] = set()
        closed: set[str] = set()
        granted: list[tuple[Waiter, Grant]] = []
        for waiter in self._queue.turns(closed):
            if waiter.answer.done():
                continue
            line = waiter.line
            if line not in wanted:
                wanted[line] = frozenset(each.device for each in Ledger(accounts).candidates(waiter.demand(line)))
            able = wanted[line] - blocked
            if wanted[line] and not able:
                closed.add(line)
                continue
            waits = bool(able) and not thoroughly and not waiter.found_less(able, free_bytes)
            if not waits:
                waits = not await self._try(waiter, waiter.demand(tuple(sorted(able)) or line), granted)
                free_bytes = self._broker.free(accounts)
            if waits:
                waiter.found_bytes = {device: free_bytes[device] for device in able}
                closed.add(line)
                blocked |= wanted[line]
        self._outlook.wanted = wanted
        await self._admit(granted)

    async def _try(self, waiter: Waiter, demand: Demand, granted: list[tuple[Waiter, Grant]]) -> bool:
        """Whether it stands in nobody's way any more: granted, or refused because it fails or never fits.

        For one that has to wait it sees whom to preempt.
        """
        try:
            outcome: Grant | Plan | Refusal | None = self._broker.charge(demand)
            if isinstance(outcome, Plan):
                await self._admit(granted)  # models end first, which may take long
                outcome = await self._reserve(waiter, demand)
            if isinstance(outcome, Grant):
                self.handover.forget(waiter.holder)
                granted.append((waiter, outcome))
                return True
            if isinstance(outcome, Refusal):
                waiter.held_up(outcome, self._clock.monotonic())
                if outcome.reason is Reason.TOO_LARGE:
                    raise NoCapacity(outcome.message, details={"reason": outcome.reason})
                await self._preempt_for(waiter, outcome)
        except MocError as error:
            waiter.refuse(error)
            return True
        return False

    async def _reserve(self, waiter: Waiter, demand: Demand) -> Grant | None:
        """What was charged once models were unloaded for it, None when somebody else was faster."""
        try:
            return await self._broker.reserve_now(demand)
        except NoCapacity as error:
            waiter.why = error.message
            return None

    async def _admit(self, granted: list[tuple[Waiter, Grant]]) -> None:
        """Write down what was granted, in one commit, and tell those who waited for it; `granted` is empty then."""
        grants, granted[:] = granted[:], []
        if not grants:
            return
        admissions = [Admission(waiter.lease, grant.placements[0]) for waiter, grant in grants]
        try:
            admitted = await self._book.admit(admissions, now=self._clock.monotonic(), wall=self._clock.wall())
        except BaseException as error:
            for _, grant in grants:
                self._broker.release(grant.holder)
            if not isinstance(error, MocError):
                raise
            for waiter, _ in grants:
                waiter.refuse(error)
            return
        for (waiter, _), held in zip(grants, admitted, strict=True):
            self._held[held.lease.id] = held
            self._queue.remove(waiter)
            if waiter.answer.done():
                self._abandoned.append(held.lease.id)
                self._woken.set()
            else:
                waiter.answer.set_result(self._standing(held))

    async def _preempt_for(self, waiter: Waiter, refusal: Refusal) -> None:
        """Tell less urgent leases to end if that makes room."""
        if waiter.until is not None:
            left_s = waiter.until - self._clock.monotonic()
            device = await self.handover.to_lease(waiter.demand(waiter.line), left_s, refusal)
            if device and self._queue.find(waiter.lease.id) is not None:
                self._queue.pin(waiter, device)
