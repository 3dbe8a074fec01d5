import asyncio
import threading

import pytest

from moc.workers.runtimes.feed import CHUNKS_MAX, Feed


async def test_what_is_put_is_read_in_order() -> None:
    feed = Feed()

    def make() -> None:
        for n in range(10 * CHUNKS_MAX):
            assert feed.put(b"%d" % n)
        feed.end()

    thread = threading.Thread(target=make)
    thread.start()
    assert [int(chunk) async for chunk in feed.chunks()] == list(range(10 * CHUNKS_MAX))
    thread.join()


async def test_an_error_comes_after_the_last_chunk() -> None:
    feed = Feed()
    feed.put(b"1")
    feed.end(ValueError("torn"))
    chunks = feed.chunks()
    assert await anext(chunks) == b"1"
    with pytest.raises(ValueError, match="torn"):
        await anext(chunks)


async def test_who_makes_too_much_waits_and_is_let_go_when_the_reader_leaves() -> None:
    feed = Feed()
    made: list[bool] = []

    def make() -> None:
        while feed.put(b"x"):
            made.append(True)

    thread = threading.Thread(target=make)
    thread.start()
    chunks = feed.chunks()
    await anext(chunks)
    await asyncio.to_thread(thread.join, 0.1)
    assert thread.is_alive()
    assert len(made) == CHUNKS_MAX + 1
    await chunks.aclose()
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()
