"""HTTP/1.1 to one upstream: connections that are kept, and what goes wrong on them."""

import asyncio
import contextlib
import io
import socket
import ssl
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from moc import __version__
from moc.kernel.errors import Internal, MocError, Unavailable, WorkerLost
from moc.workers.upstream.failure import refusal
from moc.workers.upstream.options import Reach, UpstreamOptions

ANSWER_BYTES_MAX = 256 * 1024**2
REFUSAL_BYTES_MAX = 64 * 1024
HEAD_LINE_BYTES_MAX = 16 * 1024
WRITTEN_AT_ONCE_MAX = 1024**2
"""A body up to this size is given to the connection whole, a larger one piece by piece."""

KEPT_S = 4.0
"""How long a connection is kept for the next request: less than servers usually do."""

STALE_WITHIN_S = 0.02
"""How long after a request it may take to hear that its connection had been closed before: nothing is done so soon."""

LINGER_S = 0.1
"""How long the end of an answer may follow what ended it in its own words."""

_OWN_HEADERS = {"Accept-Encoding": "identity", "User-Agent": f"modelops-coordinator/{__version__}"}


@dataclass(slots=True)
class Call:
    """One HTTP request; `path` follows the upstream's URL."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Line:
    """The way to one upstream. What goes wrong is told in MocErrors: see `Upstream.infer`.

    `keeps_streams` is not set any more once a connection that was kept broke: some servers close theirs behind each
    stream without a word, and who goes on using them has a race to lose each time.
    """

    def __init__(self, options: UpstreamOptions) -> None:
        self._options = options
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}
        self._proxy: str | None = None
        self.keeps_streams = True
        self.host = urlsplit(options.url).netloc
        self.who = f"the upstream {self.host}"

    async def start(self) -> None:
        """Make ready to connect; Unavailable when the authorities' file cannot be read. Idempotent."""
        if self._session is not None:
            return
        options = self._options
        self._proxy = _proxy_to(options.url) if options.use_proxy else None
        resolver = None
        if options.reach is not None and self._proxy is None:  # where a proxy goes is for the proxy to decide
            resolver = Resolver(options.reach, options.url)
            resolver.check(URL(options.url).host or "")  # what is an address already is not looked up
        is_secure = options.url.startswith("https:")
        trusted = await asyncio.to_thread(_trusted, options.ca_file) if is_secure else True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=trusted, resolver=resolver, keepalive_timeout=KEPT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={**_OWN_HEADERS, **options.headers},
            timeout=aiohttp.ClientTimeout(total=None, connect=options.connect_timeout_s, sock_read=options.timeout_s),
            trace_configs=[_reuse_traced()],
            max_line_size=HEAD_LINE_BYTES_MAX,
            max_field_size=HEAD_LINE_BYTES_MAX,
        )

    async def close(self) -> None:
        """Drop every connection. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(self, path: str, *, timeout_s: float) -> bytes:
        """What is at a path, answered in good time."""
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._open("GET", path, None, {})
                with contextlib.closing(response):
                    return await self.whole(response)
        except TimeoutError:
            raise Unavailable(f"{self.who} did not answer within {timeout_s:g} s") from None

    async def post(self, call: Call) -> aiohttp.ClientResponse:
        """Send a request and wait for the head of its answer, which is a good one; close that."""
        return await self._open("POST", call.path, call.body, call.headers)

    async def whole(self, response: aiohttp.ClientResponse, *, at_most: int = ANSWER_BYTES_MAX) -> bytes:
        """The body of an answer."""
        parts: list[bytes] = []
        size = 0
        while block := await self.block(response):
            parts.append(block)
            size += len(block)
            if size > at_most:
                raise Internal(f"{self.who} answers more than {at_most} bytes")
            if response.content.at_eof():
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def block(self, response: aiohttp.ClientResponse) -> bytes:
        """What there is of the body of an answer that was not read yet, at least a byte; nothing at its end."""
        try:
            return await response.content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._lost(error) from None

    async def finish(self, response: aiohttp.ClientResponse) -> None:
        """Let an answer that said that it is over come to its end, so that its connection can be used again."""
        with contextlib.suppress(MocError, TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self.whole(response, at_most=REFUSAL_BYTES_MAX)

    async def _open(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise WorkerLost(f"{self.who} is not used any more; try again", sent=False)
        key, name = self._options.key, self._options.key_header
        secret = "" if key is None else key.value()
        if secret:
            headers = {**headers, name: f"Bearer {secret}" if name.lower() == "authorization" else secret}
        try:
            response = await self._request(self._session, method, path, body, headers)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise Unavailable(f"{self.who} cannot be reached: {why}", details={"sent": False}) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._lost(error) from None
        if 200 <= response.status < 300:
            return response
        with contextlib.closing(response):
            raise await self._refused(response, secret)

    async def _request(
        self, session: aiohttp.ClientSession, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        """Ask once more when a connection that was kept turns out to have been closed meanwhile.

        That shows at once: what breaks off later was being worked on, and is not sent twice.
        """
        reused: list[bool] = []
        began = time.monotonic()
        try:
            return await self._sent(session, method, path, body, headers, reused)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            self.keeps_streams = self.keeps_streams and not reused
            if not reused or session.closed or time.monotonic() - began > STALE_WITHIN_S:
                raise
        return await self._sent(session, method, path, body, headers, reused)

    async def _sent(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        reused: list[bool],
    ) -> aiohttp.ClientResponse:
        """`reused` is no longer empty when it goes over a connection that was kept."""
        large = body is not None and len(body) > WRITTEN_AT_ONCE_MAX
        return await session.request(
            method,
            self._url(path),
            data=io.BytesIO(body or b"") if large else body,
            headers=headers,
            allow_redirects=False,
            proxy=self._proxy,
            trace_request_ctx=reused,
        )

    async def _refused(self, response: aiohttp.ClientResponse, secret: str) -> MocError:
        body, key = b"", self._options.key
        with contextlib.suppress(MocError):
            body = await self.whole(response, at_most=REFUSAL_BYTES_MAX)
        if secret:
            body = body.replace(secret.encode(), b"...")
        return refusal(
            self.who,
            response.status,
            body,
            retry_after=response.headers.get("Retry-After"),
            key_name=None if key is None else key.name,
        )

    def _url(self, path: str) -> URL:
        """A path that begins with a slash is on the upstream's host, any other below its URL."""
        url = self._urls.get(path)
        if url is None:
            base = URL(self._options.url.rstrip("/"))
            url = self._urls[path] = URL(f"{base.origin() if path.startswith('/') else f'{base}/'}{path}", encoded=True)
        return url

    def _lost(self, error: Exception) -> MocError:
        """What it means that an exchange broke off after it had begun."""
        if isinstance(error, aiohttp.ClientResponseError):
            return Internal(f"{self.who} answers something that is not HTTP: {error.message[:200]}")
        if isinstance(error, TimeoutError):
            said = f"{self.who} said nothing for {self._options.timeout_s:g} s"
        elif isinstance(error, aiohttp.ClientPayloadError):
            said = f"{self.who} broke off in the middle of its answer"
        else:
            said = f"{self.who} went away before it answered"
        return WorkerLost(said, sent=True)


