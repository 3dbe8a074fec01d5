"""Intervals and paired tests against published values, and on data of which the answer is known."""

import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moc.learning.statistics import bootstrap, mcnemar, mean, permutation, quantile, standard_error, wilson


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
    expected = standard_error(values)
    stderr, interval = bootstrap(values, mean, seed=0)
    assert expected is not None
    assert interval is not None
    low, high = interval
    assert stderr == pytest.approx(expected, rel=0.1)
    assert low < fmean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * expected, rel=0.1)
    assert bootstrap(values, mean, seed=0) == (stderr, (low, high))


def test_a_single_value_says_nothing_of_its_error() -> None:
    assert bootstrap([5.0], mean, seed=0) == (None, None)
    assert standard_error([5.0]) is None
    assert permutation([5.0], [6.0], mean, seed=0).ci95 is None


def test_a_permutation_test_sees_what_pairs_tell() -> None:
    source = random.Random(3)
    first = [source.gauss(0, 10) for _ in range(60)]
    shifted = permutation(first, [value + 1 + source.gauss(0, 1) for value in first], mean, seed=0)
    assert shifted.difference == pytest.approx(1, abs=0.4)
    assert shifted.p_value < 0.01
    assert shifted.second - shifted.first == pytest.approx(shifted.difference)
    assert shifted.ci95 is not None
    assert shifted.ci95[0] > 0
    same = permutation(first, first, mean, seed=0)
    assert (same.difference, same.ci95, same.p_value) == (0, (0, 0), 1)
    noise = permutation(first, [source.gauss(0, 10) for _ in first], mean, seed=0)
    assert noise.p_value > 0.05


@pytest.mark.parametrize("count", range(1, 13))
def test_few_items_that_all_became_worse_prove_no_more_than_their_number_can(count: int) -> None:
    first = [20.0 + at for at in range(count)]
    found = permutation(first, [value + 0.01 for value in first], mean, seed=0)
    assert found.p_value == pytest.approx(2 / 2**count)


@pytest.mark.parametrize("count", [2, 4, 8, 20])
def test_where_there_is_no_difference_one_is_seen_no_more_often_than_it_may(count: int) -> None:
    source, seen = random.Random(1), 0
    for _ in range(200):
        first = [source.gauss(20, 3) for _ in range(count)]
        second = [value + source.gauss(0, 1) for value in first]
        seen += permutation(first, second, mean, seed=0).p_value < 0.05
    assert seen <= 200 * 0.08


def test_quantiles_fall_between_values() -> None:
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([1, 2], 0.95) == pytest.approx(1.95)
    assert quantile([5], 0.95) == 5
    assert math.isnan(quantile([], 0.5))
