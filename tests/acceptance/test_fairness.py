"""Keys share a model fairly: what one sends ten times over, the other hardly feels. Against a real coordinator."""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import model, served
from tests.coordinator import Coordinator, short_home

pytestmark = [pytest.mark.slow, pytest.mark.alone]

MODEL = """
import asyncio, random

class Model:
    inputs = [("INPUT0", "FP32", [1])]
    outputs = [("OUTPUT0", "FP32", [1])]
    concurrency = {places}

    async def infer(self, inputs):
        await asyncio.sleep(random.uniform(0.015, 0.025))
        return {{"OUTPUT0": inputs["INPUT0"]}}
"""
TENSOR: dict[str, Any] = {"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [0.5]}
GREEDY = 20
REQUESTS = 100
PAUSE_S = (0.03, 0.08)
"""Between the light key's requests: it asks for less than its half of the model, as who is light does."""

TRIES = 3
"""A machine that has more to do only ever makes a request slower: one measurement that is good is enough."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    """A coordinator with a model of one place and one of four, each request some 20 ms."""
    folder = tmp_path_factory.mktemp("models")
    models = {}
    for places in (1, 4):
        path = folder / f"places_{places}.py"
        path.write_text(MODEL.format(places=places))
        models[f"places-{places}"] = model("python", Path(path), preload=True)
    with short_home() as data_dir:
        yield from served(Coordinator(data_dir, config={"models": models}))


def a_key(own: Coordinator, *options: str) -> str:
    made = own.cli("keys", "create", "--role", "inference", *options)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


async def ask(client: httpx.AsyncClient, name: str) -> float:
    """How many seconds one request takes."""
    began = time.perf_counter()
    answer = await client.post(f"/v2/models/{name}/infer", json={"inputs": [TENSOR]})
    assert answer.status_code == 200, answer.text
    return time.perf_counter() - began


async def p95_s(own: Coordinator, key: str, name: str) -> float:
    """Of one who asks, reads the answer, and asks again."""
    pause, took = random.Random(1), []
    async with a_client(own, key) as client:
        for _ in range(REQUESTS):
            took.append(await ask(client, name))
            await asyncio.sleep(pause.uniform(*PAUSE_S))
    return statistics.quantiles(took, n=20)[-1]


@asynccontextmanager
async def a_client(own: Coordinator, key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=own.url, headers={"x-api-key": key}, timeout=60) as client:
        yield client


@asynccontextmanager
async def greedy(own: Coordinator, key: str, name: str, clients: int) -> AsyncIterator[list[float]]:
    """Clients that ask again as soon as they are answered; how long each of their requests took."""
    took: list[float] = []
    async with a_client(own, key) as client:

        async def ask_on() -> None:
            while True:
                took.append(await ask(client, name))

        tasks = [asyncio.create_task(ask_on()) for _ in range(clients)]
        try:
            yield took
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("places", [1, 4])
async def test_a_greedy_key_at_most_doubles_what_the_other_waits(own: Coordinator, places: int) -> None:
    name, light, heavy = f"places-{places}", a_key(own), a_key(own)
    ratios: list[float] = []
    while len(ratios) < TRIES and not any(ratio <= 2 for ratio in ratios):
        alone_s = await p95_s(own, light, name)
        async with greedy(own, heavy, name, GREEDY) as took:
            ratios.append(await p95_s(own, light, name) / alone_s)
        assert statistics.median(took) > 2 * alone_s  # there was more asked for than there is
    assert min(ratios) <= 2


async def test_a_key_of_twice_the_weight_gets_twice_as_much(own: Coordinator) -> None:
    one, other = a_key(own), a_key(own, "--weight", "2")
    async with greedy(own, one, "places-1", 10) as of_one, greedy(own, other, "places-1", 10) as of_other:
        await asyncio.sleep(3)  # how long they compete
        shares = len(of_other) / len(of_one)
    assert 1.5 < shares < 2.5
