"""Every operation by every role, on the wire: each transport has its own table of what a caller can ask there.

A table names all there is, which is compared with what the transport says of itself, so that nothing is forgotten.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import grpc
import httpx
import pytest
import zmq
import zmq.asyncio

from moc.security.identity import Role
from moc.security.key import KeyTerms
from moc.security.policy import ALLOWED, Operation
from moc.service.services import Services
from moc.transports.grpc.server import GrpcServer, methods_of
from moc.transports.grpc.stubs.inference import grpc_service_pb2 as pb
from moc.transports.zmq.actions import actions_of
from moc.transports.zmq.limits import Limits as ZmqLimits
from moc.transports.zmq.server import ZmqServer
from tests.doors import (
    BODIES,
    GRPC_ANSWERED_IN_PARTS,
    GRPC_BIDIRECTIONAL,
    GRPC_MESSAGES,
    GRPC_NEEDS,
    NEEDS,
    NOBODY,
    TENSORS,
    ZMQ_NEEDS,
    ZMQ_PAYLOADS,
)
from tests.grpc_stack import OIP
from tests.rest_stack import RestStack


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
            "GET /v1/files",
            "POST /v1/files",
            "GET /api/v1/aliases",
            "GET /api/v1/rollouts",
            "GET /api/v1/models",
            "GET /api/v1/jobs",
            "GET /api/v1/evaluations",
            "GET /v1/fine_tuning/jobs",
            "GET /learning/jobs",
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
        for name in ("model", "reference", "name", "rollout", "lease_id", "key_id", "worker_id", "job_id", "file_id"):
            path = path.replace(f"{{{name}}}", "nobody")
        query = {"follow": "false"} if path.endswith("/events") else {"token": "1.1"} if method == "DELETE" else {}
        body = BODIES.get(door, {**NOBODY, **TENSORS}) if method in ("POST", "PUT", "PATCH") else None
        if path.endswith(("/load", "/unload", "/rotate", "/index")):
            body = {}
        sent: dict[str, Any] = {"json": body}
        if path.endswith("/transcriptions"):
            sent = {"data": {"model": "nobody"}, "files": {"file": b"sound"}}
        elif door == "POST /v1/files":
            sent = {"data": {"purpose": "evals"}, "files": {"file": b"rows"}}
        answer = await self._client.request(method, path, params=query, headers={"x-api-key": key}, **sent)
        return {401: "unauthenticated", 403: "forbidden"}.get(answer.status_code, "ok")


class Grpc:
    """Doors are methods."""

    needs = GRPC_NEEDS
    lists = frozenset(
        {f"{OIP}/RepositoryIndex", "/moc.v1.Models/List", "/moc.v1.Jobs/List", "/modelops.ModelOps/ListModels"}
    )

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
    lists = frozenset({"list_models", "list_jobs", "capabilities"})

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
