"""How many requests a model takes: as it says itself, else as all do."""

import asyncio

import pytest

from moc.inference.request import Caller, Request, Terms
from moc.inference.station import TrafficLimits
from moc.kernel.errors import QueueFull
from moc.resilience.bulkhead import Bulkhead
from tests.crossroads import Crossroads, Models

NARROW = TrafficLimits(bulkhead=Bulkhead(max_concurrent=1, max_queue=1))


async def taken(place: Crossroads, models: Models) -> tuple[int, int]:
    """Of nine requests at once: how many the engine works on, how many are refused."""
    await place.gateway.infer(Caller("key"), "m", Request("tensors", b""), Terms())
    models.link("m").gate.clear()
    asked = [
        asyncio.create_task(place.gateway.infer(Caller("key"), "m", Request("tensors", b""), Terms())) for _ in range(9)
    ]
    for _ in range(20):
        await asyncio.sleep(0)
    running = models.link("m").running
    models.link("m").gate.set()
    results = await asyncio.gather(*asked, return_exceptions=True)
    return running, sum(isinstance(result, QueueFull) for result in results)


@pytest.mark.parametrize(
    ("own", "expected"),
    [((None, None), (1, 7)), ((2, None), (2, 6)), ((None, 3), (1, 5)), ((2, 3), (2, 4)), ((100, 0), (2, 7))],
)
async def test_what_a_model_does_not_say_is_said_for_all(
    own: tuple[int | None, int | None], expected: tuple[int, int]
) -> None:
    models = Models(max_concurrent=own[0], max_queue=own[1])
    assert await taken(Crossroads(models, limits=NARROW), models) == expected


async def test_what_is_said_for_all_may_change_meanwhile() -> None:
    models = Models(max_concurrent=None, max_queue=None)
    place = Crossroads(models)
    assert await taken(place, models) == (2, 0)
    place.gateway.adjust(NARROW)
    assert await taken(place, models) == (1, 7)


def test_a_bulkhead_with_some_of_it_changed() -> None:
    assert NARROW.bulkhead.but(None, None) is NARROW.bulkhead
    assert NARROW.bulkhead.but(None, 0) == Bulkhead(max_concurrent=1, max_queue=0)
