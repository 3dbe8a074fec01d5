"""Models that are loaded because a request needs them, on the account of whoever sent it."""

import asyncio
import time

import structlog

from moc.inference.ports import Resident, Residents
from moc.inference.request import Caller
from moc.inference.shares import Shares
from moc.kernel.errors import DeadlineExceeded, DeadlineUnreachable
from moc.kernel.tasks import Tasks
from moc.resilience.deadline import NEVER, Deadline

log = structlog.get_logger(__name__)


class Loads:
    """Whoever causes a load is billed for the time it takes, whether he waits for it or not."""

    def __init__(self, residents: Residents, shares: Shares) -> None:
        self._residents = residents
        self._shares = shares
        self._begun: set[str] = set()
        self._tasks = Tasks(lambda error: log.error("a load that a request asked for failed", exc_info=error))

    async def ready(self, caller: Caller, reference: str, deadline: Deadline) -> Resident:
        """The model, once it is loaded; see `ports.Residents.ensure_ready`.

        DeadlineUnreachable at once, with the load begun, when that cannot be in time.
        """
        self._check_reach(caller, reference, deadline)
        if self._is_begun(reference):
            return await self._residents.ensure_ready(reference, deadline)
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                return await asyncio.shield(self._begin(caller, reference))
        except TimeoutError:
            raise DeadlineExceeded(f"{reference} was not loaded in time; it goes on loading, ask again") from None

    def _check_reach(self, caller: Caller, reference: str, deadline: Deadline) -> None:
        left_s = deadline.remaining_s()
        if left_s is None or (takes_s := self._residents.load_left_s(reference)) <= left_s:
            return
        self.begin(caller, reference)
        raise DeadlineUnreachable(
            f"{reference} is being loaded, which takes {takes_s:.2g} s more at the soonest, and the deadline is in "
            f"{left_s:.2g} s; allow more time, or ask again then",
            retry_after_s=takes_s,
        )

    def begin(self, caller: Caller, reference: str) -> None:
        """Have it loaded without waiting."""
        if not self._is_begun(reference):
            self._begin(caller, reference)

    async def stop(self) -> None:
        """Wait for no more loads."""
        await self._tasks.cancel()

    def _is_begun(self, reference: str) -> bool:
        return reference in self._begun or self._residents.is_loading(reference)

    def _begin(self, caller: Caller, reference: str) -> "asyncio.Task[Resident]":
        self._begun.add(reference)
        return self._tasks.spawn(self._load(caller, reference))

    async def _load(self, caller: Caller, reference: str) -> Resident:
        began = time.monotonic()
        try:
            return await self._residents.ensure_ready(reference, NEVER)
        finally:
            self._begun.discard(reference)
            self._shares.bill(caller, time.monotonic() - began)
