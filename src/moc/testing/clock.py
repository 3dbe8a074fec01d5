"""A clock that stands still until it is told."""


class ManualClock:
    """A Clock whose two times move only by `advance` and `set_wall`."""

    def __init__(self, *, monotonic: float = 1000.0, wall: float = 1_700_000_000.0) -> None:
        self._monotonic = monotonic
        self._wall = wall

    def monotonic(self) -> float:
        """Seconds since an unknown moment."""
        return self._monotonic

    def wall(self) -> float:
        """Seconds since the Unix epoch."""
        return self._wall

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks; ValueError when `seconds` is negative."""
        if seconds < 0:
            raise ValueError("time does not go back; set_wall moves the wall clock alone")
        self._monotonic += seconds
        self._wall += seconds

    def set_wall(self, to: float) -> None:
        """Set the time of day, forward or back, as an administrator may."""
        self._wall = to
