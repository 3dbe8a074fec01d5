"""The model manager with everything it needs, all of it fakes but for the catalogue."""

import asyncio
from collections.abc import Callable

from moc.kernel.clock import SystemClock
from moc.models.catalogue import Catalogue
from moc.models.footprints import Footprints
from moc.models.manager import ModelManager
from moc.models.model import ModelSpec, State
from moc.models.slot import Limits
from moc.resilience.breaker import BreakerLimits
from moc.store.memory import MemoryStore
from moc.testing.seat import FakeSeat
from moc.testing.workers import FakeMemory, FakeSources, FakeWorkers

SPEC = ModelSpec(runtime="python", source="file:a.py", ttl_s=0)
NEWER = ModelSpec(runtime="python", source="file:b.py", ttl_s=0)
FAST = Limits(drain_timeout_s=5, breaker=BreakerLimits(failure_threshold=3, reset_timeout_s=60))


class House:
    """A manager with everything it needs, over one store."""

    def __init__(self, store: MemoryStore, limits: Limits = FAST, workers: FakeWorkers | None = None) -> None:
        self.store = store
        self.seat = FakeSeat(store)
        self.workers = workers or FakeWorkers()
        self.sources = FakeSources()
        self.memory = FakeMemory()
        self.loads: list[tuple[str, float]] = []
        self.catalogue = Catalogue(store=store, seat=self.seat, clock=SystemClock())
        self.footprints = Footprints(store=store, clock=SystemClock())
        self.manager = ModelManager(
            catalogue=self.catalogue,
            workers=self.workers,
            sources=self.sources,
            footprints=self.footprints,
            memory=self.memory,
            limits=limits,
            on_loaded=lambda reference, seconds: self.loads.append((reference, seconds)),
        )

    async def start(self) -> "House":
        await self.seat.start()
        await self.catalogue.start()
        await self.manager.start()
        return self

    async def add(self, name: str = "a", spec: ModelSpec = SPEC) -> None:
        await self.manager.add(name, spec, actor="test")

    def state(self, reference: str = "a") -> State:
        return self.catalogue.entry(reference).status.state

    async def until(self, *kinds: str) -> None:
        """Wait until an event of each kind has happened."""
        missing = set(kinds)
        async with asyncio.timeout(10):
            async for event in self.store.follow(after=0):
                missing.discard(event.kind)
                if not missing:
                    return


async def turn(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition`."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)
