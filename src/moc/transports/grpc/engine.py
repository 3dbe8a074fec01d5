"""The server engine: grpcio. Nothing else of this program knows it; another engine takes the same methods."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, NoReturn, cast
from urllib.parse import unquote

import structlog

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # our children run another program at once; read by the import

import grpc

from moc.kernel.errors import DeadlineExceeded, InvalidRequest, MocError
from moc.security.tls import TlsFiles
from moc.transports.grpc.call import Call, Metadata, Method, Stream, Unary
from moc.transports.grpc.failure import DETAILS, failure_of
from moc.transports.grpc.limits import Limits

log = structlog.get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class GrpcioEngine(grpc.GenericRpcHandler):
    """Serves methods, by their paths, at an address (port 0 = any free one) from `start` on.

    A call's deadline and its client's leaving cancel its handler. `drain` sends connections away and lets their
    calls end, with no more requests for those that stream; `stop` cuts off what is left.
    """

    def __init__(self, methods: Mapping[str, Method], *, limits: Limits) -> None:
        self._handlers = {path: self._handler(path, method) for path, method in methods.items()}
        self._limits = limits
        self._server: grpc.aio.Server | None = None
        self._draining = asyncio.Event()
        self._readings: set[asyncio.Future[Any]] = set()

    async def start(self, host: str, port: int, tls: TlsFiles | None = None) -> int:
        """Listen, over TLS if it is given; the port. OSError when that is not possible."""
        server = grpc.aio.server(
            handlers=(self,), options=_options(self._limits), maximum_concurrent_rpcs=self._limits.calls_max
        )
        try:
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            if tls is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, await asyncio.to_thread(_credentials, tls))
        except RuntimeError as error:
            raise OSError(str(error)) from None
        await server.start()
        self._server = server
        return port

    async def drain(self) -> None:
        """Take no new connection, and wait for the calls that run now."""
        if self._server is None:
            return
        self._end_requests()
        await self._server.stop(float("inf"))

    async def stop(self) -> None:
        """Close the listener and every connection."""
        server, self._server = self._server, None
        if server is None:
            return
        self._end_requests()
        await server.stop(self._limits.stop_grace_s)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """grpcio's way of asking who answers a method; None is answered UNIMPLEMENTED."""
        return self._handlers.get(handler_call_details.method)

    def _end_requests(self) -> None:
        self._draining.set()
        for reading in self._readings:
            reading.cancel()

    def _handler(self, path: str, method: Method) -> "grpc.RpcMethodHandler[Any, Any]":
        if isinstance(method, Unary):
            return grpc.unary_unary_rpc_method_handler(_unary(path, method))
        return grpc.stream_stream_rpc_method_handler(self._stream(path, method))

    def _stream(self, path: str, method: Stream) -> Callable[[Any, Context], Awaitable[None]]:
        async def run(_: Any, context: Context) -> None:
            call = _call(path, context)
            try:
                async with contextlib.aclosing(method.handle(self._requests(context), call)) as answers:
                    async for message in answers:
                        await self._write(context, message)
            except MocError as error:
                await _refuse(context, call, error)
            context.set_trailing_metadata(tuple(call.trailers))

        return run

    async def _write(self, context: Context, message: bytes) -> None:
        """Send one answer of a stream; DeadlineExceeded when its client does not read."""
        timeout_s = self._limits.write_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await context.write(message)
        except TimeoutError:
            raise DeadlineExceeded(f"nobody read the answers for {timeout_s:g} s; read them as they come") from None

    async def _requests(self, context: Context) -> AsyncIterator[bytes]:
        while not self._draining.is_set():
            reading = asyncio.ensure_future(context.read())
            self._readings.add(reading)
            try:
                message = await reading
            except asyncio.CancelledError:
                if self._draining.is_set() and not _is_cancelled():
                    return
                raise
            finally:
                self._readings.discard(reading)
            if message is grpc.aio.EOF:
                return
            yield message


def _is_cancelled() -> bool:
    """Whether it is the running task that somebody cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _unary(path: str, method: Unary) -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def run(request: bytes, context: Context) -> bytes:
        call = _call(path, context)
        try:
            reply = await method.handle(request, call)
        except MocError as error:
            await _refuse(context, call, error)
        context.set_trailing_metadata(tuple(call.trailers))
        return reply

    return run


def _call(path: str, context: Context) -> Call:
    return Call(
        path,
        cast(Metadata, context.invocation_metadata() or ()),
        remaining_s=context.time_remaining(),
        address=_address(context.peer()),
    )


async def _refuse(context: Context, call: Call, error: MocError) -> NoReturn:
    failure = failure_of(error)
    await context.abort(_CODES[failure.code], failure.message, (*call.trailers, (DETAILS, failure.details)))


def _address(peer: str) -> str:
    """The IP address in `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`; '' for other kinds."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return unquote(rest.rpartition(":")[0]).strip("[]")


def _credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """TLS with these files, looked at for each new connection. grpcio cannot ask for a client's certificate without
    requiring it, so it does not ask.
    """
    taken = files.stamp()

    def newest() -> grpc.ServerCertificateConfiguration | None:
        nonlocal taken
        try:
            stamp = files.stamp()
            if stamp == taken:
                return None
            found, taken = _certificate(files), stamp
        except (OSError, InvalidRequest) as error:
            log.warning("the certificate stays as it was", problem=str(error))
            return None
        return found

    return grpc.dynamic_ssl_server_credentials(
        _certificate(files),
        newest,  # type: ignore[arg-type] # None, for nothing new, is missing there
        require_client_authentication=False,
    )


def _certificate(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    files.context()  # says what is wrong with them
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    return grpc.ssl_server_certificate_configuration([pair])


def _options(limits: Limits) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.so_reuseport", 0),  # a port that is taken is to be an error
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.max_concurrent_streams", limits.streams_max),
        ("grpc.keepalive_time_ms", int(limits.keep_alive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(limits.keep_alive_grace_s * 1000)),
        ("grpc.http2.ping_timeout_ms", int(limits.keep_alive_grace_s * 1000)),  # the one that closes the connection
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(limits.ping_interval_s * 1000)),
    )
