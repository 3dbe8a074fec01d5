"""What is seen of each version's requests: how many failed, and how long the answers took."""

import math
from bisect import bisect_left
from itertools import accumulate
from operator import sub
from typing import Final

import msgspec

from moc.kernel.clock import Clock

WINDOW_S: Final = 30.0
"""What is recent: since one to two of these ago."""

SAMPLES_MIN: Final = 20
"""Of fewer recent answers nothing is said."""

CALLERS_OWN: Final = frozenset(
    {
        "invalid_request",
        "unauthenticated",
        "forbidden",
        "not_found",
        "conflict",
        "too_large",
        "rate_limited",
        "cancelled",
        "unimplemented",
    }
)
"""Codes that tell nothing of who answered with them. A deadline that passed does: somebody was too slow for it."""

_GROWTH: Final = 1.1
_LEAST_S: Final = 1e-4
_BUCKETS: Final = math.ceil(math.log(1e7, _GROWTH)) + 1
_BOUNDS: Final = tuple(_LEAST_S * _GROWTH**number for number in range(_BUCKETS))
_STEPS_PER_E: Final = 1 / math.log(_GROWTH)
_REFRESH_S: Final = 1.0


class Sample(msgspec.Struct, frozen=True, gc=False):
    """Requests of one version that ended: answered (`ok`), failed (`failures`), or refused for a fault of the caller's.

    `later - earlier` is what ended in between. `buckets` counts, by duration, those answered and those the deadline
    of which passed in the engine.
    """

    ok: int
    failures: int
    callers_own: int
    seconds: float
    buckets: tuple[int, ...]

    def __sub__(self, earlier: "Sample") -> "Sample":
        return Sample(
            self.ok - earlier.ok,
            self.failures - earlier.failures,
            self.callers_own - earlier.callers_own,
            self.seconds - earlier.seconds,
            tuple(map(sub, self.buckets, earlier.buckets)),
        )

    @property
    def count(self) -> int:
        """Requests that were answered, or failed by no fault of the caller's."""
        return self.ok + self.failures

    @property
    def error_rate(self) -> float:
        """Which part of those failed; 0 when there were none."""
        return self.failures / self.count if self.count else 0.0

    @property
    def mean_s(self) -> float:
        """What the answers took on average; 0 when there were none."""
        return self.seconds / timed if (timed := sum(self.buckets)) else 0.0

    def quantile_s(self, q: float) -> float:
        """Seconds in the engine that a share `q` of them did not exceed, 10 % too many at most; 0 when there were none.

        Less than 0.1 ms counts as that, more than 1000 s as that.
        """
        below = list(accumulate(self.buckets))
        return _BOUNDS[bisect_left(below, q * below[-1])] if below[-1] else 0.0


class Series:
    """The requests of one version, or of whatever is to be compared with it."""

    __slots__ = ("_buckets", "_callers_own", "_failures", "_ok", "_seconds")

    def __init__(self) -> None:
        self._ok = self._failures = self._callers_own = 0
        self._seconds = 0.0
        self._buckets = [0] * _BUCKETS

    def finished(self, code: str, engine_s: float) -> None:
        """Count one request."""
        if code == "ok":
            self._ok += 1
        elif code in CALLERS_OWN:
            self._callers_own += 1
            return
        else:
            self._failures += 1
            if code != "deadline_exceeded" or not engine_s:
                return
        self._seconds += engine_s
        self._buckets[_bucket(engine_s)] += 1

    def snapshot(self) -> Sample:
        """All of them so far."""
        return Sample(self._ok, self._failures, self._callers_own, self._seconds, tuple(self._buckets))


class _Recent:
    """The latest part of a series, reckoned anew no more than once a second."""

    __slots__ = ("_before", "_due", "_mark", "_rotated_at", "_series", "mean_s", "p95_s")

    def __init__(self, series: Series, now: float) -> None:
        self._series = series
        self._before = self._mark = _NOTHING
        self._rotated_at = self._due = now
        self.mean_s: float | None = None
        self.p95_s: float | None = None

    def at(self, now: float) -> "_Recent":
        """Itself, as of now."""
        if now >= self._due:
            self._due = now + _REFRESH_S
            self._refresh(now)
        return self

    def _refresh(self, now: float) -> None:
        sample = self._series.snapshot()
        overdue_s = now - self._rotated_at - WINDOW_S
        if overdue_s >= 0:
            self._before = self._mark if overdue_s < WINDOW_S else sample
            self._mark, self._rotated_at = sample, now
        window = sample - self._before
        timed = sum(window.buckets)
        self.mean_s = window.mean_s if timed else None
        self.p95_s = window.quantile_s(0.95) if timed >= SAMPLES_MIN else None


class Observed:
    """Every version's requests since the coordinator started; one of the gateway's meters."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._series: dict[str, Series] = {}
        self._recent: dict[str, _Recent] = {}

    def finished(self, reference: str, kind: str, code: str, *, queue_s: float, engine_s: float) -> None:
        """Count one request; see `inference.ports.Meter`."""
        series = self._series.get(reference)
        if series is None:
            series = self._series[reference] = Series()
        series.finished(code, engine_s)

    def snapshot(self, reference: str) -> Sample:
        """All requests of `name@version` so far."""
        series = self._series.get(reference)
        return _NOTHING if series is None else series.snapshot()

    def p95_s(self, reference: str) -> float | None:
        """What 95 % of the answers of `name@version` took at most of late; None when there were few."""
        recent = self._lately(reference)
        return None if recent is None else recent.p95_s

    def mean_s(self, reference: str) -> float | None:
        """What the answers of `name@version` took of late on average; None when there were none."""
        recent = self._lately(reference)
        return None if recent is None else recent.mean_s

    def _lately(self, reference: str) -> _Recent | None:
        recent, now = self._recent.get(reference), self._clock.monotonic()
        if recent is None:
            series = self._series.get(reference)
            if series is None:
                return None
            recent = self._recent[reference] = _Recent(series, now)
        return recent.at(now)


def _bucket(seconds: float) -> int:
    """The number of the first bound that is not less."""
    if seconds <= _LEAST_S:
        return 0
    return min(_BUCKETS - 1, math.ceil(math.log(seconds / _LEAST_S) * _STEPS_PER_E))


_NOTHING: Final = Series().snapshot()
