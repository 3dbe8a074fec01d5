"""What is seen of requests: counts, windows, quantiles."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moc.inference.observed import SAMPLES_MIN, WINDOW_S, Observed, Series
from moc.testing.clock import ManualClock

SECONDS = st.floats(1e-4, 900.0)


def note(observed: Observed, seconds: float, *, code: str = "ok", times: int = 1) -> None:
    for _ in range(times):
        observed.finished("m@1", "chat", code, queue_s=0.0, engine_s=seconds)


@given(st.lists(SECONDS, min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_a_quantile_is_right_within_a_tenth(durations: list[float], q: float) -> None:
    series = Series()
    for seconds in durations:
        series.finished("ok", seconds)
    exact = sorted(durations)[math.ceil(q * len(durations)) - 1]
    assert exact * 0.999 <= series.snapshot().quantile_s(q) <= exact * 1.101


@given(st.lists(SECONDS, max_size=30), st.lists(SECONDS, max_size=30))
def test_the_difference_of_two_samples_is_what_ended_in_between(before: list[float], after: list[float]) -> None:
    series, only = Series(), Series()
    for seconds in before:
        series.finished("ok", seconds)
    earlier = series.snapshot()
    for seconds in after:
        series.finished("ok", seconds)
        only.finished("ok", seconds)
    window = series.snapshot() - earlier
    assert (window.count, window.buckets) == (len(after), only.snapshot().buckets)
    assert window.mean_s == pytest.approx(only.snapshot().mean_s)


def test_faults_of_callers_are_no_failures_and_deadlines_that_passed_are() -> None:
    observed = Observed(clock=ManualClock())
    note(observed, 0.1, times=5)
    note(observed, 0.1, code="invalid_request")
    note(observed, 0.1, code="cancelled")
    note(observed, 0.1, code="worker_lost")
    note(observed, 9.0, code="deadline_exceeded")
    sample = observed.snapshot("m@1")
    assert (sample.ok, sample.failures, sample.callers_own, sample.count) == (5, 2, 2, 7)
    assert sample.error_rate == pytest.approx(2 / 7)
    assert sample.quantile_s(1.0) >= 9.0


def test_a_version_without_requests_has_nothing() -> None:
    observed = Observed(clock=ManualClock())
    sample = observed.snapshot("m@1")
    assert (sample.count, sample.error_rate, sample.mean_s, sample.quantile_s(0.95)) == (0, 0.0, 0.0, 0.0)
    assert observed.p95_s("m@1") is None
    assert observed.mean_s("m@1") is None


def test_of_few_answers_no_quantile_is_told() -> None:
    clock = ManualClock()
    observed = Observed(clock=clock)
    note(observed, 0.1, times=SAMPLES_MIN - 1)
    assert observed.p95_s("m@1") is None
    assert observed.mean_s("m@1") == pytest.approx(0.1)
    note(observed, 0.1)
    clock.advance(1)
    assert observed.p95_s("m@1") == pytest.approx(0.1, rel=0.11)


def test_what_was_long_ago_does_not_count_as_recent() -> None:
    clock = ManualClock()
    observed = Observed(clock=clock)
    note(observed, 5.0, times=100)
    assert observed.p95_s("m@1") == pytest.approx(5.0, rel=0.11)
    for _ in range(3):
        clock.advance(WINDOW_S)
        note(observed, 0.01, times=SAMPLES_MIN)
        observed.p95_s("m@1")
    assert observed.p95_s("m@1") == pytest.approx(0.01, rel=0.11)
    for _ in range(2):
        clock.advance(WINDOW_S)
        observed.p95_s("m@1")
    assert observed.p95_s("m@1") is None
    assert observed.snapshot("m@1").count == 100 + 3 * SAMPLES_MIN
