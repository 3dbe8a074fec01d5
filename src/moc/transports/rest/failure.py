"""How a request that failed is answered."""

from dataclasses import dataclass

from starlette.exceptions import HTTPException

from moc.kernel.errors import InvalidRequest, MocError, NotFound
from moc.transports.rest.exchange import Exchange, Header
from moc.transports.status import http_body, http_status, retry_after_s, unexpected

_NOT_FOUND = 404
_METHOD_NOT_ALLOWED = 405
_CHALLENGE = {True: b'Basic realm="moc", charset="UTF-8"', False: b'Bearer realm="moc"'}


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer that says no, in the shape of the route's protocol."""

    status: int
    headers: list[Header]
    body: bytes


def failure_of(error: Exception, exchange: Exchange, *, browser: bool = False) -> Failure:
    """The answer to a request that ended with `error`; `browser` asks for the key the way browsers understand."""
    headers: list[Header] = []
    status = None
    if isinstance(error, HTTPException):
        if error.status_code == _METHOD_NOT_ALLOWED:
            status = _METHOD_NOT_ALLOWED
            headers.append((b"allow", (error.headers or {}).get("Allow", "").encode("ascii")))
        error = _own(error, exchange)
    if not isinstance(error, MocError):
        error = unexpected(exchange.request_id)
    if error.code == "unauthenticated":
        headers.append((b"www-authenticate", _CHALLENGE[browser]))
    wait = retry_after_s(error)
    if wait is not None:
        headers.append((b"retry-after", b"%d" % wait))
    body = http_body(error, exchange.shape, exchange.request_id)
    return Failure(status or http_status(error, exchange.shape), headers, body)


def _own(error: HTTPException, exchange: Exchange) -> MocError:
    method, path = exchange.scope["method"], exchange.scope["path"][:200]
    if error.status_code == _METHOD_NOT_ALLOWED:
        return InvalidRequest(f"{method} is not a method of {path}; /docs lists what is")
    if error.status_code == _NOT_FOUND:
        return NotFound(f"there is nothing at {path}; /docs lists what there is")
    return InvalidRequest(error.detail)
