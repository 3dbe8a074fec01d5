"""What each key has had of late, whichever model it was."""

import time
from collections.abc import Callable
from typing import Final

from moc.inference.request import Caller

HALF_LIFE_S: Final = 30.0
_REBASE_HALF_LIVES: Final = 20.0
_FORGOTTEN_S: Final = 0.001


class Shares:
    """Seconds of service by key, divided by the key's weight; half of them are forgotten every `half_life_s`.

    They are kept in a unit that shrinks as time passes: what was billed decays without being touched, and two keys
    compare without knowing the time. Now and then, in another `generation`, it is another unit.
    """

    def __init__(self, *, half_life_s: float = HALF_LIFE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._half_life_s = half_life_s
        self._clock = clock
        self._epoch = clock()
        self.generation = 0
        self._used: dict[str, float] = {}

    def bill(self, caller: Caller, seconds: float) -> None:
        """Charge a key with seconds of service, or of what it made others wait for."""
        unit = self.units_per_s()
        self._used[caller.key] = self._used.get(caller.key, 0.0) + seconds / caller.weight * unit

    def used(self, key: str) -> float:
        """What a key has had, in units to compare."""
        return self._used.get(key, 0.0)

    def units_per_s(self) -> float:
        """How many units a second counts that is billed now."""
        now = self._clock()
        half_lives = (now - self._epoch) / self._half_life_s
        if half_lives <= _REBASE_HALF_LIVES:
            return float(2.0**half_lives)
        self._epoch = now
        self.generation += 1
        faded = 2.0**-half_lives
        self._used = {key: used * faded for key, used in self._used.items() if used * faded > _FORGOTTEN_S}
        return 1.0
