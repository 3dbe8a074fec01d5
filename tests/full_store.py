"""A store that fails when the test wants it to."""

import asyncio
from collections.abc import Sequence

from moc.kernel.errors import StoreUnavailable
from moc.kernel.events import Event
from moc.kernel.records import STORE_FULL, Op
from moc.store.memory import MemoryStore


class FullStore(MemoryStore):
    """Commits nothing while it is `full`; what has an event of the kind `slow` sets `reached` and waits for `gate`.

    `fault` is what the next commit fails with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.slow = ""
        self.fault: Exception | None = None
        self.reached = asyncio.Event()
        self.gate = asyncio.Event()

    async def commit(self, ops: Sequence[Op], events: Sequence[Event] = ()) -> int:
        if any(event.kind == self.slow for event in events):
            self.reached.set()
            await self.gate.wait()
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        if self.full:
            raise StoreUnavailable("the disk is full", details={"reason": STORE_FULL})
        return await super().commit(ops, events)
