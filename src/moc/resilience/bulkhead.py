"""A bounded number at once, a bounded number waiting in the order they came."""

import asyncio
from collections import deque

from moc.kernel.errors import DeadlineExceeded, QueueFull
from moc.resilience.deadline import Deadline


class Bulkhead:
    """`enter` before, `leave` after; first come, first served.

    Not for threads: every call on one event loop. Uncontended, `try_enter` is a comparison and a sum.
    """

    def __init__(self, name: str, *, max_concurrent: int, max_queue: int) -> None:
        self.name = name
        self.max_concurrent = max_concurrent
        self.max_queue = max_queue
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiting)

    def try_enter(self) -> bool:
        """Take a place if one is free and nobody waits for it."""
        if self.running < self.max_concurrent and not self._waiting:
            self.running += 1
            return True
        return False

    async def enter(self, deadline: Deadline) -> None:
        """Wait for a place. QueueFull at once when too many wait, DeadlineExceeded when time runs out.

        A caller that is cancelled leaves the queue, and a place it was just given goes to the next.
        """
        if self.try_enter():
            return
        if len(self._waiting) >= self.max_queue:
            raise QueueFull(
                f"{self.name} has {self.running} requests running and {self.waiting} waiting; try again shortly",
                retry_after_s=1.0,
            )
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            if deadline.at is None:
                await place
                return
            async with asyncio.timeout(deadline.remaining_s()):
                await place
        except BaseException as error:
            self._give_up(place)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    f"the deadline passed while waiting for a place at {self.name}; allow more time"
                ) from None
            raise

    def leave(self) -> None:
        """Give the place to the next in line."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1

    def _give_up(self, place: "asyncio.Future[None]") -> None:
        if place.done() and not place.cancelled():
            self.leave()
        elif place in self._waiting:
            self._waiting.remove(place)
