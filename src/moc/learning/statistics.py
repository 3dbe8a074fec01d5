"""How sure a measured value is, and whether two runs differ by more than chance."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Final, TypeVar

RESAMPLES: Final = 2_000
RESAMPLES_MIN: Final = 200
DRAWN_MAX: Final = 10_000_000
"""How often a bootstrap draws: less often where there is much to draw. Its p-values are multiples of one in so many."""

_Z95: Final = NormalDist().inv_cdf(0.975)

T = TypeVar("T")
Interval = tuple[float, float]
Statistic = Callable[[Sequence[T]], float]


@dataclass(frozen=True, slots=True)
class Paired:
    """How a second run differs from a first on the same items: by how much, within what, and by chance with `p_value`.

    `test` is `mcnemar` or `bootstrap`.
    """

    difference: float
    ci95: Interval
    p_value: float
    test: str


def standard_error(values: Sequence[float]) -> float:
    """Of their mean; 0 when there are not two of them."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def wilson(successes: int, count: int) -> Interval:
    """The 95 % interval of a proportion, as Wilson (1927) has it; all of 0 to 1 when nothing was counted."""
    if not count:
        return 0.0, 1.0
    share, square = successes / count, _Z95**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = _Z95 * math.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed, between two where it falls between them; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def bootstrap(values: Sequence[T], statistic: Statistic[T], *, seed: int) -> tuple[float, Interval]:
    """The standard error and the 95 % interval (of percentiles) of a statistic of `values`, at least one."""
    drawn = _drawn(values, statistic, seed)
    return stdev(drawn), (quantile(drawn, 0.025), quantile(drawn, 0.975))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Whether two runs are right equally often, by McNemar's exact test; the interval is of the difference of shares.

    The interval is Wald's for paired proportions with half a success more in each of the two cells (Agresti and Min,
    2005), which holds what it says with few items too.
    """
    count = len(first)
    gained = sum(after and not before for before, after in zip(first, second, strict=True))
    lost = sum(before and not after for before, after in zip(first, second, strict=True))
    more, less, total = gained + 0.5, lost + 0.5, count + 2
    middle = (more - less) / total
    half = _Z95 * math.sqrt(more + less - (more - less) ** 2 / total) / total
    interval = (max(-1.0, middle - half), min(1.0, middle + half))
    return Paired((gained - lost) / count, interval, _binomial_two_sided(gained, gained + lost), "mcnemar")


def paired_bootstrap(first: Sequence[T], second: Sequence[T], statistic: Statistic[T], *, seed: int) -> Paired:
    """Whether a statistic of two runs differs, drawing the same items of both again and again.

    `p_value` is twice the share of draws on the rarer side of no difference, counting what was seen as one of them.
    """
    pairs = list(zip(first, second, strict=True))

    def difference(drawn: Sequence[tuple[T, T]]) -> float:
        return statistic([after for _, after in drawn]) - statistic([before for before, _ in drawn])

    drawn = _drawn(pairs, difference, seed)
    low, high = sum(value <= 0 for value in drawn), sum(value >= 0 for value in drawn)
    p_value = min(1.0, 2 * (min(low, high) + 1) / (len(drawn) + 1))
    return Paired(difference(pairs), (quantile(drawn, 0.025), quantile(drawn, 0.975)), p_value, "bootstrap")


def mean(values: Sequence[float]) -> float:
    """The mean as a statistic."""
    return fmean(values)


def _drawn(values: Sequence[T], statistic: Statistic[T], seed: int) -> list[float]:
    source = random.Random(seed)  # noqa: S311 - no secret
    times = max(RESAMPLES_MIN, min(RESAMPLES, DRAWN_MAX // len(values)))
    return [statistic(source.choices(values, k=len(values))) for _ in range(times)]


def _binomial_two_sided(successes: int, count: int) -> float:
    """How likely as unequal a split, or a more unequal one, is of `count` fair tosses."""
    rarer = min(successes, count - successes)
    tail = sum(math.comb(count, more) for more in range(rarer + 1))
    return min(1.0, 2 * tail / (1 << count))
