"""Aliases over real workers that die, fail and dawdle."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from moc.inference.observed import SAMPLES_MIN
from moc.inference.request import Caller, Request, Terms
from moc.inference.routing import Route, Target
from moc.inference.station import TrafficLimits
from moc.kernel.errors import CircuitOpen, Internal, LoadFailed, WorkerLost
from moc.models.ports import Worker
from moc.models.resident import Resident
from moc.resilience.breaker import BreakerLimits, Circuit
from moc.resilience.deadline import Deadline
from moc.workers.local import LocalWorkers
from tests.crossroads import Crossroads
from tests.hosted import eventually, reads, start, written

SOMEBODY = Caller("key")
REQUEST = Request("chat", b"{}")
RESET_S = 0.5
LIMITS = TrafficLimits(breaker=BreakerLimits(failure_threshold=3, reset_timeout_s=RESET_S))
STEADY = """
class Model:
    def chat(self, request): return {"from": "steady"}
    def stream(self, request):
        yield {"from": "steady"}
"""
FRAIL = """
import os, pathlib, time
class Model:
    def load(self, mood=None): self.mood = pathlib.Path(mood)
    def _suffer(self):
        mood = self.mood.read_text()
        if mood == "deadly": os._exit(7)
        if mood == "broken": raise RuntimeError("out of order")
    def chat(self, request):
        self._suffer()
        return {"from": "frail"}
    def stream(self, request):
        self._suffer()
        for number in range(3): yield {"n": number}
        time.sleep(0.2)
        os._exit(7)
"""
SLOW = """
import asyncio, pathlib
class Model:
    def load(self, mood=None): self.mood = pathlib.Path(mood)
    async def chat(self, request):
        if self.mood.read_text() == "slow":
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                self.mood.write_text("cancelled")
                raise
        return {"from": "slow"}
"""


class Running:
    """The Residents port over workers that were started by hand; a dead one is not started again."""

    def __init__(self, workers: LocalWorkers) -> None:
        self._workers = workers
        self._residents: dict[str, Resident] = {}

    def add(self, name: str, worker: Worker) -> None:
        self._residents[name] = Resident(
            reference=f"{name}@1",
            digest=worker.digest,
            worker_id=worker.id,
            max_concurrent=8,
            max_queue=8,
            batching=None,
            adopted=False,
        )

    def find(self, reference: str) -> Resident | None:
        found = self._residents.get(reference)
        return found if found is not None and self._workers.link(found.worker_id) is not None else None

    def is_loading(self, reference: str) -> bool:
        return False

    def load_left_s(self, reference: str) -> float:
        return 0.0

    async def ensure_ready(self, reference: str, deadline: Deadline) -> Resident:
        raise LoadFailed(f"{reference} is gone", reason="runtime_unhealthy")


class Place(Crossroads):
    """An alias for `first`, with `steady` to fall back on; what `first` does is written in the file `mood`."""

    def __init__(self, workers: LocalWorkers, folder: Path) -> None:
        self.running = Running(workers)
        super().__init__(residents=self.running, links=workers, limits=LIMITS)
        self.workers = workers
        self.folder = folder
        self.mood = folder / "mood"
        self.mood.write_text("well")

    async def set_up(self, source: str, *, hedge: bool = False) -> Worker:
        self.running.add("steady", await start(self.workers, written(self.folder, STEADY, "steady")))
        launch = written(self.folder, source, "first")
        launch.options["mood"] = str(self.mood)
        worker = await start(self.workers, launch)
        self.running.add("first", worker)
        self.alias(Route("alias", (Target("first", 1),), fallback=("steady",), hedge=hedge))
        return worker

    async def ask(self, name: str = "alias") -> str:
        return (await self.gateway.infer(SOMEBODY, name, REQUEST, Terms(Deadline.after(20)))).reference


@pytest.fixture
async def place(workers: LocalWorkers, tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(workers, tmp_path)
    yield made
    await made.gateway.stop()


async def test_a_worker_that_dies_at_a_request_is_followed_by_the_next_target(place: Place) -> None:
    await place.set_up(FRAIL)
    assert await place.ask() == "first@1"
    place.mood.write_text("deadly")
    assert await place.ask() == "steady@1"
    assert place.journal.fallbacks == [("alias", "first", "worker_lost")]


async def test_a_worker_that_is_killed_under_many_requests_fails_none_of_them(place: Place) -> None:
    worker = await place.set_up(SLOW)
    place.mood.write_text("slow")
    asked = [asyncio.create_task(place.ask()) for _ in range(8)]
    await eventually(lambda: place.workers.in_flight(worker.id) == 1)
    os.kill(worker.pid, signal.SIGKILL)
    assert set(await asyncio.gather(*asked)) == {"steady@1"}


async def test_a_stream_whose_worker_dies_before_the_first_chunk_goes_elsewhere(place: Place) -> None:
    await place.set_up(FRAIL)
    place.mood.write_text("deadly")
    stream = await place.gateway.stream(SOMEBODY, "alias", REQUEST, Terms())
    assert (stream.reference, [chunk async for chunk in stream]) == ("steady@1", [b'{"from":"steady"}'])
    assert place.journal.fallbacks == [("alias", "first", "worker_lost")]


async def test_a_stream_whose_worker_dies_later_tells_how_far_it_got(place: Place) -> None:
    await place.set_up(FRAIL)
    stream = await place.gateway.stream(SOMEBODY, "alias", REQUEST, Terms())
    assert [await anext(stream) for _ in range(3)] == [b'{"n":0}', b'{"n":1}', b'{"n":2}']
    with pytest.raises(WorkerLost, match="incomplete, it broke off after 3 chunks") as broken:
        await anext(stream)
    assert broken.value.details["chunks"] == 3


async def test_the_circuit_of_an_engine_out_of_order_opens_and_closes_when_it_works_again(place: Place) -> None:
    worker = await place.set_up(FRAIL)
    place.mood.write_text("broken")
    for _ in range(3):
        with pytest.raises(Internal):
            await place.ask("first")
    with pytest.raises(CircuitOpen):
        await place.ask("first")
    assert await place.ask() == "steady@1"
    assert place.journal.fallbacks == []
    place.mood.write_text("well")
    await eventually(lambda: not place.gateway.stations.retry_after_s(worker.id))
    assert await place.ask() == "first@1"
    assert place.gateway.stations.circuit(worker.id) is Circuit.CLOSED


async def test_the_slower_of_two_is_stopped_in_its_engine(place: Place) -> None:
    await place.set_up(SLOW, hedge=True)
    for _ in range(SAMPLES_MIN):
        assert await place.ask() == "first@1"
    await eventually(lambda: place.observed.p95_s("first@1") is not None)
    place.mood.write_text("slow")
    assert await place.ask() == "steady@1"
    await eventually(lambda: reads(place.mood, "cancelled"))
