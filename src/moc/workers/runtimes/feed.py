"""Chunks from a thread that makes them to a coroutine that sends them on."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator

CHUNKS_MAX = 32
"""How many chunks may wait; the thread that makes them is held back when there are more."""


class Feed:
    """A bounded queue with a thread at one end. Made on the event loop that reads it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[bytes] = deque()
        self._room = threading.Semaphore(CHUNKS_MAX)
        self._wake: asyncio.Future[None] | None = None
        self._closed = False
        self._ended = False
        self._error: BaseException | None = None

    # for the thread

    def put(self, chunk: bytes) -> bool:
        """Hand over a chunk, waiting for room; False when the reader is gone and no more is wanted."""
        self._room.acquire()
        if self._closed:
            return False
        self._chunks.append(chunk)
        self._loop.call_soon_threadsafe(self._notify)
        return True

    @property
    def wanted(self) -> bool:
        """Whether the reader is still there."""
        return not self._closed

    def end(self, error: BaseException | None = None) -> None:
        """No more chunks come; the reader sees `error` after the last one."""
        self._error, self._ended = error, True
        self._loop.call_soon_threadsafe(self._notify)

    # for the event loop

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Every chunk in order; raises what `end` was given. Closing it lets the thread go."""
        try:
            while True:
                while self._chunks:
                    chunk = self._chunks.popleft()
                    self._room.release()
                    yield chunk
                if self._ended and not self._chunks:
                    if self._error is not None:
                        raise self._error
                    return
                self._wake = self._loop.create_future()
                if not self._chunks and not self._ended:
                    await self._wake
        finally:
            self.close()

    def close(self) -> None:
        """Want no more: a `put` that waits or comes later answers False."""
        self._closed = True
        self._room.release()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
