"""How much one key may ask: so many requests in a time, so many at once."""

import re
import time
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Self

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from moc.kernel.errors import InvalidRequest, RateLimited, Unauthenticated

REQUESTS_MAX = 10_000
"""The most a rate may allow in its window: each request of a window is remembered."""

WHO_MAX = 10_000
"""How many are remembered; who asked longest ago is forgotten first."""

_BUSY_RETRY_S = 1.0
_WINDOWS_S = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
_UNITS = {seconds: unit for unit, seconds in _WINDOWS_S.items()}
_RATE = re.compile(r"(\d{1,9})/([a-z]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `requests` in any `window_s` seconds; written `100/min`."""

    requests: int
    window_s: int

    def __str__(self) -> str:
        return f"{self.requests}/{_UNITS[self.window_s]}"

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """The rate that prints as `text`; InvalidRequest when none does."""
        match = _RATE.fullmatch(text)
        window_s = _WINDOWS_S.get(match[2]) if match else None
        if match is None or window_s is None:
            raise InvalidRequest(f"not a rate: {text[:40]!r}; write something like 100/min (units: s, min, h, d)")
        if not 1 <= int(match[1]) <= REQUESTS_MAX:
            raise InvalidRequest(f"a rate is of 1 to {REQUESTS_MAX} requests, not {match[1]}; use another unit")
        return cls(int(match[1]), window_s)


class Rates:
    """Counts, in memory, how often those asked who did last: `who_max` of them."""

    def __init__(self, *, who_max: int = WHO_MAX) -> None:
        self._who_max = who_max
        self._seen: dict[str, RateLimitItemPerSecond] = {}

    def spend(self, who: str, rate: Rate) -> float | None:
        """Count one request if the rate allows it (None), else in how many seconds it will."""
        item = self._seen.pop(who, None) or RateLimitItemPerSecond(rate.requests, rate.window_s)
        self._seen[who] = item
        if len(self._seen) > self._who_max:
            longest_ago = next(iter(self._seen))
            self._limiter.clear(self._seen.pop(longest_ago), longest_ago)
        if self._limiter.hit(item, who):
            return None
        return max(0.0, self._limiter.get_window_stats(item, who).reset_time - time.time())

    @cached_property
    def _limiter(self) -> MovingWindowRateLimiter:
        return MovingWindowRateLimiter(MemoryStorage())  # made when it is needed: it starts a thread


class Quota:
    """What one key may still ask, nothing once it `ended`. As a context it is one request at work."""

    __slots__ = ("_concurrency_max", "_ended", "_rate", "_rates", "_who", "ended", "running")

    def __init__(self, who: str, rates: Rates, *, rate: Rate | None, max_concurrency: int | None) -> None:
        self.running = 0
        self.ended = False
        self._who = who
        self._rates = rates
        self._rate = rate
        self._concurrency_max = max_concurrency

    def end(self) -> None:
        """Let it ask nothing more: its key ended, and somebody may still hold its identity."""
        self.ended = True

    def check(self) -> None:
        """Unauthenticated when its key ended."""
        if self.ended:
            raise Unauthenticated("this key was revoked or has expired since this began; ask for another")

    def spend(self) -> None:
        """Count a request; RateLimited when the key's rate is used up, Unauthenticated when the key ended."""
        self.check()
        if self._rate is None:
            return
        wait_s = self._rates.spend(self._who, self._rate)
        if wait_s is not None:
            raise RateLimited(
                f"this key may ask {self._rate}; ask again in {wait_s:.0f} s, or have a key with a higher rate made",
                retry_after_s=wait_s,
            )

    def enter(self) -> None:
        """Begin a request that `leave` ends; RateLimited when the key has as many at work as it may."""
        if self._concurrency_max is not None and self.running >= self._concurrency_max:
            raise RateLimited(
                f"this key has {self.running} requests at work and may have {self._concurrency_max}; "
                "wait for one of them, or have a key with a higher limit made",
                retry_after_s=_BUSY_RETRY_S,
            )
        self.running += 1

    def leave(self) -> None:
        """End a request."""
        self.running -= 1

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.leave()


UNLIMITED = Quota("", Rates(), rate=None, max_concurrency=None)
