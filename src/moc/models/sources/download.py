"""One file over HTTP into a partial file: resumed where it broke off, bounded, never torn."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import TracebackType

import httpx
import stamina

from moc.kernel.errors import LoadFailed
from moc.kernel.units import Bytes
from moc.models.ports import Progress
from moc.models.sources.background import in_thread
from moc.models.sources.bounds import Bounds
from moc.models.sources.failure import disk_errors, failed, is_full
from moc.models.sources.reach import get
from moc.models.sources.source import is_loopback

_ATTEMPTS = 6
_WAIT_MAX_S = 15.0
_REDIRECTS_MAX = 10
_TIMEOUT = httpx.Timeout(30.0, read=60.0)
_FLUSH_BYTES = 1024**2
_FLUSH_S = 0.5
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_ADVICE = {
    401: "it wants credentials",
    403: "it does not let this machine have it",
    404: "there is no such file",
    410: "the file was taken down",
}


class Interrupted(Exception):
    """The transfer broke off in a way that may pass."""


class _Stale(Interrupted):
    """What came earlier is of no use: the next attempt starts over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """What is to be downloaded.

    `shown` names it in messages; `headers` go only to the host of `url`; `size_bytes` is what it must have, None =
    unknown; `hashed` says that its hash will be checked, so that what came from an earlier try can be trusted.
    """

    url: str
    shown: str
    size_limit_bytes: int
    headers: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int | None = None
    hashed: bool = False


class PartialFile:
    """What has come so far, and the mark (ETag or date) of the version it is a part of. Its methods block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = path.with_name(f"{path.name}.mark")

    def size(self) -> int:
        """Bytes here, 0 when there is none."""
        return self.path.stat().st_size if self.path.exists() else 0

    def mark(self) -> str:
        """The mark of what is here, empty when there is none."""
        return self._mark.read_text() if self._mark.exists() else ""

    def begin(self, mark: str) -> None:
        """Start over with a version that bears `mark`."""
        self.path.write_bytes(b"")
        self._mark.write_text(mark)

    def append(self, data: bytes) -> None:
        """Add what came next."""
        with self.path.open("ab") as file:
            file.write(data)

    def drop(self) -> None:
        """Delete it."""
        self.path.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)


class Downloader:
    """Downloads over one set of connections, within `bounds` if given; an async context manager."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds
        self._client = httpx.AsyncClient(timeout=_TIMEOUT, follow_redirects=False)

    async def __aenter__(self) -> "Downloader":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def download(self, remote: Remote, part: PartialFile, progress: Progress) -> None:
        """Have all of `remote` in `part`, going on from what is there; retries what may pass.

        LoadFailed when it cannot be had. Cancelled or failed, what came is kept if it can be gone on from, but
        for a full disk, whose space is given back.
        """
        with disk_errors(f"downloading {remote.shown}"):
            try:
                async for attempt in stamina.retry_context(
                    on=Interrupted, attempts=_ATTEMPTS, timeout=None, wait_max=_WAIT_MAX_S
                ):
                    with attempt:
                        await self._attempt(remote, part, progress)
            except Interrupted as error:
                raise failed(f"{remote.shown}: {error}; pull again to go on from what came") from None
            except OSError as error:
                if is_full(error):
                    await in_thread(lambda _: part.drop())
                raise

    async def _attempt(self, remote: Remote, part: PartialFile, progress: Progress) -> None:
        have, mark = await in_thread(lambda _: (part.size(), part.mark()))
        if not mark and not remote.hashed:
            have = 0
        if have and have == remote.size_bytes:
            return
        headers = dict(remote.headers) | {"accept-encoding": "identity"}
        if have:
            headers["range"] = f"bytes={have}-"
            if mark:
                headers["if-range"] = mark
        try:
            response = await self._open(remote, headers)
            try:
                await self._receive(response, remote, part, have, progress)
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            raise Interrupted(f"the connection failed ({_why(error)})") from error

    async def _open(self, remote: Remote, headers: dict[str, str]) -> httpx.Response:
        url = origin = httpx.URL(remote.url)
        for _ in range(_REDIRECTS_MAX):
            if (url.scheme, url.host, url.port) != (origin.scheme, origin.host, origin.port):
                headers = {name: value for name, value in headers.items() if name not in remote.headers}
            response = await self._client.send(await get(self._client, url, headers, self._bounds), stream=True)
            if not response.has_redirect_location:
                return response
            await response.aclose()
            url = _redirected(url, response.headers["location"], remote)
        raise failed(f"{remote.shown} redirects more than {_REDIRECTS_MAX} times; check the URL")

    async def _receive(
        self, response: httpx.Response, remote: Remote, part: PartialFile, have: int, progress: Progress
    ) -> None:
        _check_status(response, remote)
        try:
            start, total = _extent(response, remote, have, await in_thread(lambda _: part.mark()))
            _check_size(remote, total or 0, total)
            if start == 0:
                await in_thread(lambda _: part.begin(_mark(response)))
            if response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                await self._pour(response, remote, part, start, total, progress)
        except (LoadFailed, _Stale):
            await in_thread(lambda _: part.drop())
            raise

    async def _pour(
        self,
        response: httpx.Response,
        remote: Remote,
        part: PartialFile,
        done: int,
        total: int | None,
        progress: Progress,
    ) -> None:
        """Write the body behind what is there; whatever ends it, what came is written."""
        waiting, flushed_at = bytearray(), time.monotonic()

        async def flush() -> None:
            nonlocal flushed_at
            data = bytes(waiting)
            waiting.clear()
            flushed_at = time.monotonic()
            await in_thread(lambda _: part.append(data))
            progress(done, total)

        try:
            async for chunk in response.aiter_raw():
                waiting += chunk
                done += len(chunk)
                _check_size(remote, done, total)
                if len(waiting) >= _FLUSH_BYTES or time.monotonic() - flushed_at >= _FLUSH_S:
                    await flush()
        finally:
            if waiting:
                await flush()
        if total is not None and done != total:
            raise Interrupted(f"{done} of {total} bytes came")


