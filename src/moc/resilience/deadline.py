"""A moment by which the caller wants its answer; one travels through the whole of a request."""

import time
from dataclasses import dataclass

from moc.kernel.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at` is on the monotonic clock, None = no limit."""

    at: float | None = None

    @classmethod
    def after(cls, seconds: float | None) -> "Deadline":
        """The moment `seconds` from now; None = no limit."""
        return NEVER if seconds is None else cls(time.monotonic() + seconds)

    def remaining_s(self) -> float | None:
        """Seconds left, never negative; None = no limit."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    def sooner(self, seconds: float) -> "Deadline":
        """This deadline, or `seconds` from now if that is sooner."""
        other = time.monotonic() + seconds
        return self if self.at is not None and self.at <= other else Deadline(other)

    def check(self, what: str) -> None:
        """Raise DeadlineExceeded if it has passed."""
        if self.at is not None and time.monotonic() >= self.at:
            raise DeadlineExceeded(f"the deadline passed {what}; allow more time")


NEVER = Deadline()
