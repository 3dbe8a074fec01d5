"""One version's place in the manager: what is loaded in it, who waits for it, and how often it failed."""

import asyncio
import time
from dataclasses import dataclass, field

from moc.kernel.errors import LoadFailed, MocError
from moc.models.catalogue import Entry
from moc.models.model import FailReason
from moc.models.resident import Resident


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How patient the manager is. Seconds throughout.

    After a crash the worker is started again at once, then after `backoff_s`, twice that and so on up to
    `backoff_max_s`; after `restarts_max` crashes without `healthy_s` of quiet in between it stays down.
    `memory_wait_s` is how long a load waits for memory that others are about to give back.
    """

    load_timeout_s: float = 600.0
    drain_timeout_s: float = 60.0
    memory_wait_s: float = 60.0
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0
    restarts_max: int = 5
    healthy_s: float = 60.0

    def pause_s(self, failures: int) -> float:
        """How long to wait after so many failures in a row."""
        return min(self.backoff_max_s, self.backoff_s * 2.0 ** max(0, failures - 1))


@dataclass(slots=True)
class Slot:
    """`lock` serialises loading and unloading; `resident` is what requests find; `evicted` who made room for it.

    `launched_at` is when it had its memory and its worker began to start.
    """

    entry: Entry
    limits: Limits
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    resident: Resident | None = None
    loading: "asyncio.Task[Resident] | None" = None
    waiting: int = 0
    evicted: tuple[str, ...] = ()
    launched_at: float = 0.0
    failures: int = 0
    failed_at: float = 0.0
    failure: LoadFailed | None = None
    ready_at: float = 0.0

    @property
    def reference(self) -> str:
        """`name@version`."""
        return self.entry.version.reference

    def occupy(self, resident: Resident) -> None:
        """It is loaded."""
        self.resident, self.failure, self.ready_at = resident, None, time.monotonic()
        self.evicted = ()

    def forgive(self) -> None:
        """Forget what failed: somebody wants it tried again now."""
        self.failure, self.failures = None, 0

    def refuse_in_backoff(self) -> None:
        """LoadFailed, again, while the pause after the last failure lasts."""
        if self.failure is None:
            return
        left = self.failed_at + self.limits.pause_s(self.failures) - time.monotonic()
        if left > 0:
            again = LoadFailed(self.failure.message, reason=self.failure.reason, details=self.failure.details)
            again.retry_after_s = left
            raise again

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
        self.failure, self.failed_at = failure, time.monotonic()
        self.failures += 1
        return failure

    def crash(self, why: str) -> LoadFailed | None:
        """Its worker died. The error to stay down with, or None when it is to be started again after a pause."""
        if time.monotonic() - self.ready_at >= self.limits.healthy_s:
            self.failures = 0
        self.failures += 1
        message = f"the worker of {self.reference} died: {why}"
        if self.failures > self.limits.restarts_max:
            message += f", {self.failures} times in a row; see its log, then `moc models load` it"
            return LoadFailed(message, reason=FailReason.RUNTIME_UNHEALTHY)
        if self.failures > 1:
            self.failure = LoadFailed(f"{message}; it is being started again", reason=FailReason.RUNTIME_UNHEALTHY)
            self.failed_at = time.monotonic()
        return None

    @property
    def restart_pause_s(self) -> float:
        """How long to wait before it is started again after a crash: not at all after the first."""
        return 0.0 if self.failures <= 1 else self.limits.pause_s(self.failures)
