"""How sure a measured value is, and whether two runs differ by more than chance."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Final, TypeVar

RESAMPLES: Final = 2_000
RESAMPLES_MIN: Final = 200
DRAWN_MAX: Final = 5_000_000
"""How often something is drawn: less often where there is much to draw."""

SWAPPED_MAX: Final = 12
"""Of how many items every way to swap two runs is tried: 4096 of them."""

_Z95: Final = NormalDist().inv_cdf(0.975)

T = TypeVar("T")
Interval = tuple[float, float]
Statistic = Callable[[Sequence[T]], float]


@dataclass(frozen=True, slots=True)
class Paired:
    """How a second run differs from a first on the same items: by how much, within what, and by chance with `p_value`.

    `first` and `second` are what they come to on these items. `test` is `mcnemar` or `permutation`.
    """

    first: float
    second: float
    difference: float
    ci95: Interval | None
    p_value: float
    test: str


def standard_error(values: Sequence[float]) -> float | None:
    """Of their mean; None when there are not two of them."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


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


def bootstrap(values: Sequence[T], statistic: Statistic[T], *, seed: int) -> tuple[float, Interval] | tuple[None, None]:
    """The standard error and the 95 % interval (of percentiles) of a statistic of `values`; none of a single one."""
    if len(values) < 2:
        return None, None
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
    return Paired(
        sum(first) / count,
        sum(second) / count,
        (gained - lost) / count,
        interval,
        _binomial_two_sided(gained, gained + lost),
        "mcnemar",
    )


def permutation(first: Sequence[T], second: Sequence[T], statistic: Statistic[T], *, seed: int) -> Paired:
    """Whether a statistic of two runs differs, at least one item of each, by swapping the runs item by item.

    `p_value` is the share of ways to swap that make as large a difference as was seen: of all ways where there are at
    most SWAPPED_MAX items, of what was seen and ways drawn where there are more. The interval is that of a bootstrap
    which draws the same items of both.
    """
    pairs = list(zip(first, second, strict=True))

    def difference(drawn: Sequence[tuple[T, T]]) -> float:
        return statistic([after for _, after in drawn]) - statistic([before for before, _ in drawn])

    seen = difference(pairs)
    least = abs(seen) * (1 - 1e-9)  # sums in another order are not quite the same
    as_large = [abs(difference(swapped)) >= least for swapped in _swaps(pairs, seed)]
    _, interval = bootstrap(pairs, difference, seed=seed)
    return Paired(statistic(first), statistic(second), seen, interval, fmean(as_large), "permutation")


def mean(values: Sequence[float]) -> float:
    """The mean as a statistic."""
    return fmean(values)


def _drawn(values: Sequence[T], statistic: Statistic[T], seed: int) -> list[float]:
    source = random.Random(seed)  # noqa: S311 - no secret
    return [statistic(source.choices(values, k=len(values))) for _ in range(_times(len(values)))]


def _swaps(pairs: Sequence[tuple[T, T]], seed: int) -> Iterator[list[tuple[T, T]]]:
    """The pairs with some of them turned round; first with none."""
    count = len(pairs)
    ways: Iterable[int] = range(1 << count)
    if count > SWAPPED_MAX:
        source = random.Random(seed)  # noqa: S311 - no secret
        ways = (0, *(source.getrandbits(count) for _ in range(_times(count))))
    for way in ways:
        turned = f"{way:0{count}b}"
        yield [pair[::-1] if bit == "1" else pair for bit, pair in zip(turned, pairs, strict=True)]


def _times(count: int) -> int:
    return max(RESAMPLES_MIN, min(RESAMPLES, DRAWN_MAX // count))


def _binomial_two_sided(successes: int, count: int) -> float:
    """How likely as unequal a split, or a more unequal one, is of `count` fair tosses."""
    rarer = min(successes, count - successes)
    tail = sum(math.comb(count, more) for more in range(rarer + 1))
    return min(1.0, 2 * tail / (1 << count))
