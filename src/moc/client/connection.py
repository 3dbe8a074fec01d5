"""The lines to a coordinator: one that blocks and one that is awaited. They know HTTP and nothing of what is asked."""

import ssl
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, Self, TypeVar

from moc.client.calls import Answer, Asked, Call, StreamCall
from moc.client.discovery import Target, locate
from moc.client.failures import error_from, error_of
from moc.client.sse import SseDecoder
from moc.kernel.errors import DeadlineExceeded, Internal, InvalidRequest, MocError, Unavailable

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
_CONNECT_S = 5.0
_MARGIN_S = 5.0
"""How much longer than the deadline to wait for the coordinator to say that it passed."""


class Unreachable(Unavailable):
    """Nothing answers at the coordinator's address, or it went away before it had answered."""


class _Line:
    """What both lines have in common: where they go, what they send first, how long they wait."""

    def __init__(self, url: str | None, key: str | None, data_dir: str | Path | None, timeout_s: float) -> None:
        if timeout_s <= 0:
            raise InvalidRequest(f"timeout_s is {timeout_s}; give the seconds to wait for an answer, more than 0")
        self._given = (url, key, data_dir)
        self._timeout_s = timeout_s
        self._target: Target | None = None

    @property
    def target(self) -> Target:
        """Where this line goes; found when first asked."""
        if self._target is None:
            self._target = locate(*self._given)
        return self._target

    def _http_options(self) -> dict[str, Any]:
        import httpx

        target = self.target
        # Kept shorter than servers keep theirs, so that a request is not sent down a line that is just being closed.
        limits = httpx.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=3.0)
        options: dict[str, Any] = {"base_url": target.url, "trust_env": not target.is_local, "limits": limits}
        if target.key is not None:
            if not target.key.isascii() or not target.key.isprintable():
                raise InvalidRequest("the key has characters no key has; copy it again, `moc keys show` prints it")
            options["headers"] = {"authorization": f"Bearer {target.key}"}
        tls = _tls(target)
        if tls is not None:
            options["verify"] = tls
        return options

    @contextmanager
    def _request(
        self, http: "httpx.Client | httpx.AsyncClient", asked: Asked, read_s: float | None
    ) -> "Iterator[httpx.Request]":
        """The request; what it reads while it is sent is open as long as the block runs."""
        import httpx

        headers = dict(asked.headers)
        if asked.deadline_s is not None:
            headers["x-moc-deadline-ms"] = str(max(1, round(asked.deadline_s * 1000)))
        timeout = httpx.Timeout(read_s, connect=_CONNECT_S)
        build = partial(
            http.build_request, asked.method, asked.path, params=asked.query, headers=headers, timeout=timeout
        )
        form = asked.form
        if form is None:
            yield build(content=asked.body)
            return
        with _opened(form.path) as file:
            yield build(data=form.fields, files={"file": (form.filename, file)})

    def _read_s(self, asked: Asked) -> float:
        return self._timeout_s if asked.deadline_s is None else asked.deadline_s + _MARGIN_S

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise what went wrong on the line as one of our errors."""
        import httpx

        url = self.target.url
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unreachable(
                f"no coordinator answers at {url} ({_cause(error)}); "
                "start one with `moc serve`, or say where it is with --url or MOC_URL"
            ) from error
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(f"{url} did not answer in time; allow more time, or see `moc status`") from error
        except httpx.TransportError as error:
            raise Unreachable(
                f"{url} went away before it had answered ({_cause(error)}); "
                "what was asked may have been done: look with `moc status` before asking again"
            ) from error


class _Reader(Generic[T]):
    """Makes items of the bytes of a stream.

    The stream is read to its very end, behind the last item too: hanging up first would look like a caller
    who no longer wants the answer.
    """

    def __init__(self, call: StreamCall[T]) -> None:
        self._call = call
        self._decoder = SseDecoder()
        self.complete = False

    def items(self, received: bytes) -> Iterator[T]:
        """The items the next bytes complete; raises the error the coordinator sent instead of one."""
        for data in self._decoder.feed(received):
            if data == self._call.last:
                self.complete = True
                return
            item = self._call.read(data)
            error = error_from(item.get("error")) if isinstance(item, dict) else None
            if error is not None:
                raise error
            yield item

    def finish(self) -> None:
        """Raise Unreachable unless the answer came to its end."""
        if not self.complete:
            raise Unreachable("the coordinator went away in the middle of its answer; see `moc status`, then ask again")


class Connection(_Line):
    """The line that blocks. Threads may share it. It opens with the first call, and again after `close`."""

    def __init__(self, url: str | None, key: str | None, data_dir: str | Path | None, timeout_s: float) -> None:
        super().__init__(url, key, data_dir, timeout_s)
        self._http: httpx.Client | None = None
        self._lock = threading.Lock()

    def send(self, call: Call[T]) -> T:
        """Ask and return the answer; raises what the coordinator raised, or Unreachable."""
        http = self._open()
        with self._request(http, call.asked, self._read_s(call.asked)) as request, self.translated():
            response = http.send(request)
        _check(response)
        return call.read(Answer(response.headers, response.content))

    def open(self, call: StreamCall[T]) -> "Stream[T]":
        """Ask and return once the answer has begun; close the stream when done with it."""
        http = self._open()
        read_s = None if call.last is None else self._read_s(call.asked)
        with self._request(http, call.asked, read_s) as request, self.translated():
            response = http.send(request, stream=True)
            if response.is_success:
                return Stream(self, response, call)
            try:
                response.read()
            finally:
                response.close()
        raise _failure(response)

    def close(self) -> None:
        """Let go of every connection; calling it again does nothing."""
        with self._lock:
            http, self._http = self._http, None
        if http is not None:
            http.close()

    def _open(self) -> "httpx.Client":
        import httpx

        with self._lock:
            if self._http is None:
                self._http = httpx.Client(**self._http_options())
            return self._http


class AsyncConnection(_Line):
    """The line that is awaited, in one event loop. It opens with the first call, and again after `aclose`."""

    def __init__(self, url: str | None, key: str | None, data_dir: str | Path | None, timeout_s: float) -> None:
        super().__init__(url, key, data_dir, timeout_s)
        self._http: httpx.AsyncClient | None = None

    async def send(self, call: Call[T]) -> T:
        """Ask and return the answer; raises what the coordinator raised, or Unreachable."""
        http = self._open()
        with self._request(http, call.asked, self._read_s(call.asked)) as request, self.translated():
            response = await http.send(request)
        _check(response)
        return call.read(Answer(response.headers, response.content))

    async def open(self, call: StreamCall[T]) -> "AsyncStream[T]":
        """Ask and return once the answer has begun; close the stream when done with it."""
        http = self._open()
        read_s = None if call.last is None else self._read_s(call.asked)
        with self._request(http, call.asked, read_s) as request, self.translated():
            response = await http.send(request, stream=True)
            if response.is_success:
                return AsyncStream(self, response, call)
            try:
                await response.aread()
            finally:
                await response.aclose()
        raise _failure(response)

    async def aclose(self) -> None:
        """Let go of every connection; calling it again does nothing."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    def _open(self) -> "httpx.AsyncClient":
        import httpx

        if self._http is None:
            self._http = httpx.AsyncClient(**self._http_options())
        return self._http


