"""What a caller may ask about rollouts."""

from dataclasses import dataclass

import msgspec

from moc.kernel.errors import NotFound
from moc.models.ports import Sample
from moc.models.rollout import P95, Guards, Mark, RolloutTerms
from moc.models.rollouts import Progress, Rollouts
from moc.security.identity import Identity
from moc.security.policy import Operation
from moc.service.guard import Journal, audited, check, require, visible
from moc.service.views import Page, rfc3339

_USUAL = RolloutTerms(alias="", to="")


class RolloutWish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rollout that is wanted; see `models.rollout.RolloutTerms` and `Guards`."""

    alias: str
    to: str
    steps: tuple[float, ...] = _USUAL.steps
    hold_s: float = _USUAL.hold_s
    max_error_rate: float | None = None
    max_p95_ms: float | None = None
    max_p95_ratio: float | None = None
    min_requests: int = _USUAL.guards.min_requests


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenView:
    """What a version did since the step began: its requests, how many failed by its fault, what 95 % of them took."""

    requests: int
    failures: int
    p95_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkView:
    """A line of a rollout's history; see `models.rollout.Mark`."""

    at: str
    state: str
    share_pct: float
    actor: str
    reason: str
    message: str
    requests: int
    failures: int
    p95_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutView:
    """A rollout of `alias` to the version `to`, which gets `share_pct` percent of its requests now.

    `before` is what the versions of the alias weighed, `old` the one that is compared with. `waits_for` is why it
    stays as it is. `new_seen` and `old_seen` are null unless requests are shared now. `history` is oldest first.
    """

    id: str
    alias: str
    to: str
    old: str
    before: dict[str, float]
    state: str
    reason: str
    message: str
    share_pct: float
    steps: tuple[float, ...]
    hold_s: float
    max_error_rate: float | None
    max_p95_ms: float | None
    max_p95_ratio: float | None
    min_requests: int
    created_at: str
    created_by: str
    changed_at: str
    waits_for: str
    new_seen: SeenView | None
    old_seen: SeenView | None
    history: list[MarkView]


class RolloutsService:
    """Aliases that are moved step by step, by the rollout's id or the alias's name; every method authorises first."""

    def __init__(self, *, rollouts: Rollouts, journal: Journal) -> None:
        self.journal = journal
        self._rollouts = rollouts

    async def list(self, identity: Identity, *, after: str | None, limit: int) -> Page[RolloutView]:
        """Rollouts by id, so oldest first; `after` is the last id of the page before."""
        may_see = visible(identity, Operation.READ_MODELS)
        views = [_view(each) for each in self._rollouts.all() if may_see(each.rollout.terms.alias)]
        found = [view for view in views if after is None or view.id > after]
        return Page(found[:limit], found[limit - 1].id if len(found) > limit else None)

    async def show(self, identity: Identity, name: str) -> RolloutView:
        """One rollout, or the newest one of an alias; NotFound when there is none."""
        return _view(self._pick(identity, Operation.READ_MODELS, name))

    @audited("rollouts.begin", subject=lambda begun: begun.id)
    async def begin(self, identity: Identity, wish: RolloutWish) -> RolloutView:
        """Begin one; see `models.rollouts.Rollouts.begin`. The key must be for the alias and the version."""
        require(identity, Operation.CHANGE_MODELS, model=wish.alias)
        check(identity, Operation.CHANGE_MODELS, model=wish.to)
        terms = RolloutTerms(
            alias=wish.alias,
            to=wish.to,
            steps=wish.steps,
            hold_s=wish.hold_s,
            guards=Guards(
                max_error_rate=wish.max_error_rate,
                max_p95_ms=wish.max_p95_ms,
                max_p95_ratio=wish.max_p95_ratio,
                min_requests=wish.min_requests,
            ),
        )
        return _view(await self._rollouts.begin(terms, actor=identity.key_id))

    @audited("rollouts.pause")
    async def pause(self, identity: Identity, name: str) -> RolloutView:
        """Stay at this step."""
        found = self._pick(identity, Operation.CHANGE_MODELS, name)
        return _view(await self._rollouts.pause(found.rollout.id, actor=identity.key_id))

    @audited("rollouts.resume")
    async def resume(self, identity: Identity, name: str) -> RolloutView:
        """Go on."""
        found = self._pick(identity, Operation.CHANGE_MODELS, name)
        return _view(await self._rollouts.resume(found.rollout.id, actor=identity.key_id))

    @audited("rollouts.promote")
    async def promote(self, identity: Identity, name: str, *, force: bool) -> RolloutView:
        """Give the new version everything now; see `models.rollouts.Rollouts.promote`."""
        found = self._pick(identity, Operation.CHANGE_MODELS, name)
        return _view(await self._rollouts.promote(found.rollout.id, actor=identity.key_id, force=force))

    @audited("rollouts.abort")
    async def abort(self, identity: Identity, name: str) -> RolloutView:
        """Let the alias be what it was before."""
        found = self._pick(identity, Operation.CHANGE_MODELS, name)
        return _view(await self._rollouts.abort(found.rollout.id, actor=identity.key_id))

    def _pick(self, identity: Identity, operation: Operation, name: str) -> Progress:
        visible(identity, operation)
        try:
            found = self._rollouts.show(name)
        except NotFound:
            check(identity, operation, model=name)
            raise
        check(identity, operation, model=found.rollout.terms.alias)
        return found


def _view(progress: Progress) -> RolloutView:
    rollout, terms = progress.rollout, progress.rollout.terms
    first, last = rollout.history[0], rollout.history[-1]
    return RolloutView(
        id=rollout.id,
        alias=terms.alias,
        to=terms.to,
        old=rollout.old,
        before=rollout.before.versions,
        state=rollout.state,
        reason=last.reason,
        message=last.message,
        share_pct=rollout.share_pct,
        steps=terms.steps,
        hold_s=terms.hold_s,
        max_error_rate=terms.guards.max_error_rate,
        max_p95_ms=terms.guards.max_p95_ms,
        max_p95_ratio=terms.guards.max_p95_ratio,
        min_requests=terms.guards.min_requests,
        created_at=rfc3339(first.at),
        created_by=first.actor,
        changed_at=rfc3339(last.at),
        waits_for=progress.waits_for,
        new_seen=_seen(progress.new),
        old_seen=_seen(progress.old),
        history=[_mark(mark) for mark in rollout.history],
    )


def _seen(sample: Sample | None) -> SeenView | None:
    if sample is None:
        return None
    p95_ms = round(sample.quantile_s(P95) * 1000, 3) if sample.count else None
    return SeenView(requests=sample.count, failures=sample.failures, p95_ms=p95_ms)


def _mark(mark: Mark) -> MarkView:
    return MarkView(
        at=rfc3339(mark.at),
        state=mark.state,
        share_pct=mark.share_pct,
        actor=mark.actor,
        reason=mark.reason,
        message=mark.message,
        requests=mark.requests,
        failures=mark.failures,
        p95_ms=mark.p95_ms,
    )
