"""What is decided about a rollout, and what it makes of its alias."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moc.inference.observed import Sample, Series
from moc.kernel.errors import Conflict, InvalidRequest
from moc.models.alias import Alias
from moc.models.rollout import (
    ENDED,
    HISTORY_MAX,
    MOVES,
    Advance,
    Guards,
    Hold,
    Promote,
    RollBack,
    Rollout,
    RolloutState,
    RolloutTerms,
    decide,
)

BEFORE = Alias(versions={"m@1": 75.0, "n@4": 25.0}, fallback=("cloud", "m@2"), shadow={"m@2": 5.0})


def sample(ok: int = 0, failed: int = 0, took_s: float = 0.01) -> Sample:
    """So many requests."""
    series = Series()
    for _ in range(ok):
        series.finished("ok", took_s)
    for _ in range(failed):
        series.finished("internal", took_s)
    return series.snapshot()


def rollout(state: RolloutState = RolloutState.PROGRESSING, *, step: int = 0, guards: Guards | None = None) -> Rollout:
    """In its step since second 100, for 10 s at least."""
    terms = RolloutTerms(alias="a", to="m@2", steps=(10.0, 50.0), hold_s=10.0, guards=guards or Guards())
    return Rollout(id="rol-1", terms=terms, before=BEFORE, old="m@1", state=state, step=step, step_began_at=100.0)


def test_a_step_ends_when_it_was_held_and_enough_was_seen() -> None:
    assert decide(rollout(), sample(), sample(50), now=109.5) == Hold("1 s left of this step")
    assert decide(rollout(), sample(), sample(49), now=110) == Hold("49 of 50 requests seen in this step")
    assert decide(rollout(), sample(), sample(50), now=110) == Advance(1)
    assert decide(rollout(step=1), sample(), sample(50), now=110) == Promote()


def test_a_pause_holds_what_would_go_on_and_not_what_goes_wrong() -> None:
    paused = rollout(RolloutState.PAUSED, guards=Guards(max_error_rate=0.1))
    assert isinstance(decide(paused, sample(), sample(50), now=200), Hold)
    assert isinstance(decide(paused, sample(), sample(40, 10), now=200), RollBack)


@pytest.mark.parametrize(
    ("ok", "failed", "breached"), [(0, 1, False), (3, 5, False), (0, 6, True), (95, 10, False), (94, 11, True)]
)
def test_failures_that_no_sample_could_excuse_are_a_breach_at_once(ok: int, failed: int, breached: bool) -> None:
    verdict = decide(rollout(guards=Guards(max_error_rate=0.1)), sample(), sample(ok, failed), now=100)
    assert isinstance(verdict, RollBack) is breached
    if isinstance(verdict, RollBack):
        assert verdict.reason == "ErrorRate"
        assert f"{failed} of {ok + failed}" in verdict.message


def test_slowness_is_judged_by_a_whole_sample_only() -> None:
    slow = rollout(guards=Guards(max_p95_ms=20))
    assert isinstance(decide(slow, sample(), sample(49, took_s=1.0), now=100), Hold)
    verdict = decide(slow, sample(), sample(50, took_s=1.0), now=100)
    assert isinstance(verdict, RollBack)
    assert verdict.reason == "Latency"
    assert isinstance(decide(slow, sample(), sample(50, took_s=0.01), now=100), Hold)


def test_the_old_version_is_the_measure_while_it_gets_requests() -> None:
    twice = rollout(guards=Guards(max_p95_ratio=2))
    slow, usual = sample(50, took_s=0.03), sample(50, took_s=0.01)
    verdict = decide(twice, usual, slow, now=100)
    assert isinstance(verdict, RollBack)
    assert verdict.reason == "LatencyRatio"
    assert isinstance(decide(twice, sample(49), slow, now=100), Hold)
    assert isinstance(decide(twice, sample(50, took_s=0.02), slow, now=100), Hold)


def test_without_a_sample_size_time_alone_decides() -> None:
    guards = Guards(min_requests=0, max_error_rate=0, max_p95_ms=1, max_p95_ratio=1)
    assert decide(rollout(guards=guards), sample(), sample(), now=110) == Advance(1)


def test_a_version_that_cannot_be_loaded_any_more_is_left() -> None:
    assert decide(rollout(), sample(), sample(), now=0, fault="it died") == RollBack("NotServing", "it died")


@given(
    ok=st.integers(0, 200),
    failed=st.integers(0, 20),
    took_s=st.floats(0.0001, 100),
    rate=st.none() | st.floats(0, 1),
    p95_ms=st.none() | st.floats(0, 1e5),
    least=st.integers(0, 100),
    now=st.floats(0, 1000),
)
def test_nothing_goes_on_against_a_guard_or_without_a_sample(
    ok: int, failed: int, took_s: float, rate: float | None, p95_ms: float | None, least: int, now: float
) -> None:
    guards = Guards(max_error_rate=rate, max_p95_ms=p95_ms, min_requests=least)
    seen = sample(ok, failed, took_s)
    verdict = decide(rollout(guards=guards), sample(), seen, now=now)
    if isinstance(verdict, Advance | Promote):
        assert now >= 110
        assert seen.count >= least
        assert rate is None or seen.failures <= rate * max(seen.count, least)
        assert p95_ms is None or not seen.count or seen.quantile_s(0.95) * 1000 <= p95_ms
    if isinstance(verdict, RollBack) and seen.count < least:
        assert rate is not None
        assert seen.failures / least > rate  # even if all that are still to come went well


def test_what_the_alias_becomes() -> None:
    sharing = rollout()
    assert sharing.wanted.versions == {"m@1": 67.5, "n@4": 22.5, "m@2": 10.0}
    assert sharing.wanted.fallback == ("cloud",)
    assert sharing.wanted.shadow == {}
    assert rollout(RolloutState.PROMOTED).wanted.versions == {"m@2": 100.0}
    for state in (RolloutState.WARMING, RolloutState.ABORTED, RolloutState.ROLLED_BACK, RolloutState.FAILED):
        assert rollout(state).wanted is BEFORE


@given(
    weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=5).filter(any),
    share_pct=st.floats(0.001, 100),
)
def test_the_others_keep_their_proportions_and_their_names(weights: list[float], share_pct: float) -> None:
    before = Alias(versions={f"m@{number}": weight for number, weight in enumerate(weights, 10)})
    terms = RolloutTerms(alias="a", to="m@2", steps=(share_pct,))
    moved = Rollout(id="r", terms=terms, before=before, old="m@10", state=RolloutState.PAUSED).wanted
    assert moved.share("m@2") == pytest.approx(share_pct / 100, abs=1e-6)
    assert set(moved.versions) == {*before.versions, "m@2"}
    for reference in before.versions:
        assert moved.share(reference) == pytest.approx(before.share(reference) * (1 - share_pct / 100), abs=1e-6)


def test_every_state_has_its_moves_and_ends_have_none() -> None:
    assert set(MOVES) == set(RolloutState)
    for state in RolloutState:
        assert (not MOVES[state]) is (state in ENDED)
    with pytest.raises(Conflict, match="promoted and cannot become paused"):
        rollout(RolloutState.PROMOTED).moved(RolloutState.PAUSED, at=0)


def test_its_history_is_bounded() -> None:
    noted = rollout()
    for at in range(HISTORY_MAX + 5):
        noted = noted.noted(at=at, actor="test", reason="Requested", seen=sample(2, 1))
    assert len(noted.history) == HISTORY_MAX
    last = noted.history[-1]
    assert (last.at, last.requests, last.failures, last.share_pct) == (HISTORY_MAX + 4, 3, 1, 10.0)


@pytest.mark.parametrize(
    "terms",
    [
        {"steps": ()},
        {"steps": (10.0, 10.0)},
        {"steps": (50.0, 10.0)},
        {"steps": (0.0, 10.0)},
        {"steps": (10.0, 101.0)},
        {"steps": (math.nan,)},
        {"steps": tuple(range(1, 22))},
        {"hold_s": -1},
        {"hold_s": math.nan},
        {"guards": Guards(max_error_rate=1.5)},
        {"guards": Guards(max_p95_ms=-1)},
        {"guards": Guards(max_p95_ratio=-1)},
        {"guards": Guards(min_requests=-1)},
    ],
)
def test_what_cannot_be_right_is_refused(terms: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        RolloutTerms(alias="a", to="m@2", **terms).check()  # type: ignore[arg-type]
