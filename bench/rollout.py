"""Rollouts: how long it takes until the old version answers again, by hand and by a guard, and a swap.

Both versions are loaded, and 4 clients ask without a pause meanwhile. Run it with `make bench`.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from moc.client import AsyncClient
from tests.coordinator import Coordinator

ROUNDS = 20
CLIENTS = 4
IDENTITY = {"inputs": [{"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.5] * 8}]}
BROKEN = """
class Model:
    inputs = (("INPUT0", "FP32", (-1, 8)),)
    outputs = (("OUTPUT0", "FP32", (-1, 8)),)

    def infer(self, inputs):
        raise RuntimeError("this version is broken")
"""
EXAMPLE = Path(__file__).parents[1] / "examples" / "models" / "identity.py"


@asynccontextmanager
async def asked(coordinator: Coordinator) -> AsyncIterator[None]:
    """Clients that ask the alias, each its next question when the last is answered."""

    async def ask() -> None:
        async with httpx.AsyncClient(base_url=coordinator.url, headers=coordinator.headers) as client:
            while True:
                await client.post("/v2/models/front/infer", json=IDENTITY)

    tasks = [asyncio.create_task(ask()) for _ in range(CLIENTS)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(client: AsyncClient, *states: str) -> None:
    """Wait until the rollout of the alias is in one of these states."""
    while (await client.rollouts.show("front"))["state"] not in states:  # noqa: ASYNC110 - another process's doing
        await asyncio.sleep(0.002)


async def abort_s(client: AsyncClient) -> float:
    """From asking for an abort to its answer; from then on only the old version is asked."""
    await client.rollouts.start("front", "new@1", steps=[50], hold_s=3600)
    await until(client, "progressing")
    begun = time.perf_counter()
    await client.rollouts.abort("front")
    return time.perf_counter() - begun


async def breach_s(client: AsyncClient) -> float:
    """From the first request that a broken version may get to the guard's having put the old one back."""
    await client.models.unload("broken")  # a new worker, to which requests are not refused for earlier ones
    await client.rollouts.start("front", "broken@1", steps=[100], hold_s=3600, min_requests=1, max_error_rate=0)
    await until(client, "progressing", "rolled_back")
    begun = time.perf_counter()
    await until(client, "rolled_back")
    return time.perf_counter() - begun


async def swap_s(client: AsyncClient, to: str) -> float:
    """From asking that an alias be another version, which is loaded, to the answer."""
    begun = time.perf_counter()
    await client.aliases.set("front", {to: 1})
    return time.perf_counter() - begun


async def measure(coordinator: Coordinator) -> dict[str, list[float]]:
    """Every figure so many times."""
    async with AsyncClient(coordinator.url, coordinator.key) as client:
        for model in ("old", "new", "broken"):
            await client.models.load(model)
        async with asked(coordinator):
            return {
                "aborted": [await abort_s(client) for _ in range(ROUNDS)],
                "guard breached": [await breach_s(client) for _ in range(ROUNDS)],
                "swapped": [await swap_s(client, ("new@1", "old@1")[turn % 2]) for turn in range(ROUNDS)],
            }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        broken = Path(folder) / "broken.py"
        broken.write_text(BROKEN)
        models = {
            name: {"runtime": "python", "source": f"file:{path}", "ttl_s": 0}
            for name, path in (("old", EXAMPLE), ("new", EXAMPLE), ("broken", broken))
        }
        config = {"models": models, "aliases": {"front": {"versions": {"old@1": 1}}}}
        coordinator = Coordinator(Path(folder) / "data", config=config)
        try:
            figures = asyncio.run(measure(coordinator.start()))
        finally:
            coordinator.close()
    for name, times in figures.items():
        median, most = statistics.median(times) * 1000, max(times) * 1000
        print(f"{name:16} median {median:6.1f} ms   at most {most:6.1f} ms")


if __name__ == "__main__":
    main()
