"""What may last long ends when the server closes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

from moc.kernel.errors import Unavailable

T = TypeVar("T")


async def unless(closing: asyncio.Event, asked: Coroutine[Any, Any, T]) -> T:
    """What is asked for, or Unavailable once the server closes."""
    asking = asyncio.ensure_future(asked)
    closed = asyncio.ensure_future(closing.wait())
    try:
        await asyncio.wait({asking, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            raise Unavailable("this coordinator is stopping; ask again shortly")
        return asking.result()
    finally:
        asking.cancel()
        closed.cancel()
        await asyncio.gather(asking, closed, return_exceptions=True)


async def until(closing: asyncio.Event, endless: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """Everything that comes until the server closes."""

    async def following() -> T:
        return await anext(endless)

    try:
        while not closing.is_set():
            yield await unless(closing, following())
    except StopAsyncIteration:
        return
    except Unavailable:
        if not closing.is_set():
            raise
    finally:
        close = getattr(endless, "aclose", None)
        if close is not None:
            await close()
