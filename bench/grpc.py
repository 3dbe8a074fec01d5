"""The hot path over gRPC: ModelInfer on the identity model, beside a bare grpc.aio server that echoes bytes.

Each server has processor 0 (the coordinator together with its worker), in turns; the generator has processor 1.
Run it with `make bench`.
"""

import asyncio
import os
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from bench.http2 import closed_loop
from bench.identity import EXAMPLES
from moc.transports.grpc.stubs.inference.grpc_service_pb2 import ModelInferRequest
from tests.coordinator import Coordinator

PATH = "/inference.GRPCInferenceService/ModelInfer"
ROUNDS = 8
CROWD = 500
PINNED = ["taskset", "-c", "0"]


def infer_request() -> bytes:
    """One inference as it goes over the wire."""
    message = ModelInferRequest(model_name="identity")
    message.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 8])
    message.raw_input_contents.append(struct.pack("<8f", *(0.5 * n for n in range(8))))
    return message.SerializeToString()


async def echo() -> None:
    """The least that grpc.aio can do: an answer that is its request, on a port that it prints."""
    import grpc

    async def same(request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        return request

    service, _, method = PATH[1:].partition("/")
    answered: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(same)
    server = grpc.aio.server(handlers=[grpc.method_handlers_generic_handler(service, {method: answered})])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


@contextmanager
def bare_echo() -> Iterator[int]:
    """The bare server in a process of its own; its port."""
    command = [*PINNED, sys.executable, "-m", "bench.grpc", "echo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


async def measure(port: int, key: str) -> dict[str, float]:
    """One round of figures of one server."""
    request = infer_request()
    await closed_loop(port, PATH, request, key=key, in_flight=4, seconds=0.5)
    one = await closed_loop(port, PATH, request, key=key, in_flight=1, seconds=1)
    sixteen = await closed_loop(port, PATH, request, key=key, in_flight=16, seconds=2)
    crowd = await closed_loop(port, PATH, request, key=key, in_flight=CROWD, seconds=0, once=True)
    assert not one.failures + sixteen.failures + crowd.failures
    assert len(crowd.latencies) == CROWD
    return {
        "c1 p50 ms": one.ms(50),
        "c1 req/s": one.rate,
        "c16 req/s": sixteen.rate,
        "c16 p99 ms": sixteen.ms(99),
        f"{CROWD} at once p95 ms": crowd.ms(95),
    }


def main() -> None:
    os.sched_setaffinity(0, {1})
    model = {"runtime": "python", "source": f"file:{EXAMPLES / 'identity.py'}", "ttl_s": 0, "max_queue": CROWD}
    with tempfile.TemporaryDirectory() as folder, bare_echo() as echo_port:
        coordinator = Coordinator(Path(folder) / "data", config={"models": {"identity": model}}, prefix=PINNED)
        try:
            coordinator.start()
            coordinator.post("/api/v1/models/identity/load").raise_for_status()
            port, key = coordinator.grpc_port, coordinator.key
            rounds = [(uvloop.run(measure(echo_port, key)), uvloop.run(measure(port, key))) for _ in range(ROUNDS)]
        finally:
            coordinator.close()
    for name in rounds[0][0]:
        echoed, served = ([each[side][name] for each in rounds] for side in (0, 1))
        print(f"{name:20} echo {statistics.median(echoed):9.2f}   ModelInfer {statistics.median(served):9.2f}")
    shares = [served["c16 req/s"] / echoed["c16 req/s"] for echoed, served in rounds]
    share = f"median {statistics.median(shares):.2f}   from {min(shares):.2f} to {max(shares):.2f}"
    print(f"{'c16 share of echo':20} {share}")


if __name__ == "__main__":
    asyncio.run(echo()) if sys.argv[1:] == ["echo"] else main()
