"""One version's place in the manager: what is loaded in it, who waits for it, and how often it failed."""

import asyncio
import time
from dataclasses import dataclass, field

from moc.kernel.clock import SystemClock
from moc.kernel.errors import CircuitOpen, LoadFailed, MocError, Unavailable
from moc.models.catalogue import Entry
from moc.models.model import FailReason
from moc.models.resident import Resident
from moc.resilience.breaker import Breaker, BreakerLimits, Circuit
from moc.resilience.bulkhead import Bulkhead

SOONEST = 0.5
"""A load takes this part of the time that the last one took at least: files may be in memory by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How patient the manager is. Seconds throughout.

    `memory_wait_s` is how long a load waits for memory that others are about to give back. A version that could not
    be loaded, or whose worker died within `healthy_s`, so many times in a row as `breaker` says is left alone for a
    while. Of a model that does not say it itself, as many callers may wait for its load as `bulkhead` says.
    """

    load_timeout_s: float = 600.0
    drain_timeout_s: float = 60.0
    memory_wait_s: float = 60.0
    healthy_s: float = 60.0
    breaker: BreakerLimits = field(default_factory=BreakerLimits)
    bulkhead: Bulkhead = field(default_factory=Bulkhead)


@dataclass(slots=True)
class Slot:
    """`lock` serialises loading and unloading; `resident` is what requests find; `evicted` who made room for it.

    `launched_at` is when it had its memory and its worker began to start; `behind` says that the recorded state may
    not be the true one, for the store could not be written to. One that is `leaving` is being removed.
    """

    entry: Entry
    limits: Limits
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    resident: Resident | None = None
    loading: "asyncio.Task[Resident] | None" = None
    waiting: int = 0
    leaving: bool = False
    evicted: tuple[str, ...] = ()
    launched_at: float = 0.0
    failure: LoadFailed | None = None
    ready_at: float = 0.0
    behind: bool = False
    breaker: Breaker = field(init=False)
    era: int = field(init=False)

    def __post_init__(self) -> None:
        self.forgive()

    @property
    def reference(self) -> str:
        """`name@version`."""
        return self.entry.version.reference

    @property
    def load_left_s(self) -> float:
        """How long its load takes from now on at the soonest, going by its last; 0 when that is not known."""
        if self.failure is not None:
            return 0.0
        passed_s = 0.0 if self.loading is None else time.monotonic() - self.launched_at
        return max(0.0, self.entry.status.load_s * SOONEST - passed_s)

    def occupy(self, resident: Resident) -> None:
        """It is loaded."""
        if self.breaker.circuit is not Circuit.CLOSED:
            self.forgive()
        self.resident, self.failure, self.ready_at = resident, None, time.monotonic()
        self.evicted = ()

    def forgive(self) -> None:
        """Forget what failed: it proved healthy, or somebody wants it tried again now."""
        self.failure = None
        self.breaker = Breaker(self.reference, limits=self.limits.breaker, clock=SystemClock())
        self.era = self.breaker.allow()

    def check_stays(self) -> None:
        """Unavailable when it is being removed."""
        if self.leaving:
            raise Unavailable(f"{self.reference} is being removed")

    def admit(self) -> None:
        """Let a request load it; as `check_stays`. CircuitOpen, with the story of the last failure, after too many."""
        self.check_stays()
        try:
            self.era = self.breaker.allow()
        except CircuitOpen as refusal:
            last = self.failure.message if self.failure else "unknown"
            raise CircuitOpen(
                f"{self.reference} keeps failing and is left alone for {refusal.retry_after_s:.0f} s more, or until "
                f"`moc models load`; the last failure: {last}",
                details=self.failure.details if self.failure else {},
                retry_after_s=refusal.retry_after_s,
            ) from None

    def fail(self, error: Exception) -> LoadFailed:
        """Remember why it could not be loaded."""
        if isinstance(error, LoadFailed):
            failure = error
        elif isinstance(error, TimeoutError):
            message = f"{self.reference} was not loaded within {self.limits.load_timeout_s:g} s"
            failure = LoadFailed(message, reason=FailReason.LOAD_FAILED)
        else:
            text = error.message if isinstance(error, MocError) else f"{type(error).__name__}: {error}"
            failure = LoadFailed(text, reason=FailReason.LOAD_FAILED)
        self._count(failure)
        return failure

    def crash(self, why: str) -> LoadFailed | None:
        """Its worker died. The error to stay down with, or None when it is to be started again at once."""
        if time.monotonic() - self.ready_at >= self.limits.healthy_s:
            self.forgive()
        message = f"the worker of {self.reference} died: {why}"
        self._count(LoadFailed(message, reason=FailReason.RUNTIME_UNHEALTHY))
        if self.breaker.circuit is Circuit.CLOSED:
            return None
        message += ", too often in a row; see its log, then `moc models load` it"
        return LoadFailed(message, reason=FailReason.RUNTIME_UNHEALTHY)

    def give_up(self) -> None:
        """A load ended; if neither as it should nor by failing, nothing is known of the version that was not before."""
        self.breaker.abandoned(self.era)

    def _count(self, failure: LoadFailed) -> None:
        self.failure = failure
        if self.breaker.circuit is Circuit.CLOSED:  # not every load begins with a request that was admitted
            self.era = self.breaker.allow()
        self.breaker.failed(self.era)
