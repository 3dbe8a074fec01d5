"""What happens, told as it does, by a coordinator that may be started again meanwhile."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from moc.client.calls import StreamCall
from moc.client.connection import AsyncConnection, AsyncStream, Connection, Stream
from moc.kernel.errors import Unavailable

T = TypeVar("T")
PATIENCE_S = 60.0
"""For how long nothing may answer before it is given up."""

LOOK_S = 0.5
_STEADY_S = 5.0
"""A line that lasted so long did not break for what is wrong with it from the start."""


class _Patience:
    """When to give up lines that break as soon as they are open."""

    def __init__(self) -> None:
        self._well_at = self._opened_at = time.monotonic()

    def opened(self) -> None:
        self._opened_at = time.monotonic()

    def told(self) -> None:
        self._well_at = time.monotonic()

    def broken(self) -> bool:
        """Whether to try another line."""
        now = time.monotonic()
        if now - self._opened_at > _STEADY_S:
            self._well_at = now
        return now - self._well_at < PATIENCE_S


class Following(Generic[T]):
    """Events as they come, each once; where the line breaks it goes on behind the last one.

    `call_behind` asks for those behind a number, `number` is that of an event. Raises Unreachable when nobody
    answers for a minute.
    """

    def __init__(
        self,
        line: Connection,
        call_behind: Callable[[int | None], StreamCall[T]],
        number: Callable[[T], int],
        after: int | None,
    ) -> None:
        self._line, self._call_behind, self._number, self._after = line, call_behind, number, after
        self._stream = self._open()
        self._items = self._read()

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
        self._stream.close()

    def _open(self) -> Stream[T]:
        return self._line.open(self._call_behind(self._after))

    def _read(self) -> Generator[T, None, None]:
        patience = _Patience()
        while True:
            try:
                for item in self._stream:
                    self._after = self._number(item)
                    patience.told()
                    yield item
                return
            except Unavailable:
                if not patience.broken():
                    raise
            time.sleep(LOOK_S)
            self._stream = patiently(self._open)
            patience.opened()


class AsyncFollowing(Generic[T]):
    """Events as they come, each once; where the line breaks it goes on behind the last one.

    It begins with `open`. Raises Unreachable when nobody answers for a minute.
    """

    def __init__(
        self,
        line: AsyncConnection,
        call_behind: Callable[[int | None], StreamCall[T]],
        number: Callable[[T], int],
        after: int | None,
    ) -> None:
        self._line, self._call_behind, self._number, self._after = line, call_behind, number, after
        self._stream: AsyncStream[T] | None = None
        self._items = self._read()

    async def open(self) -> Self:
        """Ask for the first time; raises what the coordinator raised, or Unreachable at once."""
        self._stream = await self._open()
        return self

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

    async def aclose(self) -> None:
        """Stop; calling it again does nothing."""
        await self._items.aclose()
        if self._stream is not None:
            await self._stream.aclose()

    async def _open(self) -> AsyncStream[T]:
        return await self._line.open(self._call_behind(self._after))

    async def _read(self) -> AsyncGenerator[T, None]:
        patience = _Patience()
        while self._stream is not None:
            try:
                async for item in self._stream:
                    self._after = self._number(item)
                    patience.told()
                    yield item
                return
            except Unavailable:
                if not patience.broken():
                    raise
            await asyncio.sleep(LOOK_S)
            self._stream = await patiently_async(self._open)
            patience.opened()


def patiently(ask: Callable[[], T]) -> T:
    """Ask until there is an answer; for a minute at most."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except Unavailable:
            if time.monotonic() > end:
                raise
        time.sleep(LOOK_S)


async def patiently_async(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is an answer; for a minute at most."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await ask()
        except Unavailable:
            if time.monotonic() > end:
                raise
        await asyncio.sleep(LOOK_S)
