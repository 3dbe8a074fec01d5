"""One request, one path: find the model, take a place, hand the request to the worker, give the place back.

Nothing is awaited that need not be: for a loaded model with a free place the only await is the worker's
answer. What an alias adds, and what a failure does, lies beside that path.
"""

import asyncio
import random
from typing import Final, Protocol

from msgspec.structs import replace

from moc.inference.answer import Answer, AnswerStream
from moc.inference.journey import A, Ask, Hedge, Journey, Watcher
from moc.inference.loads import Loads
from moc.inference.observed import Observed
from moc.inference.ports import Facts, Link, Links, Meter, Resident, Residents, Routes
from moc.inference.request import Caller, Kind, Reply, Request, Terms
from moc.inference.routing import Policy, Route, Standing, draw_of, order
from moc.inference.shadow import Shadows, ShadowWatcher
from moc.inference.shares import Shares
from moc.inference.station import Stations, TrafficLimits, Visit
from moc.kernel.clock import Clock
from moc.kernel.errors import DeadlineExceeded, MocError, Unavailable, WorkerLost, code_of
from moc.resilience.breaker import Circuit
from moc.resilience.deadline import Deadline
from moc.resilience.retry import RetryBudget

REPEATABLE: Final[frozenset[Kind]] = frozenset({"embeddings", "rerank", "tokenize"})
"""Kinds that may be run twice though the caller did not say so: they have no other effect than their answer."""

_PAUSE_S: Final = (0.01, 0.05)
_SUCCESSION_S: Final = 1.0
"""By then it is known of a worker that it is gone."""


class TrafficWatcher(Watcher, ShadowWatcher, Protocol):
    """Who is told what happens to requests beside being served."""

    def retried(self, reference: str, code: str) -> None:
        """A request that failed so is sent to the same model again."""
        ...

    def circuit_changed(self, reference: str, worker_id: str, circuit: Circuit) -> None:
        """Requests for a worker are refused from now on, or let through again, or one is to try it."""
        ...

    def unbatched(self, reference: str, why: str) -> None:
        """A model's requests are to be gathered into batches, and cannot be."""
        ...


