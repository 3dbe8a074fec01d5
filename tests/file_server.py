"""A web server that does what a test says: whole files, parts of files, broken connections, redirects."""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came; header names in lower case."""

    target: str
    headers: Mapping[str, str]

    @property
    def path(self) -> str:
        return urlsplit(self.target).path


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back. With `cut` the connection breaks after that many bytes of the body; with `held` it
    stops there until the client goes away. `length` False leaves the length out."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    held: bool = False
    length: bool = True


class FileServer:
    """Serves on a free loopback port; `answer` decides, `asked` remembers, `held` tells of a client made to wait."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.held = asyncio.Event()
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> "FileServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Be gone, as a machine without a network finds it."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
            asked = Asked(head[0].split(" ")[1], headers)
            self.asked.append(asked)
            await self._send(self.answer(asked), reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _send(self, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {answer.status} Whatever", "connection: close"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        if answer.length:
            lines.append(f"content-length: {len(answer.body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode())
        writer.write(answer.body if answer.cut is None else answer.body[: answer.cut])
        await writer.drain()
        if answer.held:
            self.held.set()
            await reader.read()  # ends when the client goes away


def whole(content: bytes, **headers: str) -> Answer:
    """All of it, by a server that knows no ranges."""
    return Answer(body=content, headers=headers)


def ranged(content: bytes, asked: Asked, *, etag: str = '"v1"', cut: int | None = None, held: bool = False) -> Answer:
    """What was asked for, as RFC 9110 has it: a range of the version the client knows, or everything."""
    match = re.fullmatch(r"bytes=(\d+)-", asked.headers.get("range", ""))
    if match is None or asked.headers.get("if-range", etag) != etag:
        return Answer(body=content, headers={"etag": etag}, cut=cut, held=held)
    start = int(match[1])
    if start >= len(content):
        return Answer(416, headers={"content-range": f"bytes */{len(content)}"})
    extent = {"content-range": f"bytes {start}-{len(content) - 1}/{len(content)}", "etag": etag}
    return Answer(206, content[start:], extent, cut=cut, held=held)