class Stream(Generic[T]):
    """The parts of an answer as they come. Closing it early stops the work behind it."""

    def __init__(self, line: Connection, response: "httpx.Response", call: StreamCall[T]) -> None:
        self._response = response
        self._items = self._read(line, _Reader(call))

    def __iter__(self) -> Iterator[T]:
        return self._items

    def __next__(self) -> T:
        return next(self._items)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop; calling it again does nothing."""
        self._items.close()
        self._response.close()

    def _read(self, line: Connection, reader: _Reader[T]) -> Generator[T, None, None]:
        try:
            with line.translated():
                for received in self._response.iter_bytes():
                    yield from reader.items(received)
            reader.finish()
        finally:
            self._response.close()


class AsyncStream(Generic[T]):
    """The parts of an answer as they come. Closing it early stops the work behind it."""

    def __init__(self, line: AsyncConnection, response: "httpx.Response", call: StreamCall[T]) -> None:
        self._response = response
        self._items = self._read(line, _Reader(call))

    def __aiter__(self) -> AsyncIterator[T]:
        return self._items

    async def __anext__(self) -> T:
        return await anext(self._items)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def headers(self) -> Mapping[str, str]:
        """Those the answer began with; their names compare as lower case."""
        return self._response.headers

    async def aclose(self) -> None:
        """Stop; calling it again does nothing."""
        await self._items.aclose()
        await self._response.aclose()

    async def _read(self, line: AsyncConnection, reader: _Reader[T]) -> AsyncGenerator[T, None]:
        try:
            with line.translated():
                async for received in self._response.aiter_bytes():
                    for item in reader.items(received):
                        yield item
            reader.finish()
        finally:
            await self._response.aclose()


def _tls(target: Target) -> ssl.SSLContext | None:
    """How the coordinator is to prove itself, and we to it; None = as httpx has it."""
    if target.url.startswith("http:"):
        # Reading the system's certificates takes longer than everything else at start; plain HTTP needs none.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if target.ca_file is None and target.certificate is None:
        return None
    at = target.ca_file
    try:
        context = ssl.create_default_context(cafile=at)
        if target.certificate is not None:
            at, key = target.certificate, target.certificate.with_suffix(".key")
            context.load_cert_chain(at, key if key.is_file() else None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidRequest(
            f"{at} cannot be used for TLS ({error}); it must be a PEM file that you may read"
        ) from None
    return context


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__


def _check(response: "httpx.Response") -> None:
    if not response.is_success:
        raise _failure(response)


def _failure(response: "httpx.Response") -> MocError:
    if response.is_redirect:
        return Internal(f"{response.url} sends elsewhere ({response.headers.get('location')}); give that address")
    headers = response.headers
    return error_of(
        response.status_code,
        response.content,
        retry_after=headers.get("retry-after"),
        request_id=headers.get("x-moc-request-id"),
    )
