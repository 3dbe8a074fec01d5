"""Intervals and paired tests against published values, and on data of which the answer is known."""

import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moc.learning.statistics import bootstrap, mcnemar, mean, paired_bootstrap, quantile, standard_error, wilson


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_intervals_are_those_of_newcombe_1998(successes: int, count: int, low: float, high: float) -> None:
    assert wilson(successes, count) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 500), st.integers(0, 500))
def test_an_interval_holds_the_share_it_is_of(successes: int, failures: int) -> None:
    count = successes + failures
    low, high = wilson(successes, count)
    assert 0 <= low <= (successes / count if count else 0.5) <= high <= 1


def test_mcnemars_exact_test_is_that_of_textbooks() -> None:
    # approval of a prime minister in two surveys of the same voters (Agresti, Categorical Data Analysis)
    found = mcnemar([True] * 944 + [False] * 656, [True] * 794 + [False] * 150 + [True] * 86 + [False] * 570)
    assert found.difference == pytest.approx(-0.04)
    assert found.ci95 == pytest.approx((-0.06, -0.02), abs=2e-3)
    assert found.p_value == pytest.approx(3.7e-5, rel=0.02)


@pytest.mark.parametrize(("gained", "lost", "p_value"), [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (8, 2, 0.109375)])
def test_few_differences_prove_little(gained: int, lost: int, p_value: float) -> None:
    first = [False] * gained + [True] * lost + [True] * 10
    second = [True] * gained + [False] * lost + [True] * 10
    assert mcnemar(first, second).p_value == pytest.approx(p_value)
    assert mcnemar(second, first).p_value == pytest.approx(p_value)


def test_a_bootstrap_of_a_mean_is_what_theory_says() -> None:
    source = random.Random(7)
    values = [source.gauss(10, 2) for _ in range(400)]
    stderr, (low, high) = bootstrap(values, mean, seed=0)
    assert stderr == pytest.approx(standard_error(values), rel=0.1)
    assert low < fmean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * standard_error(values), rel=0.1)
    assert bootstrap(values, mean, seed=0) == (stderr, (low, high))


def test_a_paired_bootstrap_sees_what_pairs_tell() -> None:
    source = random.Random(3)
    first = [source.gauss(0, 10) for _ in range(60)]
    shifted = paired_bootstrap(first, [value + 1 + source.gauss(0, 1) for value in first], mean, seed=0)
    assert shifted.difference == pytest.approx(1, abs=0.4)
    assert shifted.p_value < 0.01
    assert shifted.ci95[0] > 0
    same = paired_bootstrap(first, first, mean, seed=0)
    assert (same.difference, same.ci95, same.p_value) == (0, (0, 0), 1)
    noise = paired_bootstrap(first, [source.gauss(0, 10) for _ in first], mean, seed=0)
    assert noise.p_value > 0.05


def test_quantiles_fall_between_values() -> None:
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([1, 2], 0.95) == pytest.approx(1.95)
    assert quantile([5], 0.95) == 5
    assert math.isnan(quantile([], 0.5))
    assert standard_error([1]) == 0
