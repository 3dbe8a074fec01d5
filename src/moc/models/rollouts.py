"""Rollouts: the one who moves aliases step by step, and back when a guard is breached.

Records: `rollouts/<id>`; events: `rollout.<state>`. A rollout and the alias it moves change in one commit, so whoever
reads the store after a crash finds both as they belong together, and goes on from there.
"""

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import structlog

from moc.kernel.actor import Actor
from moc.kernel.clock import Clock
from moc.kernel.errors import Conflict, MocError, NotFound
from moc.kernel.events import Event
from moc.kernel.ids import new_id
from moc.kernel.records import ABSENT, Op, Store, Table
from moc.kernel.tasks import Tasks, to_the_end
from moc.models.alias import Alias, check_alias
from moc.models.aliases import AliasBook, Along
from moc.models.catalogue import Catalogue
from moc.models.manager import ModelManager
from moc.models.model import State, parse_reference
from moc.models.ports import Circuits, HostSeat, Observations, Sample
from moc.models.rollout import (
    SHARING,
    Advance,
    Decision,
    Hold,
    RollBack,
    Rollout,
    RolloutState,
    RolloutTerms,
    decide,
)
from moc.resilience.breaker import Circuit
from moc.resilience.deadline import NEVER

log = structlog.get_logger(__name__)

LOOK_S = 0.1
PAUSE_S = 1.0
"""How long nothing is tried after it failed, such as for want of the store."""

ENDED_MAX = 200
"""How many rollouts that are over are remembered."""

SYSTEM = "system"
REQUESTED = "Requested"


@dataclass(slots=True)
class _Held:
    """A rollout; once it runs the versions `kept` loaded for it, and what both had done when its step began.

    `warmed` is whether the new version's loading has ended, `failure` why it failed if it did.
    """

    rollout: Rollout
    revision: int
    kept: tuple[str, ...] = ()
    since: tuple[Sample, Sample] | None = None
    warmed: bool = False
    failure: MocError | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """A rollout and what it waits for; what both versions did in its step, None unless they share requests now."""

    rollout: Rollout
    waits_for: str = ""
    old: Sample | None = None
    new: Sample | None = None