class Gateway:
    """Every inference goes through here."""

    def __init__(
        self,
        *,
        residents: Residents,
        links: Links,
        routes: Routes,
        facts: Facts,
        shares: Shares,
        observed: Observed,
        meter: Meter,
        watcher: TrafficWatcher,
        limits: TrafficLimits,
        clock: Clock,
    ) -> None:
        self._residents = residents
        self._routes = routes
        self._facts = facts
        self._observed = observed
        self._meter = meter
        self._watcher = watcher
        self._limits = limits
        self._budgets: dict[str, RetryBudget] = {}
        self.stations = Stations(
            links=links,
            shares=shares,
            limits=limits,
            clock=clock,
            on_circuit=watcher.circuit_changed,
            on_unbatched=watcher.unbatched,
        )
        self._loads = Loads(residents, shares)
        self._shadows = Shadows(residents=residents, stations=self.stations, observed=observed, watcher=watcher)

    # life

    async def start(self) -> None:
        return

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        """Give up what nobody waits for."""
        await self._shadows.stop()
        await self._loads.stop()

    def adjust(self, limits: TrafficLimits) -> None:
        """Go by other limits from now on."""
        self._limits = limits
        self.stations.adjust(limits)
        for budget in self._budgets.values():
            budget.pct = limits.retry_budget_pct

    # requests

    async def infer(self, caller: Caller, reference: str, request: Request, terms: Terms) -> Answer:
        """One answer.

        For an alias its targets are tried in turn, as its route says, while they fail by no fault of the caller's.
        A model, or the last of them, is asked again if it certainly was not given the request, or if the request may
        be run twice and not too many have been already. Cancelling the caller frees the place and stops the engine.
        """

        async def ask(target: str) -> Answer:
            return await self._infer(caller, target, request, terms)

        return await self._serve(ask, caller, reference, request, terms, streamed=False)

    async def stream(self, caller: Caller, reference: str, request: Request, terms: Terms) -> AnswerStream:
        """An answer in chunks; returns when the first is there. Does as `infer` before that, nothing after it."""

        async def ask(target: str) -> AnswerStream:
            return await self._stream(caller, target, request, terms)

        return await self._serve(ask, caller, reference, request, terms, streamed=True)

    async def _serve(
        self, ask: Ask[A], caller: Caller, reference: str, request: Request, terms: Terms, *, streamed: bool
    ) -> A:
        async def ask_again(target: str) -> A:
            try:
                return await ask(target)
            except MocError as error:
                await self._check_repeatable(error, target, request, terms)
            return await ask(target)

        route = self._routes.route(reference)
        if route is None:
            return await ask_again(reference)
        journey = Journey(
            route.name,
            self._targets(route, caller, terms),
            ask=ask,
            ask_last=ask_again,
            deadline=terms.deadline,
            hedge=self._hedge if route.hedge and (terms.repeatable or not streamed) else None,
            watcher=self._watcher,
        )
        answer = await journey.answer()
        if route.shadow is not None:
            self._shadows.mirror(route.name, route.shadow, request, streamed=streamed)
        return answer

    async def _infer(self, caller: Caller, reference: str, request: Request, terms: Terms) -> Answer:
        visit = await self._visit(caller, reference, request, terms)
        try:
            if not visit.try_enter():
                await visit.enter(terms)
            if terms.deadline.at is None:
                reply = await visit.engine.infer(request)
            else:
                reply = await _within(terms.deadline, visit.engine, request)
        except BaseException as error:
            visit.end(code_of(error))
            raise
        visit.end("ok")
        return Answer(reply, visit.resident.reference, visit.resident.digest, visit.queue_s)

    async def _stream(self, caller: Caller, reference: str, request: Request, terms: Terms) -> AnswerStream:
        visit = await self._visit(caller, reference, request, terms)
        try:
            await visit.enter(terms)
            stream = AnswerStream(visit, visit.engine.stream(request), terms.deadline)
        except BaseException as error:
            visit.end(code_of(error))
            raise
        await stream.begin()
        return stream

    async def _visit(self, caller: Caller, reference: str, request: Request, terms: Terms) -> Visit:
        request.deadline = terms.deadline
        resident = self._residents.find(reference)
        if resident is None:
            resident = await self._loads.ready(caller, reference, terms.deadline)
        budget = self._budgets.get(reference) or self._new_budget(reference)
        try:
            station = self.stations.of(resident, request.kind)
            return Visit(resident, station, budget, caller=caller, kind=request.kind, meter=self._meter)
        except MocError as error:
            self._meter.finished(resident.reference, request.kind, error.code, queue_s=0.0, engine_s=0.0)
            raise

    def _new_budget(self, reference: str) -> RetryBudget:
        budget = self._budgets[reference] = RetryBudget(self._limits.retry_budget_pct)
        return budget

    # when it fails, and where else to go

    async def _check_repeatable(self, error: MocError, reference: str, request: Request, terms: Terms) -> None:
        """Return when the request may be sent to the same model once more, else raise `error` again."""
        if isinstance(error, WorkerLost) and not error.sent:
            await self._await_successor(reference, terms.deadline, error)
        else:
            lost = isinstance(error, WorkerLost | Unavailable)
            budget = self._budgets.get(reference)
            harmless = terms.repeatable or request.kind in REPEATABLE
            if not (lost and harmless and budget is not None and budget.take()):
                raise error
            await _pause(terms.deadline, error)
        self._watcher.retried(reference, error.code)

    async def _await_successor(self, reference: str, deadline: Deadline, error: MocError) -> None:
        """Let a moment pass, and go on as long as the reference still stands for a worker that is gone."""
        until = Deadline.after(_SUCCESSION_S)
        await _pause(deadline, error)
        while (resident := self._residents.find(reference)) is not None and self.stations.is_gone(resident):
            if until.remaining_s() == 0:
                return
            await _pause(deadline, error)

    def _targets(self, route: Route, caller: Caller, terms: Terms) -> tuple[str, ...]:
        """The references to try, in order; one that would be first if it were loaded is from now on."""
        who = caller.key if route.sticky == "key" else terms.session if route.sticky == "session" else ""
        draw = draw_of(route.name, who) if who else random.random()  # noqa: S311  no secret
        standings: dict[str, Standing] = {}

        def standing(reference: str) -> Standing:
            if reference not in standings:
                standings[reference] = self._standing(route.policy, reference)
            return standings[reference]

        references = order(route, draw, standing)
        if not all(each.ready for each in standings.values()):
            wanted = order(route, draw, lambda reference: replace(standing(reference), ready=True))[0]
            if wanted != references[0]:
                self._loads.begin(caller, wanted)
        return references

    def _standing(self, policy: Policy, reference: str) -> Standing:
        resident, facts = self._residents.find(reference), self._facts
        delay_s = 0.0
        if policy == "fastest":
            delay_s = self._residents.load_left_s(reference) if resident is None else self._delay_s(resident)
        return Standing(
            ready=resident is not None,
            blocked=resident is not None and self._is_blocked(resident.worker_id),
            remote=policy == "local_first" and facts.is_remote(reference),
            cost=facts.cost(reference) if policy == "cheapest" else 0.0,
            delay_s=delay_s,
        )

    def _delay_s(self, resident: Resident) -> float:
        """How long an answer takes about now, 0 when that is not known."""
        usual_s = self._observed.p95_s(resident.reference) or self._observed.mean_s(resident.reference) or 0.0
        return usual_s * (1 + self.stations.waiting(resident.worker_id))

    def _is_blocked(self, worker_id: str) -> bool:
        return self.stations.retry_after_s(worker_id) > 0 or not self._facts.is_well(worker_id)

    def _hedge(self, reference: str) -> Hedge | None:
        """When to ask another than this target too; None while it is not known what is slow for it."""
        resident, budget = self._residents.find(reference), self._budgets.get(reference)
        after_s = None if resident is None else self._observed.p95_s(resident.reference)
        return None if after_s is None or budget is None else Hedge(after_s, budget)


async def _within(deadline: Deadline, engine: Link, request: Request) -> Reply:
    try:
        async with asyncio.timeout(deadline.remaining_s()):
            return await engine.infer(request)
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed while the model worked on it; allow more time") from None


async def _pause(deadline: Deadline, error: MocError) -> None:
    """Let a moment pass before asking again; raise `error` when there is no time for that."""
    pause_s, left_s = random.uniform(*_PAUSE_S), deadline.remaining_s()  # noqa: S311  no secret
    if left_s is not None and left_s <= pause_s:
        raise error
    await asyncio.sleep(pause_s)