def _redirected(url: httpx.URL, location: str, remote: Remote) -> httpx.URL:
    try:
        target = url.join(location)
    except httpx.InvalidURL:
        raise failed(f"{remote.shown} redirects to what is no URL") from None
    stays = url.scheme == "http" and (is_loopback(target.host) or target.host == url.host)
    if target.scheme == "https" or (target.scheme == "http" and stays):
        return target
    raise failed(
        f"{remote.shown} redirects to {target.scheme}://{target.host}, where it could be changed on its way; "
        "give the address of a copy behind https"
    )


def _check_status(response: httpx.Response, remote: Remote) -> None:
    status = response.status_code
    if status in _PASSING:
        raise Interrupted(f"the server answered {status}")
    if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
        why = _ADVICE.get(status, "it cannot be downloaded")
        raise failed(f"{remote.shown}: the server answered {status}: {why}; check the source")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise failed(f"{remote.shown}: the server sends it encoded though it was asked not to; use another source")


def _extent(response: httpx.Response, remote: Remote, have: int, mark: str) -> tuple[int, int | None]:
    """Where the body starts in the file, and how long the file is."""
    if response.status_code == HTTPStatus.OK:
        length = response.headers.get("content-length", "")
        if not length.isdigit() and "transfer-encoding" not in response.headers and not remote.hashed:
            raise failed(f"{remote.shown}: the server does not say how long it is; give its sha256")
        return 0, int(length) if length.isdigit() else None
    match = _RANGE.fullmatch(response.headers.get("content-range", ""))
    start, total = (match[1], match[2]) if match is not None else (None, "*")
    if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        start = total if total == str(have) else None  # else the file is not what it was
    if start != str(have) or have == 0 or (mark and _mark(response) not in ("", mark)):
        raise _Stale("the server did not go on from where the transfer broke off")
    return have, int(total) if total.isdigit() else None


def _mark(response: httpx.Response) -> str:
    """What tells this version of the file from others, fit for If-Range; empty when nothing does."""
    etag: str = response.headers.get("etag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("last-modified", "")


def _check_size(remote: Remote, done: int, total: int | None) -> None:
    if max(done, total or 0) > remote.size_limit_bytes:
        raise failed(f"{remote.shown} is larger than the {Bytes(remote.size_limit_bytes)} that are fetched at most")
    if remote.size_bytes is not None and (done > remote.size_bytes or total not in (None, remote.size_bytes)):
        raise failed(f"{remote.shown} does not have the {remote.size_bytes} bytes it is said to have")


def _why(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__