class Rollouts:
    """Every rollout. While one runs nothing else may change its alias, and both versions stay loaded.

    What was seen of a step is forgotten when the coordinator restarts, and counted anew.
    """

    def __init__(
        self,
        *,
        store: Store,
        seat: HostSeat,
        clock: Clock,
        catalogue: Catalogue,
        aliases: AliasBook,
        manager: ModelManager,
        observations: Observations,
        circuits: Circuits,
    ) -> None:
        self._store = store
        self._seat = seat
        self._clock = clock
        self._catalogue = catalogue
        self._aliases = aliases
        self._manager = manager
        self._observations = observations
        self._circuits = circuits
        self._table: Table[Rollout] = Table(store, "rollouts/", Rollout)
        self._held: dict[str, _Held] = {}
        self._woken = asyncio.Event()
        self._actor = Actor("rollouts")
        self._tasks = Tasks(lambda error: log.error("a rollout failed", exc_info=error))
        catalogue.heed(self)

    # life

    async def start(self) -> None:
        """Read them, and go on with those that are not over; of an alias that was changed meanwhile it is over."""
        for rollout_id, rollout, revision in await self._table.list():
            self._held[rollout_id] = _Held(rollout, revision)
        await self._actor.start()
        for held in self._running():
            await self._go_on(held)
        self._tasks.spawn(self._watch())

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        """Leave them as they are, for the next start."""
        await self._tasks.cancel()
        await self._actor.stop()
        for held in self._running():
            self._let_go(held)
        self._held.clear()

    async def _go_on(self, held: _Held) -> None:
        rollout, now = held.rollout, self._clock.wall()
        if self._aliases.find(rollout.terms.alias) == rollout.wanted:
            await self._aliases.claim(rollout.terms.alias, rollout.id)
            self._take_up(held)
            return
        message = f"alias {rollout.terms.alias} was changed before the rollout could go on"
        over = rollout.moved(RolloutState.ABORTED, at=now)
        over = over.noted(at=now, actor=SYSTEM, reason="AliasChanged", message=message)
        held.revision = await self._store.commit(self._ops(held, over), [_event(over)])
        held.rollout = over

    # for the catalogue

    def check_free(self, name: str) -> None:
        """See `models.catalogue.NameUser`; it gives no names."""

    def check_unused(self, name: str, going: Collection[int], *, last: bool) -> None:
        """See `models.catalogue.NameUser`; what the alias names is for the aliases to say."""
        for held in self._running():
            model, version = parse_reference(held.rollout.terms.to)
            if model == name and version in going:
                raise Conflict(f"rollout {held.rollout.id} moves requests to {held.rollout.terms.to}; abort it first")

    # what is known

    def all(self) -> Sequence[Progress]:
        """Every one that runs, and the last ones that did, oldest first."""
        return [self._progress(self._held[rollout_id]) for rollout_id in sorted(self._held)]

    def show(self, name: str) -> Progress:
        """The rollout of this id, or the newest of this alias; NotFound when there is none."""
        return self._progress(self._find(name))

    def _find(self, name: str) -> _Held:
        if name in self._held:
            return self._held[name]
        of_alias = [held for held in self._held.values() if held.rollout.terms.alias == name]
        if not of_alias:
            raise NotFound(f"there is no rollout {name[:128]!r}; `moc rollout list` shows those there are")
        return of_alias[-1]

    def _progress(self, held: _Held) -> Progress:
        rollout = held.rollout
        if rollout.state not in SHARING:
            return Progress(rollout, "" if rollout.ended else f"{rollout.terms.to} to be ready")
        old, new = self._seen(held)
        verdict = self._verdict(held)
        return Progress(rollout, verdict.why if isinstance(verdict, Hold) else "", old, new)

    # what operators ask

    async def begin(self, terms: RolloutTerms, *, actor: str) -> Progress:
        """Begin to move an alias to a version; returns before that is loaded.

        NotFound when there is no such alias or version. InvalidRequest for what cannot be right. Conflict when another
        rollout moves the alias, it is at that version already, or its shares do not count.
        """
        terms.check()
        return await self._actor.ask(lambda: self._begin(terms, actor))

    async def pause(self, name: str, *, actor: str) -> Progress:
        """Stay at this step until it is resumed; its guards go on watching. Conflict unless it shares requests."""
        return await self._ask(name, RolloutState.PAUSED, actor)

    async def resume(self, name: str, *, actor: str) -> Progress:
        """Go on; Conflict unless it is paused."""
        return await self._ask(name, RolloutState.PROGRESSING, actor)

    async def promote(self, name: str, *, actor: str, force: bool = False) -> Progress:
        """Give the new version everything now, without the steps that are left; Conflict unless it shares requests.

        Unless `force` also while it got fewer requests in this step than a verdict takes.
        """
        return await self._ask(name, RolloutState.PROMOTED, actor, force=force)

    async def abort(self, name: str, *, actor: str) -> Progress:
        """End it, and let the alias be what it was before; Conflict when it is over."""
        return await self._ask(name, RolloutState.ABORTED, actor)

    async def _ask(self, name: str, state: RolloutState, actor: str, *, force: bool = False) -> Progress:
        async def run() -> Progress:
            held = self._find(name)
            if state is RolloutState.PROGRESSING and held.rollout.state is not RolloutState.PAUSED:
                raise Conflict(f"rollout {held.rollout.id} is {held.rollout.state}, not paused")
            if state is RolloutState.PROMOTED and held.rollout.state in SHARING and not force:
                self._check_sample(held)
            await self._move(held, state, actor=actor, reason=REQUESTED)
            return self._progress(held)

        return await self._actor.ask(run)

    def _check_sample(self, held: _Held) -> None:
        terms, (_, new) = held.rollout.terms, self._seen(held)
        if new.count < terms.guards.min_requests:
            raise Conflict(
                f"{terms.to} got {new.count} requests in this step, and a verdict takes "
                f"{terms.guards.min_requests}; wait for them, or use --force (`force`)"
            )

    async def _begin(self, terms: RolloutTerms, actor: str) -> Progress:
        rollout_id, now = new_id("rol"), self._clock.wall()
        terms = replace(terms, to=self._catalogue.entry(terms.to).version.reference)
        before = await self._aliases.claim(terms.alias, rollout_id)
        try:
            old = self._check_start(terms, before)
            rollout = Rollout(id=rollout_id, terms=terms, before=before, old=old, state=RolloutState.WARMING)
            check_alias(terms.alias, rollout.moved(RolloutState.PROGRESSING, at=now, step=0).wanted)
            held = _Held(rollout.noted(at=now, actor=actor, reason=REQUESTED), ABSENT)
            await self._forget()
            await self._record(held, held.rollout)
        except BaseException:
            self._aliases.freed(terms.alias)
            raise
        self._held[rollout_id] = held
        self._take_up(held)
        return self._progress(held)

    async def _forget(self) -> None:
        """Make room for one more."""
        ended = [rollout_id for rollout_id in sorted(self._held) if self._held[rollout_id].rollout.ended]
        for rollout_id in ended[: max(0, len(ended) + 1 - ENDED_MAX)]:
            expect = self._held[rollout_id].revision
            await self._store.commit([self._seat.fence(), self._table.delete(rollout_id, expect=expect)])
            del self._held[rollout_id]

    def _check_start(self, terms: RolloutTerms, alias: Alias) -> str:
        """The version to compare with; Conflict when requests cannot be moved from it by shares."""
        others = {reference: weight for reference, weight in alias.versions.items() if reference != terms.to}
        if not any(others.values()):
            raise Conflict(f"alias {terms.alias} gives {terms.to} everything already")
        name = parse_reference(terms.to)[0]
        if name in others:
            now = self._manager.serving(name).version.reference
            raise Conflict(
                f"alias {terms.alias} names {name} without a version, which comes to mean {terms.to} by itself; "
                f"let it name {now} first"
            )
        if alias.policy != "weighted":
            raise Conflict(f"shares do not count while alias {terms.alias} has the policy {alias.policy}; change that")
        return max(others, key=lambda reference: others[reference])

    # on its way

    async def _watch(self) -> None:
        """Decide about those that run, ten times a second while there are any."""
        while True:
            pause_s = LOOK_S if self._running() else None
            for held in self._running():
                try:
                    await self._actor.ask(partial(self._look, held))
                except MocError as error:
                    pause_s = PAUSE_S
                    log.warning("a rollout could not go on", rollout=held.rollout.id, error=error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._woken.wait()
            self._woken.clear()

    async def _look(self, held: _Held) -> None:
        if held.rollout.state is RolloutState.WARMING and held.warmed:
            if held.failure is None:
                await self._move(held, RolloutState.PROGRESSING, reason="Ready", step=0)
            else:
                await self._move(held, RolloutState.FAILED, reason=held.failure.code, message=held.failure.message)
        elif held.rollout.state in SHARING:
            verdict = self._verdict(held)
            if isinstance(verdict, RollBack):
                await self._move(held, RolloutState.ROLLED_BACK, reason=verdict.reason, message=verdict.message)
            elif isinstance(verdict, Advance):
                await self._move(held, RolloutState.PROGRESSING, reason="StepPassed", step=verdict.step)
            elif not isinstance(verdict, Hold):
                await self._move(held, RolloutState.PROMOTED, reason="StepsPassed")

    def _verdict(self, held: _Held) -> Decision:
        fault = self._fault(held.rollout.terms.to)
        return decide(held.rollout, *self._seen(held), now=self._clock.wall(), fault=fault)

    def _fault(self, reference: str) -> str:
        """Why a version gets no requests whatever its share, empty if it does."""
        status, resident = self._catalogue.entry(reference).status, self._manager.find(reference)
        if status.state is State.FAILED:
            return status.message or status.reason
        if resident is not None and self._circuits.circuit(resident.worker_id) is Circuit.OPEN:
            return f"so many requests of {reference} failed in a row that it gets no more for a while"
        return ""

    def _seen(self, held: _Held) -> tuple[Sample, Sample]:
        """What the old and the new version did since the step began."""
        now = self._snapshots(held.rollout)
        old, new = now if held.since is None else held.since
        return now[0] - old, now[1] - new

    def _snapshots(self, rollout: Rollout) -> tuple[Sample, Sample]:
        old = self._manager.serving(rollout.old).version.reference
        return self._observations.snapshot(old), self._observations.snapshot(rollout.terms.to)

    async def _move(
        self,
        held: _Held,
        state: RolloutState,
        *,
        reason: str,
        actor: str = SYSTEM,
        message: str = "",
        step: int | None = None,
    ) -> None:
        now = self._clock.wall()
        seen = self._seen(held)[1] if held.rollout.state in SHARING else None
        moved = held.rollout.moved(state, at=now, step=step)
        moved = moved.noted(at=now, actor=actor, reason=reason, message=message, seen=seen)
        await self._record(held, moved, begins=step is not None)

    async def _record(self, held: _Held, rollout: Rollout, *, begins: bool = False) -> None:
        """Make a change durable, together with what it makes of the alias, and act on it; a step may begin with it."""

        def done(revision: int) -> None:
            held.rollout, held.revision = rollout, revision
            if begins:
                held.since = self._snapshots(rollout)
            if rollout.ended:
                self._let_go(held)

        name, along = rollout.terms.alias, Along(self._ops(held, rollout), [_event(rollout)], done)
        if self._aliases.find(name) == rollout.wanted:
            await to_the_end(self._commit(along))
        else:
            actor, reason = rollout.history[-1].actor, f"Rollout {rollout.id}"
            await self._aliases.set(name, rollout.wanted, actor=actor, reason=reason, rollout=rollout.id, along=along)

    async def _commit(self, along: Along) -> None:
        along.done(await self._store.commit(along.ops, along.events))

    def _ops(self, held: _Held, rollout: Rollout) -> list[Op]:
        return [self._seat.fence(), self._table.put(rollout.id, rollout, expect=held.revision)]

    def _running(self) -> list[_Held]:
        return [held for held in self._held.values() if not held.rollout.ended]

    def _take_up(self, held: _Held) -> None:
        """Keep the versions that it is about loaded, and look after it."""
        rollout = held.rollout
        before = {self._manager.serving(reference).version.reference for reference in rollout.before.receiving}
        held.kept = tuple({rollout.terms.to, *before})
        for reference in held.kept:
            self._manager.hold(reference)
        if rollout.state in SHARING:
            held.since = self._snapshots(rollout)
        else:
            self._tasks.spawn(self._warm(held))
        self._woken.set()

    def _let_go(self, held: _Held) -> None:
        self._aliases.freed(held.rollout.terms.alias)
        for reference in held.kept:
            self._manager.unhold(reference)
        held.kept, held.since = (), None

    async def _warm(self, held: _Held) -> None:
        """Load the new version; who watches does the rest."""
        try:
            await self._manager.load(held.rollout.terms.to, NEVER, actor=SYSTEM)
        except MocError as error:
            held.failure = error
        held.warmed = True
        self._woken.set()


def _event(rollout: Rollout) -> Event:
    terms, mark = rollout.terms, rollout.history[-1]
    return Event(
        kind=f"rollout.{rollout.state}",
        subject=rollout.id,
        reason=mark.reason,
        actor=mark.actor,
        data={"alias": terms.alias, "to": terms.to, "share_pct": mark.share_pct, "message": mark.message},
    )
