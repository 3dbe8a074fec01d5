"""The gRPC server on a free loopback port, over the services of a `RestStack`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from moc.security.tls import TlsFiles
from moc.transports.grpc.failure import DETAILS
from moc.transports.grpc.limits import Limits
from moc.transports.grpc.server import GrpcServer
from moc.transports.grpc.stubs.inference import grpc_service_pb2 as pb
from moc.transports.grpc.stubs.moc.wire.status_pb2 import ErrorInfo, Status
from tests.rest_stack import RestStack, running

A = TypeVar("A", bound=Message)
OIP = "/inference.GRPCInferenceService"


class GrpcStack:
    """A REST stack whose services are served over gRPC too, with a channel to it."""

    def __init__(self, rest: RestStack, server: GrpcServer, channel: grpc.aio.Channel) -> None:
        self.rest = rest
        self.server = server
        self.channel = channel
        self.key: str | None = rest.key

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call must carry."""
        return () if self.key is None else (("authorization", f"Bearer {self.key}"),)

    async def ask(self, path: str, message: Message, answer: type[A], **options: Any) -> A:
        """One unary call; AioRpcError when it is refused."""
        return answer.FromString(await self.call(path, message, **options))

    def call(
        self, path: str, message: Message, *, metadata: tuple[tuple[str, str], ...] = (), **options: Any
    ) -> "grpc.aio.UnaryUnaryCall[bytes, bytes]":
        """One unary call that has begun."""
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(path)
        return method(message.SerializeToString(), metadata=(*self.metadata, *metadata), **options)

    def stream(self, path: str) -> "grpc.aio.StreamStreamCall[bytes, bytes]":
        """A stream that has begun."""
        return self.channel.stream_stream(path)(metadata=self.metadata)

    async def infer(self, message: pb.ModelInferRequest, **options: Any) -> pb.ModelInferResponse:
        """One inference."""
        return await self.ask(f"{OIP}/ModelInfer", message, pb.ModelInferResponse, **options)


@asynccontextmanager
async def serving(
    data_dir: Path, limits: Limits | None = None, *, tls: TlsFiles | None = None
) -> AsyncIterator[GrpcStack]:
    """A stack that is started and ready, and stopped at the end."""
    async with running(data_dir) as rest:
        server = GrpcServer(rest.services, host="127.0.0.1", port=0, limits=limits or Limits(stop_grace_s=0.2), tls=tls)
        await server.start()
        try:
            async with grpc.aio.insecure_channel(server.target) as channel:
                yield GrpcStack(rest, server, channel)
        finally:
            await server.stop()


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The code of ours that a refused call's details name, in capitals."""
    status = Status.FromString(dict(error.trailing_metadata())[DETAILS])
    return ErrorInfo.FromString(status.details[0].value).reason
