"""Batching: a model whose batch of 16 costs twice what one request costs, with and without it.

Over Open Inference Protocol REST with keep-alive; coordinator and worker share processor 0, the generator has
processor 1. Every answer is compared with what it has to be. Run it with `make bench`.
"""

import json
import os
import statistics
import tempfile
from itertools import count
from pathlib import Path

import uvloop

from bench.load import Ask, Outcome, turns
from tests.coordinator import Coordinator

ROUNDS = 3
CLIENTS = 32
SECONDS = 4.0
MODEL = """
import time
class Model:
    inputs = [("X", "INT64", [-1, 1])]
    outputs = [("Y", "INT64", [-1, 1])]
    def infer(self, inputs):
        time.sleep(0.005 * (1 + (len(inputs["X"]) - 1) / 15))
        return {"Y": inputs["X"] * 2}
"""


async def measure(coordinator: Coordinator, model: str) -> Outcome:
    """`CLIENTS` connections, each asking for something else every time it has its answer."""
    numbers = count()

    async def turn(ask: Ask) -> None:
        number = next(numbers)
        answer = json.loads(await ask(_request(coordinator, model, number)))
        assert answer["outputs"][0]["data"] == [2 * number]

    outcome = await turns(coordinator.port, turn, clients=CLIENTS, seconds=SECONDS)
    assert not outcome.failures
    return outcome


def _request(coordinator: Coordinator, model: str, number: int) -> bytes:
    body = json.dumps({"inputs": [{"name": "X", "shape": [1, 1], "datatype": "INT64", "data": [number]}]})
    head = [
        f"POST /v2/models/{model}/infer HTTP/1.1",
        f"Host: 127.0.0.1:{coordinator.port}",
        f"Authorization: Bearer {coordinator.key}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*head, "", body]).encode()


def main() -> None:
    os.sched_setaffinity(0, {1})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "doubles.py"
        file.write_text(MODEL)
        alone = {"runtime": "python", "source": f"file:{file}", "ttl_s": 0, "preload": True}
        models = {"alone": alone, "batched": {**alone, "batching": {"max_batch": 16, "max_delay_ms": 5}}}
        coordinator = Coordinator(Path(folder) / "data", config={"models": models}, prefix=["taskset", "-c", "0"])
        try:
            coordinator.start()
            for model in models:
                coordinator.post(f"/api/v1/models/{model}/load").raise_for_status()
            rounds = [{model: uvloop.run(measure(coordinator, model)) for model in models} for _ in range(ROUNDS)]
        finally:
            coordinator.close()
    for model in models:
        rates = [outcomes[model].rate for outcomes in rounds]
        p50s = statistics.median(outcomes[model].ms(50) for outcomes in rounds)
        print(f"{model:10} req/s median {statistics.median(rates):8.0f}   p50 {p50s:6.1f} ms")
    ratios = [outcomes["batched"].rate / outcomes["alone"].rate for outcomes in rounds]
    print(f"throughput, batched to alone: {statistics.median(ratios):.1f}   ({min(ratios):.1f} - {max(ratios):.1f})")


if __name__ == "__main__":
    main()
