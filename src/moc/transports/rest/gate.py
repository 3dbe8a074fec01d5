"""The door: every request is known, allowed and bounded before anything else looks at it."""

import asyncio
import re
from typing import Final

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from moc.kernel.errors import Forbidden, MocError
from moc.security.audit import ORIGIN, Origin
from moc.security.authenticator import Authenticator
from moc.security.identity import Identity
from moc.transports.rest.disconnect import Watchman
from moc.transports.rest.exchange import Disconnected, Exchange
from moc.transports.rest.failure import failure_of
from moc.transports.rest.limits import Limits
from moc.transports.rest.operation import EXCHANGE
from moc.transports.status import Shape

log = structlog.get_logger(__name__)

BROWSER_PATHS: Final = frozenset({"/docs", "/openapi.json"})
"""Where a key may also be the password of HTTP Basic: a browser cannot be told to send anything else."""

_CALLED_MAX: Final = 64
"""How many spellings of an allowed host are remembered."""

_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::\d*)?")


class Gate:
    """An ASGI application in front of two others: one for the inference protocols, one for the rest.

    `hosts`, when given, are the only names the server may be called by: a page of another site that had
    its own name pointed at this machine would call it by that name. `public` paths need no key; who answers
    `unbounded` ones bounds their bodies. Requests that are cancelled once `closing` is set end in silence: their
    connections are gone.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        *,
        limits: Limits,
        protocols: ASGIApp,
        management: ASGIApp,
        public: frozenset[str],
        unbounded: frozenset[str],
        hosts: frozenset[str] | None,
        closing: asyncio.Event,
    ) -> None:
        self._authenticator = authenticator
        self._limits = limits
        self._called: set[bytes] = set()
        self._watchman = Watchman(limits.watch_after_s)
        self._protocols = protocols
        self._management = management
        self._public = public
        self._unbounded = unbounded
        self._closing = closing
        self._hosts = None if hosts is None else frozenset(host.encode("ascii") for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = scope[EXCHANGE] = Exchange(scope, receive, send, self._limits, self._watchman)
        try:
            self._admit(exchange)
            if exchange.shape is Shape.NATIVE:
                await self._management(scope, receive, exchange.send)
            else:
                scope["app"] = self  # asks the router to raise for an unknown path or method
                await self._protocols(scope, receive, send)
        except (MocError, HTTPException) as error:
            await self._refuse(exchange, error)
        except Disconnected:
            return
        except asyncio.CancelledError:
            if not (exchange.gone or self._closing.is_set()):
                raise
        except Exception as error:
            log.error("request failed", request_id=exchange.request_id, path=scope["path"], exc_info=error)
            await self._refuse(exchange, error)

    def _admit(self, exchange: Exchange) -> None:
        if self._hosts is not None:
            self._check_host(exchange.header(b"host"), self._hosts)
        path = exchange.scope["path"]
        if path not in self._public:
            address = exchange.address
            ORIGIN.set(Origin(exchange.request_id, address))
            exchange.identity = self._identify(exchange, exchange.token(basic=path in BROWSER_PATHS), address)
        if path not in self._unbounded:
            exchange.check_length()

    def _identify(self, exchange: Exchange, token: str | None, address: str) -> Identity:
        if token is None and exchange.certificate is not None:
            return self._authenticator.identify_certificate(exchange.certificate, address)
        return self._authenticator.identify(token, address)

    def _check_host(self, host: bytes | None, allowed: frozenset[bytes]) -> None:
        if host is None or host in self._called:
            return
        match = _HOST.fullmatch(host)
        if match is None or match[1].lower() not in allowed:
            names = ", ".join(sorted(name.decode() for name in allowed))
            raise Forbidden(
                f"this server listens for this machine only and is not called {host[:100].decode('latin-1')!r}; "
                f"call it by one of {names}"
            )
        if len(self._called) < _CALLED_MAX:
            self._called.add(host)

    async def _refuse(self, exchange: Exchange, error: Exception) -> None:
        if exchange.started or exchange.gone:
            return
        failure = failure_of(error, exchange, browser=exchange.scope["path"] in BROWSER_PATHS)
        await exchange.answer(failure.status, failure.body, headers=failure.headers)
