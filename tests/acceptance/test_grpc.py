"""gRPC of a real coordinator: where it is told, who finds out what it serves, how it ends."""

import asyncio
import json
import struct
import subprocess
import sys
from pathlib import Path

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from moc.transports.grpc.stubs.inference.grpc_service_pb2 import ModelInferRequest, ModelInferResponse
from tests.coordinator import Coordinator, eventually, short_home

BUF = Path(sys.executable).with_name("buf")
INFER = "/inference.GRPCInferenceService/ModelInfer"
CROWD = 500

SLOW = """
import time

class Model:
    inputs = (("INPUT0", "FP32", (1,)),)
    outputs = (("OUTPUT0", "FP32", (1,)),)

    def infer(self, inputs):
        open({began!r}, "w").close()
        time.sleep(1.0)
        return {{"OUTPUT0": inputs["INPUT0"]}}
"""


def infer_request(model: str, *values: float) -> ModelInferRequest:
    message = ModelInferRequest(model_name=model)
    message.inputs.add(name="INPUT0", datatype="FP32", shape=[1, len(values)] if len(values) > 1 else [1])
    message.raw_input_contents.append(struct.pack(f"<{len(values)}f", *values))
    return message


def curl(coordinator: Coordinator, method: str, message: dict[str, object]) -> "subprocess.CompletedProcess[str]":
    """Ask as a person would: the request as JSON, its type found out by reflection."""
    command = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    command += ["-H", f"authorization: Bearer {coordinator.key}", "--reflect-header", "*", "-d", json.dumps(message)]
    url = f"http://127.0.0.1:{coordinator.grpc_port}/{method}"
    return subprocess.run([*command, url], capture_output=True, text=True, timeout=60)


def test_it_is_told_where_grpc_is(coordinator: Coordinator) -> None:
    place = f"127.0.0.1:{coordinator.grpc_port}"
    assert place in coordinator.output
    assert json.loads((coordinator.data_dir / "endpoints.json").read_text())["grpc"] == place
    assert coordinator.get("/api/v1/system")["urls"]["grpc"] == place


def test_a_tool_without_the_proto_files_can_ask(coordinator: Coordinator) -> None:
    shown = curl(coordinator, "moc.v1.Models/Get", {"reference": "add_sub"})
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["name"] == "add_sub"
    older = curl(coordinator, "modelops.ModelOps/Infer", {"model_name": "nobody", "prompt": "x"})
    assert json.loads(older.stdout)["status"] == "not_found", older.stderr
    refused = curl(coordinator, "moc.v1.Models/Get", {"reference": "nobody"})
    assert refused.returncode != 0
    assert "not_found" in refused.stderr
    assert "google.rpc.ErrorInfo" in refused.stderr


async def test_five_hundred_at_once_all_succeed(coordinator: Coordinator) -> None:
    async def ask(number: int) -> bool:
        message = infer_request("identity", *[float(number)] * 8)
        call: grpc.aio.UnaryUnaryCall[bytes, bytes] = infer(message.SerializeToString(), metadata=metadata)
        return ModelInferResponse.FromString(await call).raw_output_contents == message.raw_input_contents

    metadata = (("authorization", f"Bearer {coordinator.key}"),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{coordinator.grpc_port}") as channel:
        infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)
        assert all(await asyncio.gather(*(ask(number) for number in range(CROWD))))


def test_a_call_that_runs_is_answered_before_the_end(tmp_path: Path) -> None:
    began = tmp_path / "began"
    (tmp_path / "slow.py").write_text(SLOW.format(began=str(began)))
    models = {"slow": {"runtime": "python", "source": f"file:{tmp_path / 'slow.py'}", "preload": True}}
    with short_home() as data_dir:
        coordinator = Coordinator(data_dir, config={"models": models}, arguments=["--stop-workers"])
        try:
            coordinator.start()
            metadata = (("authorization", f"Bearer {coordinator.key}"),)
            with grpc.insecure_channel(f"127.0.0.1:{coordinator.grpc_port}") as channel:
                infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)
                call = infer.future(infer_request("slow", 1.5).SerializeToString(), metadata=metadata)
                eventually(began.exists)
                assert coordinator.stop() == 0
                answer = ModelInferResponse.FromString(call.result(timeout=30))
            assert struct.unpack("<f", answer.raw_output_contents[0]) == (1.5,)
        finally:
            coordinator.close()


def test_health_needs_no_key(coordinator: Coordinator) -> None:
    request: Message = health_pb2.HealthCheckRequest(service="moc.v1.Inference")
    with grpc.insecure_channel(f"127.0.0.1:{coordinator.grpc_port}") as channel:
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
        answer = health_pb2.HealthCheckResponse.FromString(check(request.SerializeToString(), timeout=30))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
