"""Taking and keeping a seat, and telling the dead from the living."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from moc.cluster.holder import Holder, boot_id
from moc.cluster.seat import SeatKeeper
from moc.kernel.errors import Conflict, NotLeader
from moc.kernel.records import Fence
from moc.store.memory import MemoryStore
from moc.testing.clock import ManualClock

ELSEWHERE = "otherhost/boot/1/42/7"


def keeper_of(
    store: MemoryStore,
    clock: ManualClock | None = None,
    *,
    holder: str = "",
    ttl_s: float = 30,
    patience_s: float = 0.0,
    on_lost: Callable[[str], None] = pytest.fail,
) -> SeatKeeper:
    holder = holder or str(Holder.here())
    return SeatKeeper(store, "s", holder=holder, on_lost=on_lost, ttl_s=ttl_s, patience_s=patience_s, clock=clock)


class TestKeeper:
    async def test_it_has_the_seat_from_start_to_stop(self) -> None:
        store = MemoryStore()
        keeper = keeper_of(store)
        assert keeper.term == 0
        with pytest.raises(NotLeader):
            keeper.fence()
        await keeper.start()
        await keeper.start()
        assert keeper.fence() == Fence("s", 1)
        assert [(seat.holder, seat.term) for seat in await store.seats()] == [(str(Holder.here()), 1)]
        await keeper.drain()
        await keeper.stop()
        await keeper.stop()
        assert await store.seats() == []
        with pytest.raises(NotLeader):
            keeper.fence()

    async def test_it_takes_a_new_term_when_started_again(self) -> None:
        store = MemoryStore()
        keeper = keeper_of(store)
        for term in (1, 2):
            await keeper.start()
            assert keeper.term == term
            assert keeper.fence() == Fence("s", term)
            await keeper.stop()

    async def test_the_fence_is_refused_once_the_seat_is_not_trusted(self) -> None:
        clock = ManualClock()
        keeper = keeper_of(MemoryStore(clock), clock)
        await keeper.start()
        clock.advance(26)
        keeper.fence()
        clock.advance(2)
        assert not keeper.held
        with pytest.raises(NotLeader, match="does not hold seat s"):
            keeper.fence()
        await keeper.stop()

    async def test_it_keeps_the_seat_beyond_its_ttl(self) -> None:
        store = MemoryStore()
        keeper = keeper_of(store, ttl_s=1)
        await keeper.start()
        with pytest.raises(Conflict):
            await keeper_of(store, holder=ELSEWHERE, patience_s=1.5).start()
        assert keeper.fence() == Fence("s", 1)
        await keeper.stop()

    async def test_losing_it_is_told_once(self) -> None:
        store = MemoryStore()
        told: asyncio.Queue[str] = asyncio.Queue()
        keeper = keeper_of(store, ttl_s=1, on_lost=told.put_nowait)
        await keeper.start()
        assert await store.take_seat("s", ELSEWHERE, 3600, dead_term=1) is not None
        async with asyncio.timeout(10):
            assert "term 1 of seat s is over" in await told.get()
        with pytest.raises(NotLeader):
            keeper.fence()
        await keeper.stop()
        assert told.empty()
        assert [seat.holder for seat in await store.seats()] == [ELSEWHERE]

    async def test_a_store_that_fails_loses_it_when_it_is_no_longer_trusted(self) -> None:
        store = MemoryStore()
        told: asyncio.Queue[str] = asyncio.Queue()
        keeper = keeper_of(store, ttl_s=0.3, on_lost=told.put_nowait)
        await keeper.start()
        await store.stop()
        async with asyncio.timeout(10):
            assert "could not be kept in time: the store is closed" in await told.get()
        await keeper.stop()

    async def test_a_store_that_comes_back_in_time_is_forgiven(self) -> None:
        store = MemoryStore()
        keeper = keeper_of(store, ttl_s=1.5)
        await keeper.start()
        await store.stop()
        keep_was_refused = asyncio.Event()
        asyncio.get_running_loop().call_later(0.8, keep_was_refused.set)
        await keep_was_refused.wait()
        await store.start()
        with pytest.raises(Conflict):
            await keeper_of(store, holder=ELSEWHERE, patience_s=1.5).start()
        assert keeper.fence() == Fence("s", 1)
        await keeper.stop()


class TestTaking:
    async def test_from_the_dead_at_once(self) -> None:
        store = MemoryStore()
        dead = replace(Holder.here(), started="1")
        assert await store.take_seat("s", str(dead), 3600) is not None
        keeper = keeper_of(store)
        async with asyncio.timeout(10):
            await keeper.start()
        assert keeper.term == 2
        await keeper.stop()

    async def test_from_the_living_of_this_host_not_at_all(self) -> None:
        store = MemoryStore()
        living = Holder.of(os.getppid())
        assert await store.take_seat("s", str(living), 3600) is not None
        with pytest.raises(Conflict, match=rf"another coordinator \(pid {living.pid} on .* holds seat s on this"):
            await keeper_of(store).start()

    async def test_from_another_host_when_it_expires(self) -> None:
        store = MemoryStore()
        assert await store.take_seat("s", ELSEWHERE, 0.2) is not None
        keeper = keeper_of(store)
        await keeper.start()
        assert keeper.term == 2
        await keeper.stop()

    async def test_a_holder_with_a_strange_name_is_believed_alive(self) -> None:
        store = MemoryStore(clock := ManualClock())
        assert await store.take_seat("s", "somebody", 0.1) is not None
        with pytest.raises(Conflict, match=r"another coordinator \(somebody\)"):
            await keeper_of(store, clock).start()


class TestHolder:
    def test_its_name_is_read_back(self) -> None:
        here = Holder.here()
        assert Holder.parse(str(here)) == here
        assert here.pid == os.getpid()
        assert here.boot == boot_id()
        assert here.is_near()
        assert not here.is_dead()

    @pytest.mark.parametrize("text", ["", "me", "a/b/c/d/e", "a/b/c/1", "a/b/c/1/2/3", "a/b/c/-1/2"])
    def test_other_names_are_nobody(self, text: str) -> None:
        assert Holder.parse(text) is None

    @pytest.mark.parametrize(
        "unseen",
        [
            replace(Holder.here(), started="1", host="elsewhere"),
            replace(Holder.here(), started="1", boot="before"),
            replace(Holder.here(), started="1", space="container"),
        ],
    )
    def test_nobody_elsewhere_is_called_dead(self, unseen: Holder) -> None:
        assert not unseen.is_near()
        assert not unseen.is_dead()

    def test_a_pid_given_to_another_process_is_dead(self) -> None:
        assert replace(Holder.here(), started="1").is_dead()

    def test_a_process_that_waits_to_be_buried_is_dead_and_so_is_a_buried_one(self) -> None:
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        holder = Holder.of(process.pid)
        assert not holder.is_dead()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert holder.is_dead()
        process.communicate()
        assert holder.is_dead()
