"""How much may be asked a second time."""

SAVED_MAX = 10.0
"""So many extra calls may have been saved up."""


class RetryBudget:
    """Each call that went well saves up `pct` percent of an extra one, and `take` spends a whole one.

    It starts empty. So there are never more extra calls than that share, and where everything fails there are soon
    none. Not for threads; `pct` may be replaced at any time.
    """

    __slots__ = ("_saved", "pct")

    def __init__(self, pct: float) -> None:
        self.pct = pct
        self._saved = 0.0

    def succeeded(self) -> None:
        """A call went well."""
        saved = self._saved + self.pct / 100
        self._saved = saved if saved < SAVED_MAX else SAVED_MAX

    def take(self) -> bool:
        """Whether one extra call may be made; it is spent if so."""
        if self._saved < 1.0 - 1e-9:  # ten tenths are one
            return False
        self._saved -= 1.0
        return True
