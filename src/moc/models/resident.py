"""A loaded version as requests see it, with the count of those that use it."""

import asyncio
import time

from moc.models.model import Batching


class Resident:
    """One loaded model version. `enter` and `leave` bracket every request: it is not unloaded under one."""

    __slots__ = (
        "_idle",
        "adopted",
        "batching",
        "digest",
        "first_used_at",
        "last_used_at",
        "loaded_at",
        "max_concurrent",
        "max_queue",
        "reference",
        "users",
        "uses",
        "worker_id",
    )

    def __init__(
        self,
        *,
        reference: str,
        digest: str,
        worker_id: str,
        max_concurrent: int | None,
        max_queue: int | None,
        batching: Batching | None,
        adopted: bool,
    ) -> None:
        self.reference = reference
        self.digest = digest
        self.worker_id = worker_id
        self.max_concurrent = max_concurrent
        self.max_queue = max_queue
        self.batching = batching
        self.adopted = adopted
        self.users = 0
        self.uses = 0
        self.first_used_at: float | None = None
        self.loaded_at = self.last_used_at = time.monotonic()
        self._idle: asyncio.Future[None] | None = None

    def enter(self) -> None:
        """One more request uses it."""
        self.users += 1
        self.uses += 1

    def leave(self) -> None:
        """One request is over."""
        self.users -= 1
        self.last_used_at = time.monotonic()
        if self.first_used_at is None:
            self.first_used_at = self.last_used_at
        if self.users == 0 and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def in_use_s(self) -> float:
        """Seconds since the first request ended; 0 when none has."""
        return 0.0 if self.first_used_at is None else time.monotonic() - self.first_used_at

    def idle_s(self) -> float:
        """Seconds since the last request ended; 0 while one runs."""
        return 0.0 if self.users else time.monotonic() - self.last_used_at

    async def idle(self, timeout_s: float) -> bool:
        """Wait until no request uses it, no longer than `timeout_s`; whether that came true."""
        if self.users:
            self._idle = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._idle], timeout=timeout_s)
        return self.users == 0