class Resolver(AbstractResolver):
    """The system's, which gives only addresses that may be connected to for `url`, however its host is written."""

    def __init__(self, reach: Reach, url: str) -> None:
        self._system = aiohttp.ThreadedResolver()
        self._reach = reach
        self._host = urlsplit(url).hostname or ""
        self._port = URL(url).port or 0

    def check(self, address: str) -> None:
        """Raise what `reach` does."""
        self._reach(self._host, self._port, address)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._system.resolve(host, port, family)
        for address in found:
            self.check(address["host"])
        return found

    async def close(self) -> None:
        await self._system.close()


def _proxy_to(url: str) -> str | None:
    """The proxy that the environment has for a URL; what else is there, such as `.netrc`, is not for upstreams."""
    where = urlsplit(url)
    return None if proxy_bypass(where.netloc) else getproxies().get(where.scheme)


def _reuse_traced() -> aiohttp.TraceConfig:
    """Has it noted in the list that comes with a request that its connection was there before."""

    async def note(_: object, context: SimpleNamespace, __: object) -> None:
        context.trace_request_ctx.append(True)

    config = aiohttp.TraceConfig()
    config.on_connection_reuseconn.append(note)
    return config


def _trusted(ca_file: str) -> ssl.SSLContext:
    """What certificates are checked with: the system's authorities, or those in the file alone."""
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise Unavailable(f"the certificates in {ca_file} cannot be read: {error.strerror or error}") from None
