"""The hot path: an identity model (FP32 [1, 8]) over Open Inference Protocol REST, authentication and metrics on.

Coordinator and worker share processor 0, the generator has processor 1. Run it with `make bench`.
"""

import json
import os
import statistics
import tempfile
from pathlib import Path

import psutil
import uvloop

from bench.load import closed_loop, open_loop
from tests.coordinator import Coordinator

EXAMPLES = Path(__file__).parents[1] / "examples" / "models"
ROUNDS = 3


def http_request(coordinator: Coordinator) -> bytes:
    """One inference as it goes over the wire."""
    tensor = {"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.5 * n for n in range(8)]}
    body = json.dumps({"inputs": [tensor]}, separators=(",", ":"))
    head = [
        "POST /v2/models/identity/infer HTTP/1.1",
        f"Host: 127.0.0.1:{coordinator.port}",
        f"Authorization: Bearer {coordinator.key}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*head, "", body]).encode()


def cpu_s(coordinator: Coordinator) -> float:
    """Processor seconds used so far by the coordinator and its workers."""
    assert coordinator.process is not None
    family = [psutil.Process(coordinator.process.pid)]
    family += [psutil.Process(pid) for pid in coordinator.worker_pids()]
    return sum(sum(process.cpu_times()[:2]) for process in family)


async def measure(coordinator: Coordinator) -> dict[str, float]:
    """One round of figures."""
    request, port = http_request(coordinator), coordinator.port
    await closed_loop(port, request, clients=4, seconds=1)
    one = await closed_loop(port, request, clients=1, seconds=3)
    sixteen = await closed_loop(port, request, clients=16, seconds=5)
    before = cpu_s(coordinator)
    steady = await open_loop(port, request, rate=1000, connections=16, seconds=5)
    used = (cpu_s(coordinator) - before) / steady.seconds
    assert not one.failures + sixteen.failures + steady.failures
    return {
        "c1 p50 ms": one.ms(50),
        "c16 req/s": sixteen.rate,
        "c16 p99 ms": sixteen.ms(99),
        "1000/s p99 ms": steady.ms(99),
        "1000/s core %": used * 100,
    }


def main() -> None:
    os.sched_setaffinity(0, {1})
    with tempfile.TemporaryDirectory() as folder:
        models = {"identity": {"runtime": "python", "source": f"file:{EXAMPLES / 'identity.py'}", "ttl_s": 0}}
        coordinator = Coordinator(Path(folder) / "data", config={"models": models}, prefix=["taskset", "-c", "0"])
        try:
            coordinator.start()
            coordinator.post("/api/v1/models/identity/load").raise_for_status()
            rounds = [uvloop.run(measure(coordinator)) for _ in range(ROUNDS)]
        finally:
            coordinator.close()
    for name in rounds[0]:
        values = [figures[name] for figures in rounds]
        print(f"{name:16} median {statistics.median(values):10.2f}   from {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
