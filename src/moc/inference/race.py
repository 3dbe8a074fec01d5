"""Two at work on the same request, and only one answer."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

from moc.inference.answer import Answer, AnswerStream
from moc.kernel.errors import MocError

A = TypeVar("A", Answer, AnswerStream)


async def first_right(
    first: Coroutine[Any, Any, A],
    second: Callable[[], Coroutine[Any, Any, A] | None],
    *,
    after_s: float,
    is_wrong: Callable[[MocError], bool],
) -> A:
    """The answer of `first`, or of what `second` gives (None = nothing) if that has not ended after so long.

    Whichever answers first counts. While both are at it, an error that `is_wrong` waits for the other's outcome; any
    other error ends it. Whoever has not ended by then is cancelled, and has ended when this returns.
    """
    tasks = [asyncio.ensure_future(first)]
    winner: asyncio.Future[A] | None = None
    try:
        await asyncio.wait(tasks, timeout=after_s)
        beside = None if tasks[0].done() else second()
        if beside is not None:
            tasks.append(asyncio.ensure_future(beside))
        pending = set(tasks)
        while winner is None:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            winner = _right(done, last=not pending, is_wrong=is_wrong)
        return winner.result()
    finally:
        try:
            await _end([task for task in tasks if task is not winner])
        except BaseException:
            await _end(tasks)
            raise


def _right(
    done: Collection[asyncio.Future[A]], *, last: bool, is_wrong: Callable[[MocError], bool]
) -> asyncio.Future[A] | None:
    """Whose outcome counts; None = wait for the other's."""
    for task in done:
        error = task.exception()
        if not isinstance(error, MocError) or not is_wrong(error):
            return task
    return next(iter(done)) if last else None


async def _end(tasks: Collection[asyncio.Future[A]]) -> None:
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, AnswerStream):
            await outcome.aclose()
