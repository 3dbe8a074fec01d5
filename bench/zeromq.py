"""The hot path over ZeroMQ: the identity model (FP32 [1, 8]), one DEALER connection, authentication and metrics on.

Coordinator and worker share processor 0, the generator has processor 1. Run it with `make bench`.
"""

import json
import os
import statistics
import struct
import tempfile
import time
from collections import deque
from pathlib import Path

import msgspec
import zmq

from bench.identity import EXAMPLES
from bench.load import Outcome
from tests.coordinator import Coordinator

ROUNDS = 3
VALUES = [0.5 * n for n in range(8)]


def json_request(key: str) -> list[bytes]:
    """One inference with its tensor in the JSON."""
    tensor = {"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": VALUES}
    message = {"action": "infer", "payload": {"model": "identity", "inputs": [tensor]}, "key": key}
    return [json.dumps(message, separators=(",", ":")).encode()]


def msgpack_request(key: str) -> list[bytes]:
    """One inference with its tensor in a frame of its own."""
    tensor = {"name": "INPUT0", "shape": [1, 8], "datatype": "FP32"}
    message = {"action": "infer", "payload": {"model": "identity", "inputs": [tensor]}, "key": key}
    return [msgspec.msgpack.encode(message), struct.pack("<8f", *VALUES)]


def closed_loop(url: str, request: list[bytes], *, in_flight: int, seconds: float) -> Outcome:
    """One connection with `in_flight` requests on their way at all times; answers come in order from this model."""
    outcome, sent = Outcome(), deque[float]()
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(url)
        started = time.perf_counter()
        end = started + seconds

        def send() -> None:
            sent.append(time.perf_counter())
            socket.send_multipart(request)

        for _ in range(in_flight):
            send()
        while sent:
            answer = socket.recv_multipart()
            now = time.perf_counter()
            outcome.latencies.append(now - sent.popleft())
            outcome.failures += b'success":true' not in answer[0] and b"success\xc3" not in answer[0]
            if now < end:
                send()
        outcome.seconds = time.perf_counter() - started
    return outcome


def measure(url: str, request: list[bytes]) -> dict[str, float]:
    """One round of figures of one form of message."""
    closed_loop(url, request, in_flight=4, seconds=1)
    one = closed_loop(url, request, in_flight=1, seconds=3)
    sixteen = closed_loop(url, request, in_flight=16, seconds=5)
    assert not one.failures + sixteen.failures
    return {"c1 p50 ms": one.ms(50), "c16 req/s": sixteen.rate, "c16 p99 ms": sixteen.ms(99)}


def main() -> None:
    os.sched_setaffinity(0, {1})
    with tempfile.TemporaryDirectory() as folder:
        models = {"identity": {"runtime": "python", "source": f"file:{EXAMPLES / 'identity.py'}", "ttl_s": 0}}
        coordinator = Coordinator(Path(folder) / "data", config={"models": models}, prefix=["taskset", "-c", "0"])
        try:
            coordinator.start()
            coordinator.post("/api/v1/models/identity/load").raise_for_status()
            url, key = coordinator.endpoints["zmq"], coordinator.key
            requests = {"JSON": json_request(key), "msgpack": msgpack_request(key)}
            rounds = [{name: measure(url, request) for name, request in requests.items()} for _ in range(ROUNDS)]
        finally:
            coordinator.close()
    for form in requests:
        for name in rounds[0][form]:
            values = [figures[form][name] for figures in rounds]
            median = statistics.median(values)
            print(f"{form:8} {name:12} median {median:10.2f}   from {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
