"""What a coordinator in front of an OpenAI upstream costs: whole answers, and chunks of streams passed on.

The coordinator has processor 0; the upstream, which answers at once, and the generator share processor 1.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from bench.canned import CHUNKS
from bench.load import closed_loop
from tests.coordinator import Coordinator, eventually, free_port

ROUNDS = 3
STREAMS = 8
"""At a time."""


def http_request(port: int, *, key: str = "", stream: bool = False) -> bytes:
    """One chat as it goes over the wire."""
    message = {"role": "user", "content": "Which one would I like best?"}
    body = json.dumps({"model": "canned", "messages": [message], "stream": stream}, separators=(",", ":"))
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*head, "", body]).encode()


async def chunks_per_s(port: int, request: bytes, *, seconds: float) -> float:
    """How many chunks come, of `STREAMS` streams at a time, one after the other."""
    end = time.perf_counter() + seconds
    began, count = time.perf_counter(), 0

    async def read_streams() -> None:
        nonlocal count
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            writer.write(request)
            rest = b""
            while b"[DONE]" not in rest:
                block = await reader.read(2**20)
                assert block, "a stream broke"
                count += (rest + block).count(b"data: {") - rest.count(b"data: {")
                rest = (rest + block)[-16:]
            while not rest.endswith(b"0\r\n\r\n"):
                rest = (rest + await reader.read(2**20))[-16:]
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(read_streams() for _ in range(STREAMS)))
    assert count % CHUNKS == 0, "a chunk was lost"
    return count / (time.perf_counter() - began)


async def measure(coordinator: Coordinator, upstream: int) -> dict[str, float]:
    """One round of figures."""
    key, port = coordinator.key, coordinator.port
    request = http_request(port, key=key)
    await closed_loop(port, request, clients=4, seconds=1)
    alone = await closed_loop(upstream, http_request(upstream), clients=1, seconds=3)
    one = await closed_loop(port, request, clients=1, seconds=3)
    sixteen = await closed_loop(port, request, clients=16, seconds=5)
    assert not alone.failures + one.failures + sixteen.failures
    return {
        "upstream p50 ms": alone.ms(50),
        "c1 p50 ms": one.ms(50),
        "added p50 ms": one.ms(50) - alone.ms(50),
        "c16 req/s": sixteen.rate,
        "c16 p99 ms": sixteen.ms(99),
        "upstream chunks/s": await chunks_per_s(upstream, http_request(upstream, stream=True), seconds=3),
        "chunks/s": await chunks_per_s(port, http_request(port, key=key, stream=True), seconds=5),
    }


def main() -> None:
    os.sched_setaffinity(0, {1})
    upstream = free_port()
    canned = subprocess.Popen([sys.executable, "-m", "bench.canned", str(upstream)])
    with tempfile.TemporaryDirectory() as folder:
        models = {"canned": {"runtime": "remote", "source": f"http://127.0.0.1:{upstream}/v1"}}
        coordinator = Coordinator(Path(folder) / "data", config={"models": models}, prefix=["taskset", "-c", "0"])
        try:
            coordinator.start()
            eventually(lambda: coordinator.post("/api/v1/models/canned/load").is_success)
            rounds = [uvloop.run(measure(coordinator, upstream)) for _ in range(ROUNDS)]
        finally:
            coordinator.close()
            canned.kill()
            canned.wait()
    for name in rounds[0]:
        values = [figures[name] for figures in rounds]
        print(f"{name:18} median {statistics.median(values):10.2f}   from {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
