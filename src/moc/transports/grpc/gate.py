"""The door: every call is known before its handler runs, and what goes wrong in it is told as an error of ours."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import structlog

from moc.kernel.errors import Internal, MocError
from moc.security.audit import ORIGIN, Origin
from moc.security.authenticator import Authenticator
from moc.transports.grpc.call import Call, Method, Stream, Unary
from moc.transports.status import unexpected

log = structlog.get_logger(__name__)


class Gate:
    """Stands before methods: calls of those that are not public need a key."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    def before(self, method: Method) -> Method:
        """The method with the gate before it."""
        return self._unary(method) if isinstance(method, Unary) else self._stream(method)

    def _admit(self, call: Call) -> None:
        ORIGIN.set(Origin(call.request_id, call.address))
        call.identity = self._authenticator.identify(call.token(), call.address)

    def _unary(self, method: Unary) -> Unary:
        async def admitted(request: bytes, call: Call) -> bytes:
            try:
                if not method.public:
                    self._admit(call)
                return await method.handle(request, call)
            except MocError:
                raise
            except Exception as error:
                raise _failed(call, error) from error

        return Unary(admitted)

    def _stream(self, method: Stream) -> Stream:
        async def admitted(requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes, None]:
            try:
                if not method.public:
                    self._admit(call)
                async with contextlib.aclosing(method.handle(requests, call)) as answers:
                    async for answer in answers:
                        yield answer
            except MocError:
                raise
            except Exception as error:
                raise _failed(call, error) from error

        return Stream(admitted)


def _failed(call: Call, error: Exception) -> Internal:
    log.error("call failed", request_id=call.request_id, method=call.method, exc_info=error)
    return unexpected(call.request_id)
