"""Answers that are refusals, over any protocol."""

import math
from collections.abc import Awaitable
from typing import Any

import grpc

from moc.transports.grpc.failure import DETAILS
from moc.transports.grpc.stubs.moc.wire.status_pb2 import ErrorInfo, RetryInfo, Status


class Refused(Exception):
    """What an asker was answered with instead. `code` is the gRPC status where that is all there is."""

    def __init__(self, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


def granted(reply: dict[str, Any]) -> dict[str, Any]:
    """An answer over ZeroMQ that is a success."""
    if not reply["success"]:
        error = reply["error"]
        raise Refused(error["code"], error["message"], error.get("retry_after_s"))
    return reply


async def allowed(call: Awaitable[Any]) -> Any:
    """An answer over gRPC whose status is OK."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        refused = error
    details = dict(refused.trailing_metadata()).get(DETAILS)
    if details is None:
        raise Refused(refused.code().name, refused.details() or "")
    status = Status.FromString(details)
    retry = RetryInfo.FromString(status.details[1].value) if len(status.details) > 1 else None
    code = ErrorInfo.FromString(status.details[0].value).reason.lower()
    raise Refused(code, status.message, None if retry is None else math.ceil(retry.retry_delay.ToMilliseconds() / 1000))
