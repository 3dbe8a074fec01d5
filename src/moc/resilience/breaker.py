"""A circuit that opens when what lies behind it keeps failing, and closes once a single try went well."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from moc.kernel.clock import Clock
from moc.kernel.errors import CircuitOpen


class Circuit(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerLimits:
    """Open after `failure_threshold` failures in a row; one try is let through `reset_timeout_s` later."""

    failure_threshold: int = 4
    reset_timeout_s: float = 20.0


class Breaker:
    """`allow` before each call; what it returns goes to one of `succeeded`, `failed` and `abandoned` after it.

    An outcome counts only while the circuit is as it was when its call was allowed: what was under way when the
    circuit opened neither closes it nor is taken for the try. Not for threads. `limits` may be replaced at any time.
    """

    __slots__ = ("_clock", "_era", "_failures", "_on_change", "_opened_at", "_subject", "circuit", "limits")

    def __init__(
        self, subject: str, *, limits: BreakerLimits, clock: Clock, on_change: Callable[[Circuit], None] | None = None
    ) -> None:
        self.circuit = Circuit.CLOSED
        self.limits = limits
        self._subject = subject
        self._clock = clock
        self._on_change = on_change
        self._era = 0
        self._failures = 0
        self._opened_at = 0.0

    @property
    def retry_after_s(self) -> float:
        """Seconds until `allow` may let a call through; 0 = it does now."""
        if self.circuit is Circuit.CLOSED:
            return 0.0
        if self.circuit is Circuit.HALF_OPEN:
            return 1.0
        return max(0.0, self._opened_at + self.limits.reset_timeout_s - self._clock.monotonic())

    def allow(self) -> int:
        """Let a call through. CircuitOpen while the circuit is open, or half open and its one try is under way."""
        if self.circuit is not Circuit.CLOSED:
            wait_s = self.retry_after_s
            if wait_s > 0:
                failures = f"failed {self.limits.failure_threshold} times in a row"
                raise CircuitOpen(f"{self._subject} {failures}; ask again in {wait_s:.0f} s", retry_after_s=wait_s)
            self._become(Circuit.HALF_OPEN)
        return self._era

    def succeeded(self, era: int) -> None:
        """The call did what it should."""
        if era == self._era:
            self._failures = 0
            if self.circuit is not Circuit.CLOSED:
                self._become(Circuit.CLOSED)

    def failed(self, era: int) -> None:
        """The call failed, and the caller was not to blame."""
        if era != self._era:
            return
        self._failures += 1
        if self.circuit is Circuit.HALF_OPEN or self._failures >= self.limits.failure_threshold:
            self._opened_at = self._clock.monotonic()
            self._become(Circuit.OPEN)

    def abandoned(self, era: int) -> None:
        """The call told nothing: it was cancelled, or refused for a fault of its caller's. A try may be made again.

        Nobody is told of that: to others the circuit is as it was before the try.
        """
        if era == self._era and self.circuit is Circuit.HALF_OPEN:
            self._change(Circuit.OPEN)

    def _become(self, circuit: Circuit) -> None:
        self._change(circuit)
        if circuit is Circuit.CLOSED:
            self._failures = 0
        if self._on_change is not None:
            self._on_change(circuit)

    def _change(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self._era += 1
