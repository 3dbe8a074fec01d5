"""The noun: an alias that is moved to another version step by step, and what is decided about it. Pure."""

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum

from moc.kernel.errors import Conflict, InvalidRequest
from moc.models.alias import Alias
from moc.models.ports import Sample

STEPS_MAX = 20
HOLD_MAX_S = 30 * 86_400.0
REQUESTS_MAX = 1_000_000
HISTORY_MAX = 200
P95 = 0.95


class RolloutState(StrEnum):
    """`warming` loads the version; `progressing` and `paused` share requests with it; the rest are ends.

    `aborted` was ended by a person or by another change of the alias, `rolled_back` by a guard, `failed` before the
    version got its first request.
    """

    WARMING = "warming"
    PROGRESSING = "progressing"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ABORTED = "aborted"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


SHARING = frozenset({RolloutState.PROGRESSING, RolloutState.PAUSED})
ENDED = frozenset({RolloutState.PROMOTED, RolloutState.ABORTED, RolloutState.ROLLED_BACK, RolloutState.FAILED})

_ENDS = frozenset({RolloutState.PROMOTED, RolloutState.ABORTED, RolloutState.ROLLED_BACK})
MOVES: dict[RolloutState, frozenset[RolloutState]] = {
    RolloutState.WARMING: frozenset({RolloutState.PROGRESSING, RolloutState.ABORTED, RolloutState.FAILED}),
    RolloutState.PROGRESSING: _ENDS | {RolloutState.PROGRESSING, RolloutState.PAUSED},
    RolloutState.PAUSED: _ENDS | {RolloutState.PROGRESSING},
    **{state: frozenset[RolloutState]() for state in RolloutState if state in ENDED},
}
"""Every move a rollout's state may make; from `progressing` to itself is the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """What ends a rollout, judged in each step by the requests the new version got in it.

    `max_error_rate` is a share of them (0 to 1) that may fail by the engine's fault, `max_p95_ms` bounds what 95 % of
    them take, `max_p95_ratio` that by the old version's meanwhile. None = not guarded. Nothing is judged by fewer
    than `min_requests`, and no step ends before it got as many.
    """

    max_error_rate: float | None = None
    max_p95_ms: float | None = None
    max_p95_ratio: float | None = None
    min_requests: int = 50

    def breach(self, old: Sample, new: Sample) -> tuple[str, str] | None:
        """The reason and the story of the first guard that does not hold, None when all do.

        So many failures that no `min_requests` could excuse them are a breach before there are as many.
        """
        if self.max_error_rate is not None:
            allowed = self.max_error_rate * max(new.count, self.min_requests)
            if new.failures > allowed:
                return "ErrorRate", f"{new.failures} of {new.count} requests failed, {self.max_error_rate:.4g} may"
        if not new.count or new.count < self.min_requests:
            return None
        p95_ms = new.quantile_s(P95) * 1000
        if self.max_p95_ms is not None and p95_ms > self.max_p95_ms:
            return "Latency", f"95 % of {new.count} requests took up to {p95_ms:.4g} ms, {self.max_p95_ms:.4g} may"
        if self.max_p95_ratio is not None and old.count and old.count >= self.min_requests:
            usual_ms = old.quantile_s(P95) * 1000
            if p95_ms > usual_ms * self.max_p95_ratio:
                times = f"{p95_ms:.4g} ms, the old one's {usual_ms:.4g} ms; {self.max_p95_ratio:.4g} times that may be"
                return "LatencyRatio", f"95 % of {new.count} requests took up to {times}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutTerms:
    """What somebody wants: `alias` moved to the version `to`, which gets `steps` percent of its requests in turn.

    Each step lasts for `hold_s` at least.
    """

    alias: str
    to: str
    steps: tuple[float, ...] = (1.0, 10.0, 50.0, 100.0)
    hold_s: float = 600.0
    guards: Guards = Guards()

    def check(self) -> None:
        """InvalidRequest when that cannot be right whatever alias and version there are."""
        steps, guards = self.steps, self.guards
        ascending = all(low < high for low, high in zip((0.0, *steps), (*steps, math.inf), strict=True))
        if not 1 <= len(steps) <= STEPS_MAX or not ascending or steps[-1] > 100:
            raise InvalidRequest(
                f"`steps` is {', '.join(f'{step:g}' for step in steps[: STEPS_MAX + 1]) or 'empty'}; "
                f"write 1 to {STEPS_MAX} ascending percentages such as 1,10,50,100"
            )
        bounds = (
            ("hold_s", self.hold_s, HOLD_MAX_S),
            ("min_requests", guards.min_requests, REQUESTS_MAX),
            ("max_error_rate", guards.max_error_rate or 0.0, 1),
            ("max_p95_ms", guards.max_p95_ms or 0.0, 10**9),
            ("max_p95_ratio", guards.max_p95_ratio or 0.0, 10**6),
        )
        for name, value, most in bounds:
            if not 0 <= value <= most:
                raise InvalidRequest(f"`{name}` is {value:g}; it is from 0 to {most:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One line of a rollout's history: what it became, when, by whom and why, and what had been seen by then.

    `requests`, `failures` and `p95_ms` are those of the new version in the step that ended.
    """

    at: float
    state: RolloutState
    share_pct: float
    actor: str
    reason: str
    message: str = ""
    requests: int = 0
    failures: int = 0
    p95_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One rollout. `before` is what the alias was; `old` the version that is compared with, its heaviest.

    It is in step number `step` (from 0) since `step_began_at`. Times are wall.
    """

    id: str
    terms: RolloutTerms
    before: Alias
    old: str
    state: RolloutState
    step: int = 0
    step_began_at: float = 0.0
    history: tuple[Mark, ...] = field(default_factory=tuple)

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state in ENDED

    @property
    def share_pct(self) -> float:
        """Which percentage of the requests the new version gets."""
        if self.state is RolloutState.PROMOTED:
            return 100.0
        return self.terms.steps[self.step] if self.state in SHARING else 0.0

    @property
    def wanted(self) -> Alias:
        """What the alias is to be now.

        While requests are shared the other versions keep their proportions, and stay named though they get none.
        """
        to, share_pct = self.terms.to, self.share_pct
        if not share_pct:
            return self.before
        versions = {to: 100.0}
        if self.state is not RolloutState.PROMOTED:
            others = {reference: weight for reference, weight in self.before.versions.items() if reference != to}
            whole, left_pct = math.fsum(others.values()), 100.0 - share_pct
            shares = {reference: round(weight / whole * left_pct, 6) for reference, weight in others.items()}
            versions = shares | {to: share_pct}
        return replace(
            self.before,
            versions=versions,
            fallback=tuple(reference for reference in self.before.fallback if reference != to),
            shadow={reference: percent for reference, percent in self.before.shadow.items() if reference != to},
        )

    def noted(self, *, at: float, actor: str, reason: str, message: str = "", seen: Sample | None = None) -> "Rollout":
        """The same with a line more in its history."""
        mark = Mark(
            at=at,
            state=self.state,
            share_pct=self.share_pct,
            actor=actor,
            reason=reason,
            message=message,
            requests=seen.count if seen else 0,
            failures=seen.failures if seen else 0,
            p95_ms=round(seen.quantile_s(P95) * 1000, 3) if seen and seen.count else None,
        )
        return replace(self, history=(*self.history[-HISTORY_MAX + 1 :], mark))

    def moved(self, state: RolloutState, *, at: float, step: int | None = None) -> "Rollout":
        """What it becomes; Conflict when that is no move of `MOVES`. A `step` that is given begins at `at`."""
        if state not in MOVES[self.state]:
            raise Conflict(f"rollout {self.id} is {self.state} and cannot become {state}")
        if step is None:
            return replace(self, state=state)
        return replace(self, state=state, step=step, step_began_at=at)


@dataclass(frozen=True, slots=True)
class Hold:
    """It stays as it is, because of what `why` says."""

    why: str


@dataclass(frozen=True, slots=True)
class Advance:
    """The next step begins."""

    step: int


@dataclass(frozen=True, slots=True)
class Promote:
    """The new version gets everything, and it is over."""


@dataclass(frozen=True, slots=True)
class RollBack:
    """The alias becomes what it was, and it is over."""

    reason: str
    message: str


Decision = Hold | Advance | Promote | RollBack


def decide(rollout: Rollout, old: Sample, new: Sample, *, now: float, fault: str = "") -> Decision:
    """What is to be done about a rollout that shares requests, by what both versions did since its step began.

    `fault` is why the new version gets no requests whatever its share, if that is so. Guards hold in a pause, too. A
    step ends when it was held for its time and the new version got as many requests as a verdict takes, both.
    """
    breach = rollout.terms.guards.breach(old, new)
    if breach is not None:
        return RollBack(*breach)
    if fault:
        return RollBack("NotServing", fault)
    if rollout.state is RolloutState.PAUSED:
        return Hold("it is paused")
    left_s = rollout.step_began_at + rollout.terms.hold_s - now
    if left_s > 0:
        return Hold(f"{math.ceil(left_s)} s left of this step")
    if new.count < rollout.terms.guards.min_requests:
        return Hold(f"{new.count} of {rollout.terms.guards.min_requests} requests seen in this step")
    step = rollout.step + 1
    return Advance(step) if step < len(rollout.terms.steps) else Promote()
