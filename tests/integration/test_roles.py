"""Every operation by every role, on the wire: each transport has its own table of what a caller can ask there.

A table names all there is, which is compared with what the transport says of itself, so that nothing is forgotten.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Protocol

import grpc
import httpx
import pytest
import zmq
import zmq.asyncio
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from moc.security.identity import Role
from moc.security.key import KeyTerms
from moc.security.policy import ALLOWED, Operation
from moc.service.services import Services
from moc.transports.grpc.server import GrpcServer, methods_of
from moc.transports.grpc.stubs.inference import grpc_service_pb2 as pb
from moc.transports.grpc.stubs.moc.v1 import devices_pb2, inference_pb2, leases_pb2, models_pb2, system_pb2
from moc.transports.grpc.stubs.modelops import model_ops_pb2
from moc.transports.zmq.actions import actions_of
from moc.transports.zmq.limits import Limits as ZmqLimits
from moc.transports.zmq.server import ZmqServer
from tests.grpc_stack import OIP
from tests.rest_stack import RestStack

TENSORS: Final = {"inputs": [{"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.0] * 8}]}
NOBODY: Final = {"model": "nobody", "messages": [], "prompt": "x", "input": "x", "text_input": "x"}
NEW_MODEL: Final = {"name": "new", "runtime": "python", "source": "file:nowhere.py"}
NEEDS: Final[Mapping[str, Operation | None]] = {
    "GET /livez": None,
    "GET /readyz": None,
    "GET /startupz": None,
    "GET /health": None,
    "GET /metrics": Operation.READ_SYSTEM,
    "GET /api/v1/models": Operation.READ_MODELS,
    "POST /api/v1/models": Operation.CHANGE_MODELS,
    "GET /api/v1/models/{reference}": Operation.READ_MODELS,
    "DELETE /api/v1/models/{reference}": Operation.CHANGE_MODELS,
    "GET /api/v1/models/{reference}/explain": Operation.READ_MODELS,
    "GET /api/v1/models/{name}/versions": Operation.READ_MODELS,
    "GET /api/v1/models/{name}/versions/{version}": Operation.READ_MODELS,
    "DELETE /api/v1/models/{name}/versions/{version}": Operation.CHANGE_MODELS,
    "POST /api/v1/models/{reference}/pull": Operation.CHANGE_MODELS,
    "POST /api/v1/models/{name}/versions/{version}/pull": Operation.CHANGE_MODELS,
    "POST /api/v1/models/{reference}/load": Operation.CHANGE_MODELS,
    "POST /api/v1/models/{name}/versions/{version}/load": Operation.CHANGE_MODELS,
    "POST /api/v1/models/{reference}/unload": Operation.CHANGE_MODELS,
    "POST /api/v1/models/{name}/versions/{version}/unload": Operation.CHANGE_MODELS,
    "GET /api/v1/aliases": Operation.READ_MODELS,
    "POST /api/v1/aliases": Operation.CHANGE_MODELS,
    "GET /api/v1/aliases/{name}": Operation.READ_MODELS,
    "PUT /api/v1/aliases/{name}": Operation.CHANGE_MODELS,
    "PATCH /api/v1/aliases/{name}": Operation.CHANGE_MODELS,
    "DELETE /api/v1/aliases/{name}": Operation.CHANGE_MODELS,
    "GET /api/v1/aliases/{name}/history": Operation.READ_MODELS,
    "POST /api/v1/aliases/{name}/rollback": Operation.CHANGE_MODELS,
    "GET /api/v1/rollouts": Operation.READ_MODELS,
    "POST /api/v1/rollouts": Operation.CHANGE_MODELS,
    "GET /api/v1/rollouts/{rollout}": Operation.READ_MODELS,
    "PATCH /api/v1/rollouts/{rollout}": Operation.CHANGE_MODELS,
    "GET /api/v1/devices": Operation.READ_DEVICES,
    "GET /api/v1/devices/{device_id}": Operation.READ_DEVICES,
    "PATCH /api/v1/devices/{device_id}": Operation.CHANGE_DEVICES,
    "GET /api/v1/leases": Operation.READ_LEASES,
    "POST /api/v1/leases": Operation.CHANGE_LEASES,
    "GET /api/v1/leases/{lease_id}": Operation.READ_LEASES,
    "DELETE /api/v1/leases/{lease_id}": Operation.CHANGE_LEASES,
    "POST /api/v1/leases/{lease_id}/renew": Operation.CHANGE_LEASES,
    "GET /api/v1/keys": Operation.READ_KEYS,
    "POST /api/v1/keys": Operation.CHANGE_KEYS,
    "GET /api/v1/keys/{key_id}": Operation.READ_KEYS,
    "DELETE /api/v1/keys/{key_id}": Operation.CHANGE_KEYS,
    "POST /api/v1/keys/{key_id}/rotate": Operation.CHANGE_KEYS,
    "GET /api/v1/config": Operation.READ_CONFIG,
    "PUT /api/v1/config": Operation.CHANGE_CONFIG,
    "POST /api/v1/config/diff": Operation.READ_CONFIG,
    "GET /api/v1/config/history": Operation.READ_CONFIG,
    "POST /api/v1/config/rollback": Operation.CHANGE_CONFIG,
    "GET /api/v1/audit": Operation.READ_AUDIT,
    "GET /api/v1/audit/verify": Operation.READ_AUDIT,
    "GET /api/v1/workers": Operation.READ_SYSTEM,
    "GET /api/v1/workers/{worker_id}": Operation.READ_SYSTEM,
    "GET /api/v1/system": Operation.READ_SYSTEM,
    "GET /api/v1/events": Operation.READ_SYSTEM,
    "GET /v2": None,
    "GET /v2/": None,
    "GET /v2/health/live": None,
    "GET /v2/health/ready": None,
    "GET /v2/models/stats": Operation.READ_MODELS,
    "POST /v2/repository/index": Operation.READ_MODELS,
    "POST /v2/repository/models/{model}/load": Operation.CHANGE_MODELS,
    "POST /v2/repository/models/{model}/unload": Operation.CHANGE_MODELS,
    "POST /v1/chat/completions": Operation.INFER,
    "POST /v1/completions": Operation.INFER,
    "POST /v1/embeddings": Operation.INFER,
    "POST /v1/messages": Operation.INFER,
    "POST /v1/responses": Operation.INFER,
    "POST /v1/rerank": Operation.INFER,
    "POST /v1/audio/transcriptions": Operation.INFER,
    "POST /inference": Operation.INFER,
    "GET /models": Operation.READ_MODELS,
    "POST /models": Operation.CHANGE_MODELS,
    "DELETE /models/{name}": Operation.CHANGE_MODELS,
    "GET /learning/jobs": None,
    "POST /learning/jobs": None,
    "GET /goals": None,
    "POST /goals": None,
    "GET /v1/models": Operation.READ_MODELS,
    "GET /v1/models/{model}": Operation.READ_MODELS,
    **{
        f"{method} /v2/models/{{model}}{version}{verb}": operation
        for version in ("", "/versions/{version}")
        for method, verb, operation in (
            ("GET", "", Operation.READ_MODELS),
            ("GET", "/ready", Operation.READ_MODELS),
            ("GET", "/stats", Operation.READ_MODELS),
            ("GET", "/config", Operation.READ_MODELS),
            ("POST", "/infer", Operation.INFER),
            ("POST", "/generate", Operation.INFER),
            ("POST", "/generate_stream", Operation.INFER),
        )
    },
}
BODIES: Final[dict[str, Any]] = {
    "POST /api/v1/models": NEW_MODEL,
    "POST /api/v1/leases": {"bytes": 1},
    "POST /api/v1/leases/{lease_id}/renew": {"token": "1.1"},
    "POST /api/v1/keys": {"role": "viewer"},
    "PUT /api/v1/config": {"text": "unknown: 1"},
    "POST /api/v1/config/diff": {"text": "unknown: 1"},
    "POST /api/v1/config/rollback": {"revision": 99},
    "PATCH /api/v1/devices/{device_id}": {"state": "online"},
    "POST /api/v1/aliases": {"name": "new", "versions": {"nobody": 1}},
    "PUT /api/v1/aliases/{name}": {"versions": {"nobody": 1}},
    "PATCH /api/v1/aliases/{name}": {"versions": {"nobody": 1}},
    "POST /api/v1/aliases/{name}/rollback": {},
    "POST /api/v1/rollouts": {"alias": "nobody", "to": "nobody@1"},
    "PATCH /api/v1/rollouts/{rollout}": {"state": "aborted"},
    "POST /models": {"model_name": "nobody"},
    "POST /inference": {"model": "nobody", "prompt": "x"},
    "POST /v1/messages": {"model": "nobody", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]},
    "POST /v1/responses": {"model": "nobody", "input": "x"},
    "POST /v1/rerank": {"model": "nobody", "query": "x", "documents": ["x"]},
}


def _struct(**values: str) -> Struct:
    struct = Struct()
    struct.update(values)
    return struct


GRPC_NEEDS: Final[Mapping[str, Operation | None]] = {
    f"{OIP}/ServerLive": None,
    f"{OIP}/ServerReady": None,
    f"{OIP}/ServerMetadata": None,
    f"{OIP}/ModelReady": Operation.READ_MODELS,
    f"{OIP}/ModelMetadata": Operation.READ_MODELS,
    f"{OIP}/ModelConfig": Operation.READ_MODELS,
    f"{OIP}/ModelStatistics": Operation.READ_MODELS,
    f"{OIP}/ModelInfer": Operation.INFER,
    f"{OIP}/ModelStreamInfer": Operation.INFER,
    f"{OIP}/RepositoryIndex": Operation.READ_MODELS,
    f"{OIP}/RepositoryModelLoad": Operation.CHANGE_MODELS,
    f"{OIP}/RepositoryModelUnload": Operation.CHANGE_MODELS,
    "/moc.v1.Models/List": Operation.READ_MODELS,
    "/moc.v1.Models/Versions": Operation.READ_MODELS,
    "/moc.v1.Models/Get": Operation.READ_MODELS,
    "/moc.v1.Models/Add": Operation.CHANGE_MODELS,
    "/moc.v1.Models/Pull": Operation.CHANGE_MODELS,
    "/moc.v1.Models/Load": Operation.CHANGE_MODELS,
    "/moc.v1.Models/Unload": Operation.CHANGE_MODELS,
    "/moc.v1.Models/Remove": Operation.CHANGE_MODELS,
    "/moc.v1.Inference/Infer": Operation.INFER,
    "/moc.v1.Inference/InferStream": Operation.INFER,
    "/moc.v1.Inference/Chat": Operation.INFER,
    "/moc.v1.Devices/List": Operation.READ_DEVICES,
    "/moc.v1.Devices/Get": Operation.READ_DEVICES,
    "/moc.v1.Devices/SetState": Operation.CHANGE_DEVICES,
    "/moc.v1.Leases/List": Operation.READ_LEASES,
    "/moc.v1.Leases/Get": Operation.READ_LEASES,
    "/moc.v1.Leases/Acquire": Operation.CHANGE_LEASES,
    "/moc.v1.Leases/Renew": Operation.CHANGE_LEASES,
    "/moc.v1.Leases/Release": Operation.CHANGE_LEASES,
    "/moc.v1.System/Status": Operation.READ_SYSTEM,
    "/moc.v1.System/Events": Operation.READ_SYSTEM,
    "/modelops.ModelOps/Infer": Operation.INFER,
    "/modelops.ModelOps/LoadModel": Operation.CHANGE_MODELS,
    "/modelops.ModelOps/UnloadModel": Operation.CHANGE_MODELS,
    "/modelops.ModelOps/ListModels": Operation.READ_MODELS,
    "/modelops.ModelOps/AcquireGpuLease": Operation.CHANGE_LEASES,
    "/modelops.ModelOps/ReleaseGpuLease": Operation.CHANGE_LEASES,
    "/grpc.health.v1.Health/Check": None,
    "/grpc.health.v1.Health/Watch": None,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": None,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": None,
}
GRPC_INPUT: Final = pb.ModelInferRequest.InferInputTensor(name="INPUT0", datatype="FP32", shape=[1, 8])
GRPC_INFER: Final = pb.ModelInferRequest(model_name="nobody", inputs=[GRPC_INPUT], raw_input_contents=[bytes(32)])
MOC_INPUT: Final = inference_pb2.Tensor(name="INPUT0", datatype="FP32", shape=[1, 8], data=bytes(32))
MOC_INFER: Final = inference_pb2.InferRequest(model="nobody", inputs=[MOC_INPUT])
REFERENCE: Final = models_pb2.ModelReference(reference="nobody")
GRPC_MESSAGES: Final[Mapping[str, Message]] = {
    f"{OIP}/ModelReady": pb.ModelReadyRequest(name="nobody"),
    f"{OIP}/ModelMetadata": pb.ModelMetadataRequest(name="nobody"),
    f"{OIP}/ModelConfig": pb.ModelConfigRequest(name="nobody"),
    f"{OIP}/ModelStatistics": pb.ModelStatisticsRequest(name="nobody"),
    f"{OIP}/ModelInfer": GRPC_INFER,
    f"{OIP}/ModelStreamInfer": GRPC_INFER,
    f"{OIP}/RepositoryModelLoad": pb.RepositoryModelLoadRequest(model_name="nobody"),
    f"{OIP}/RepositoryModelUnload": pb.RepositoryModelUnloadRequest(model_name="nobody"),
    **{f"/moc.v1.Models/{verb}": REFERENCE for verb in ("Versions", "Get", "Pull", "Load", "Unload", "Remove")},
    "/moc.v1.Models/Add": models_pb2.AddModelRequest(name="new", spec=_struct(runtime="python", source="file:x.py")),
    "/moc.v1.Inference/Infer": MOC_INFER,
    "/moc.v1.Inference/InferStream": inference_pb2.InferBatch(
        items=[inference_pb2.InferItem(id="1", request=MOC_INFER)]
    ),
    "/moc.v1.Inference/Chat": inference_pb2.ChatRequest(
        model="nobody", messages=[inference_pb2.ChatMessage(role="user", content="x")]
    ),
    "/moc.v1.Devices/Get": devices_pb2.GetDeviceRequest(id="nowhere"),
    "/moc.v1.Devices/SetState": devices_pb2.SetDeviceStateRequest(id="nowhere", state="online"),
    "/moc.v1.Leases/Get": leases_pb2.GetLeaseRequest(id="nobody"),
    "/moc.v1.Leases/Acquire": leases_pb2.AcquireLeaseRequest(bytes=1),
    "/moc.v1.Leases/Renew": leases_pb2.RenewLeaseRequest(id="nobody", token="1.1"),
    "/moc.v1.Leases/Release": leases_pb2.ReleaseLeaseRequest(id="nobody", token="1.1"),
    "/moc.v1.System/Events": system_pb2.EventsRequest(after=0),
    "/modelops.ModelOps/Infer": model_ops_pb2.InferRequest(model_name="nobody", prompt="x"),
    "/modelops.ModelOps/LoadModel": model_ops_pb2.LoadModelRequest(model_name="nobody"),
    "/modelops.ModelOps/UnloadModel": model_ops_pb2.UnloadModelRequest(model_name="nobody"),
    "/modelops.ModelOps/AcquireGpuLease": model_ops_pb2.AcquireGpuLeaseRequest(vram_estimate_mb=1),
    "/modelops.ModelOps/ReleaseGpuLease": model_ops_pb2.ReleaseGpuLeaseRequest(lease_id="nobody"),
}
GRPC_BIDIRECTIONAL: Final = ("ModelStreamInfer", "InferStream", "ServerReflectionInfo")
GRPC_ANSWERED_IN_PARTS: Final = ("Chat", "Acquire", "Watch", "Events")
ZMQ_NEEDS: Final[Mapping[str, Operation | None]] = {
    "health": None,
    "discovery": None,
    "cancel": None,
    "submit_job": None,
    "job": None,
    "create_goal": None,
    "goal": None,
    "capabilities": Operation.READ_MODELS,
    "status": Operation.READ_SYSTEM,
    "list_models": Operation.READ_MODELS,
    "load_model": Operation.CHANGE_MODELS,
    "unload_model": Operation.CHANGE_MODELS,
    "infer": Operation.INFER,
    "chat": Operation.INFER,
    "embed": Operation.INFER,
    "acquire_lease": Operation.CHANGE_LEASES,
    "renew_lease": Operation.CHANGE_LEASES,
    "release_lease": Operation.CHANGE_LEASES,
}
ZMQ_PAYLOADS: Final[dict[str, Any]] = {
    "infer": {"model": "nobody", **TENSORS},
    "chat": {"model": "nobody", "messages": []},
    "embed": {"model": "nobody", "input": "x"},
    "load_model": {"model": "nobody"},
    "unload_model": {"model": "nobody"},
    "acquire_lease": {"bytes": 1},
    "renew_lease": {"id": "nobody", "token": "1.1"},
    "release_lease": {"id": "nobody", "token": "1.1"},
    "cancel": {"request_id": "nobody"},
}


class Transport(Protocol):
    """A way to ask; one for each protocol that the coordinator speaks.

    `needs` says what each of its doors needs, None = no more than a key if that; `lists` are those that show a key as
    much as it may see instead of refusing it.
    """

    @property
    def needs(self) -> Mapping[str, Operation | None]: ...

    @property
    def lists(self) -> frozenset[str]: ...

    async def advertised(self) -> set[str]:
        """Every door there is."""
        ...

    async def ask(self, key: str, door: str) -> str:
        """`forbidden`, `unauthenticated`, or `ok` for any other answer."""
        ...


class Rest:
    """Doors are a method and a path."""

    needs = NEEDS
    lists = frozenset(
        {
            "GET /api/v1/aliases",
            "GET /api/v1/rollouts",
            "GET /api/v1/models",
            "GET /models",
            "GET /v1/models",
            "GET /v2/models/stats",
            "POST /v2/repository/index",
        }
    )

    def __init__(self, stack: RestStack, client: httpx.AsyncClient) -> None:
        self._stack = stack
        self._client = client

    async def advertised(self) -> set[str]:
        answer = await self._client.get("/openapi.json", headers={"x-api-key": self._stack.key})
        paths = answer.json()["paths"]
        own = {"/docs", "/openapi.json"}
        return {f"{method.upper()} {path}" for path in paths.keys() - own for method in paths[path]}

    async def ask(self, key: str, door: str) -> str:
        method, _, path = door.partition(" ")
        path = path.replace("{version}", "1").replace("{device_id}", "nowhere")
        for name in ("model", "reference", "name", "rollout", "lease_id", "key_id", "worker_id"):
            path = path.replace(f"{{{name}}}", "nobody")
        query = {"follow": "false"} if path.endswith("/events") else {"token": "1.1"} if method == "DELETE" else {}
        body = BODIES.get(door, {**NOBODY, **TENSORS}) if method in ("POST", "PUT", "PATCH") else None
        if path.endswith(("/load", "/unload", "/rotate", "/index")):
            body = {}
        sent: dict[str, Any] = {"json": body}
        if path.endswith("/transcriptions"):
            sent = {"data": {"model": "nobody"}, "files": {"file": b"sound"}}
        answer = await self._client.request(method, path, params=query, headers={"x-api-key": key}, **sent)
        return {401: "unauthenticated", 403: "forbidden"}.get(answer.status_code, "ok")


class Grpc:
    """Doors are methods."""

    needs = GRPC_NEEDS
    lists = frozenset({f"{OIP}/RepositoryIndex", "/moc.v1.Models/List", "/modelops.ModelOps/ListModels"})

    def __init__(self, services: Services, channel: grpc.aio.Channel) -> None:
        self._services = services
        self._channel = channel

    async def advertised(self) -> set[str]:
        return set(methods_of(self._services, asyncio.Event()))

    async def ask(self, key: str, door: str) -> str:
        method = door.rpartition("/")[2]
        message = GRPC_MESSAGES.get(door, pb.ServerLiveRequest()).SerializeToString()
        metadata = (("x-api-key", key),)
        try:
            if method in GRPC_BIDIRECTIONAL:
                streamed: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(door)
                answer = b"".join([part async for part in streamed(iter([message]), metadata=metadata)])
            elif method in GRPC_ANSWERED_IN_PARTS:
                watched: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(door)
                call = watched(message, metadata=metadata)
                answer = await anext(aiter(call))
                call.cancel()
            else:
                method_of: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(door)
                answer = await method_of(message, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            codes = {grpc.StatusCode.PERMISSION_DENIED: "forbidden", grpc.StatusCode.UNAUTHENTICATED: "unauthenticated"}
            return codes.get(error.code(), "ok")
        # A stream tells the errors of its requests in its messages.
        return "forbidden" if b"ask for a key" in answer else "ok"


class Zmq:
    """Doors are actions."""

    needs = ZMQ_NEEDS
    lists = frozenset({"list_models", "capabilities"})

    def __init__(self, services: Services, url: str, context: zmq.asyncio.Context) -> None:
        self._services = services
        self._url = url
        self._context = context

    async def advertised(self) -> set[str]:
        return set(actions_of(self._services, ZmqLimits()))

    async def ask(self, key: str, door: str) -> str:
        with self._context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(self._url)
            message = {"action": door, "payload": ZMQ_PAYLOADS.get(door, {}), "request_id": "1", "key": key}
            await socket.send_multipart([b"", json.dumps(message).encode()])
            async with asyncio.timeout(10):
                answer = json.loads((await socket.recv_multipart())[1])
        code = "" if answer["success"] else answer["error"]["code"]
        return code if code in ("unauthenticated", "forbidden") else "ok"


@pytest.fixture(params=["rest", "grpc", "zmq"])
async def transport(rest_stack: RestStack, request: pytest.FixtureRequest) -> AsyncIterator[Transport]:
    """Each of them, over the same services."""
    services = rest_stack.services
    if request.param == "rest":
        async with httpx.AsyncClient(base_url=rest_stack.rest.url) as client:
            yield Rest(rest_stack, client)
    elif request.param == "grpc":
        listener = GrpcServer(services, host="127.0.0.1", port=0)
        await listener.start()
        async with grpc.aio.insecure_channel(listener.target) as channel:
            yield Grpc(services, channel)
        await listener.stop()
    else:
        server = ZmqServer(services, host="127.0.0.1", port=0)
        await server.start()
        with zmq.asyncio.Context() as context:
            yield Zmq(services, server.url, context)
        await server.stop()


async def test_the_table_has_all_there_is(transport: Transport) -> None:
    assert await transport.advertised() == set(transport.needs)


@pytest.mark.parametrize("role", Role)
async def test_every_operation_by_every_role(rest_stack: RestStack, transport: Transport, role: Role) -> None:
    token, _ = await rest_stack.keys.create(KeyTerms(role=role), actor="test")
    for door, operation in transport.needs.items():
        may = operation is None or operation in ALLOWED[role]
        assert (door, await transport.ask(token, door)) == (door, "ok" if may else "forbidden")


async def test_a_key_for_other_models_gets_to_none_of_this(rest_stack: RestStack, transport: Transport) -> None:
    token, _ = await rest_stack.keys.create(KeyTerms(role=Role.OPERATOR, models=("mine-*",)), actor="test")
    for door, operation in transport.needs.items():
        may = operation is None or door in transport.lists
        assert (door, await transport.ask(token, door)) == (door, "ok" if may else "forbidden")
