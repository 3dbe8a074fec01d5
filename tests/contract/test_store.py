"""What every store promises, the same suite for each of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from moc.kernel.errors import Conflict, InvalidRequest, NotFound, NotLeader, StoreUnavailable, TooLarge
from moc.kernel.events import Event
from moc.kernel.records import ABSENT, Change, Delete, Fence, Put, Record, Store, Table
from moc.store.codec import VALUE_MAX_BYTES
from moc.store.memory import MemoryStore
from moc.store.sqlite import SqliteStore
from moc.testing.clock import ManualClock

T = TypeVar("T")
Opener = Callable[[Path, ManualClock], Store]

STORES: dict[str, Opener] = {
    "memory": lambda folder, clock: MemoryStore(clock, events_max=20),
    "sqlite": lambda folder, clock: SqliteStore(folder / "moc.db", clock, events_max=20),
}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=sorted(STORES))
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Store]:
    opened = STORES[request.param](tmp_path, clock)
    await opened.start()
    yield opened
    await opened.stop()


async def next_of(source: AsyncIterator[T], count: int) -> list[T]:
    """The next `count` things a stream gives."""
    async with asyncio.timeout(10):
        return [await anext(source) for _ in range(count)]


def happened(subject: str) -> Event:
    return Event(kind="test.happened", subject=subject)


class TestRecords:
    async def test_a_new_store_is_empty(self, store: Store) -> None:
        assert await store.get("a") is None
        assert await store.list("") == []
        assert await store.commit([]) == 0

    async def test_what_was_put_is_read_back_with_its_revision(self, store: Store) -> None:
        first = await store.commit([Put("a", b"1", ABSENT)])
        second = await store.commit([Put("a", b"2", first)])
        assert second > first >= 1
        assert await store.get("a") == Record("a", b"2", second)
        assert await store.commit([]) == second

    async def test_put_expecting_absence_refuses_an_existing_key(self, store: Store) -> None:
        revision = await store.commit([Put("a", b"1", ABSENT)])
        with pytest.raises(Conflict, match="exists already") as refusal:
            await store.commit([Put("a", b"2", ABSENT)])
        assert refusal.value.details == {"key": "a", "expected": ABSENT, "found": revision}
        assert await store.get("a") == Record("a", b"1", revision)

    @pytest.mark.parametrize("operation", [lambda r: Put("a", b"lost", r), lambda r: Delete("a", r)])
    async def test_a_stale_revision_is_refused(self, store: Store, operation: Callable[[int], Put | Delete]) -> None:
        stale = await store.commit([Put("a", b"1", ABSENT)])
        newest = await store.commit([Put("a", b"2", stale)])
        with pytest.raises(Conflict) as refusal:
            await store.commit([operation(stale)])
        assert refusal.value.details == {"key": "a", "expected": stale, "found": newest}
        assert await store.get("a") == Record("a", b"2", newest)

    async def test_changing_what_was_removed_is_refused(self, store: Store) -> None:
        revision = await store.commit([Put("a", b"1", ABSENT)])
        await store.commit([Delete("a", revision)])
        with pytest.raises(Conflict) as refusal:
            await store.commit([Put("a", b"2", revision)])
        assert refusal.value.details["found"] == ABSENT
        assert await store.get("a") is None

    async def test_without_expectation_everything_passes(self, store: Store) -> None:
        await store.commit([Delete("nothing", None), Put("a", b"1", None)])
        newest = await store.commit([Put("a", b"2", None)])
        assert await store.get("a") == Record("a", b"2", newest)
        await store.commit([Delete("a", None)])
        assert await store.get("a") is None

    async def test_of_many_who_change_one_revision_one_wins(self, store: Store) -> None:
        revision = await store.commit([Put("a", b"", ABSENT)])
        answers = await asyncio.gather(
            *(store.commit([Put("a", b"%d" % n, revision)]) for n in range(50)), return_exceptions=True
        )
        won = [n for n, answer in enumerate(answers) if isinstance(answer, int)]
        assert len(won) == 1
        assert sum(isinstance(answer, Conflict) for answer in answers) == 49
        record = await store.get("a")
        assert record is not None
        assert (record.value, record.revision) == (b"%d" % won[0], answers[won[0]])

    async def test_one_refused_operation_undoes_all_of_the_commit(self, store: Store) -> None:
        revision = await store.commit([Put("old", b"1", ABSENT)], [happened("old")])
        with pytest.raises(Conflict):
            await store.commit(
                [Put("new", b"1", ABSENT), Delete("old", revision), Put("missing", b"1", 999)], [happened("new")]
            )
        assert await store.list("") == [Record("old", b"1", revision)]
        assert [event.subject for event in await store.events()] == ["old"]
        assert await store.commit([]) == revision

    async def test_a_refused_commit_leaves_those_beside_it_alone(self, store: Store) -> None:
        await store.commit([Put("taken", b"", ABSENT)])
        answers = await asyncio.gather(
            *(store.commit([Put(f"k/{n}", b"", ABSENT), Put(f"taken{n % 2 or ''}", b"", None if n % 2 else ABSENT)])
              for n in range(20)),
            return_exceptions=True,
        )  # fmt: skip
        assert [isinstance(answer, Conflict) for answer in answers] == [n % 2 == 0 for n in range(20)]
        assert {record.key for record in await store.list("k/")} == {f"k/{n}" for n in range(1, 20, 2)}

    async def test_expectations_are_about_what_was_before_the_commit(self, store: Store) -> None:
        revision = await store.commit([Put("a", b"1", ABSENT), Delete("a", ABSENT), Put("a", b"2", ABSENT)])
        assert await store.get("a") == Record("a", b"2", revision)

    async def test_all_changes_of_one_commit_have_its_revision(self, store: Store) -> None:
        revision = await store.commit([Put("a", b"1", ABSENT), Put("b", b"2", ABSENT)])
        assert [record.revision for record in await store.list("")] == [revision, revision]

    async def test_values_are_any_bytes_up_to_a_size(self, store: Store) -> None:
        value = bytes(range(256))
        await store.commit([Put("some", value, ABSENT), Put("none", b"", ABSENT)])
        assert [record.value for record in await store.list("")] == [b"", value]
        with pytest.raises(TooLarge):
            await store.commit([Put("big", bytes(VALUE_MAX_BYTES + 1), ABSENT)])
        assert await store.get("big") is None

    async def test_a_key_that_is_not_unicode_is_refused(self, store: Store) -> None:
        with pytest.raises(InvalidRequest):
            await store.commit([Put("\ud800", b"", ABSENT)])
        with pytest.raises(InvalidRequest):
            await store.get("\udfff")


class TestList:
    AWKWARD = ("", "%", "_", "a", "a%", "a/", "a/%", "a/1", "a/1\0", "a/10", "a/2", "a/_", "a0", "a\ud7ff", "a\ue000",
               "a\U0010ffff", "a\U0010ffff!", "aé", "b", "é", "é/1", "\ud7ff", "\ud7ff/", "\ue000", "\U0010ffff",
               "\U0010ffff\U0010ffff", "'; DROP TABLE records; --")  # fmt: skip

    @pytest.mark.parametrize("prefix", AWKWARD)
    async def test_a_prefix_is_exact_for_every_character(self, store: Store, prefix: str) -> None:
        await store.commit([Put(key, b"", ABSENT) for key in self.AWKWARD])
        expected = sorted(key for key in self.AWKWARD if key.startswith(prefix))
        assert [record.key for record in await store.list(prefix)] == expected

    @pytest.mark.parametrize("limit", [1, 2, 3, 100])
    async def test_pages_make_up_the_whole(self, store: Store, limit: int) -> None:
        await store.commit([Put(key, b"", ABSENT) for key in self.AWKWARD])
        expected = sorted(key for key in self.AWKWARD if key.startswith("a"))
        found: list[str] = []
        while page := await store.list("a", after=found[-1] if found else None, limit=limit):
            assert len(page) <= limit
            found += [record.key for record in page]
        assert found == expected

    async def test_after_need_not_exist_nor_lie_under_the_prefix(self, store: Store) -> None:
        await store.commit([Put(key, b"", ABSENT) for key in ("a/1", "a/3", "b/1")])
        assert [record.key for record in await store.list("a/", after="a/2")] == ["a/3"]
        assert [record.key for record in await store.list("b/", after="a/2")] == ["b/1"]
        assert await store.list("a/", after="b/") == []
        assert await store.list("a/", limit=0) == []


class TestTable:
    class Noun(msgspec.Struct):
        size: int

    async def test_nouns_go_in_and_come_out(self, store: Store) -> None:
        table = Table(store, "nouns/", self.Noun)
        one = await store.commit([table.put("1", self.Noun(1), expect=ABSENT), Put("nouns2", b"no noun", ABSENT)])
        two = await store.commit([table.put("2", self.Noun(2), expect=ABSENT)])
        assert await table.get("1") == (self.Noun(1), one)
        assert await table.list() == [("1", self.Noun(1), one), ("2", self.Noun(2), two)]
        assert await table.list(after="1", limit=1) == [("2", self.Noun(2), two)]
        await store.commit([table.delete("1", expect=one)])
        assert await table.find("1") is None
        with pytest.raises(NotFound):
            await table.get("1")


class TestEvents:
    async def test_events_keep_their_order_and_say_when(self, store: Store, clock: ManualClock) -> None:
        told = Event(kind="model.ready", subject="m@1", reason="Asked", actor="key-1", data={"bytes": 1, "tags": ["é"]})
        await store.commit([], [told, happened("second")])
        first_at = clock.wall()
        clock.advance(5)
        await store.commit([Put("a", b"", ABSENT)], [happened("third")])
        events = await store.events()
        assert events[0] == replace(told, id=events[0].id, at=first_at)
        assert [event.subject for event in events] == ["m@1", "second", "third"]
        assert [event.at - first_at for event in events] == [0, 0, 5]
        assert [event.id for event in events] == [events[0].id + n for n in range(3)]
        assert await store.last_event_id() == events[-1].id

    async def test_pages_of_events(self, store: Store) -> None:
        assert await store.last_event_id() == 0
        await store.commit([], [happened(str(n)) for n in range(5)])
        all_of_them = await store.events()
        assert await store.events(limit=2) == all_of_them[:2]
        assert await store.events(after=all_of_them[1].id, limit=2) == all_of_them[2:4]
        assert await store.events(after=all_of_them[-1].id) == []

    async def test_only_the_newest_are_kept_and_ids_go_on(self, store: Store) -> None:
        for n in range(0, 50, 5):
            await store.commit([], [happened(str(n + m)) for m in range(5)])
        events = await store.events()
        assert [event.subject for event in events] == [str(n) for n in range(30, 50)]
        assert [event.id for event in events] == list(range(31, 51))
        assert await store.last_event_id() == 50

    async def test_an_event_without_json_form_is_refused(self, store: Store) -> None:
        with pytest.raises(InvalidRequest):
            await store.commit([Put("a", b"", ABSENT)], [Event(kind="k", subject="s", data={"bad": object()})])
        assert await store.get("a") is None

    async def test_follow_gives_the_old_then_the_new_without_a_gap(self, store: Store) -> None:
        await store.commit([], [happened("0"), happened("1")])
        after = (await store.events())[0].id
        follower = store.follow(after=after)

        async def write() -> None:
            for n in range(2, 15):
                await store.commit([], [happened(str(n))])

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            events = await next_of(follower, 14)
        assert [event.subject for event in events] == [str(n) for n in range(1, 15)]
        assert [event.id for event in events] == list(range(after + 1, after + 15))

    async def test_every_follower_gets_every_event(self, store: Store) -> None:
        async with asyncio.TaskGroup() as tasks:
            readers = [tasks.create_task(next_of(store.follow(after=0), 3)) for _ in range(5)]
            for n in range(3):
                await store.commit([], [happened(str(n))])
        assert [[event.subject for event in reader.result()] for reader in readers] == [["0", "1", "2"]] * 5


class TestWatch:
    async def test_a_watcher_sees_changes_from_the_call_on(self, store: Store) -> None:
        await store.commit([Put("w/before", b"", ABSENT)])
        watcher = store.watch("w/")
        one = await store.commit([Put("w/a", b"1", ABSENT), Put("elsewhere", b"", ABSENT)])
        assert await next_of(watcher, 1) == [Change("w/a", Record("w/a", b"1", one), one)]
        two = await store.commit([Delete("w/a", one)])
        assert await next_of(watcher, 1) == [Change("w/a", None, two)]
        three = await store.commit([Put("w/a", b"3", ABSENT)])
        assert await next_of(watcher, 1) == [Change("w/a", Record("w/a", b"3", three), three)]

    async def test_a_slow_watcher_sees_the_last_state_of_each_key_in_commit_order(self, store: Store) -> None:
        watcher = store.watch("w/")
        first = await store.commit([Put("w/a", b"1", ABSENT), Put("w/b", b"1", ABSENT), Put("w/c", b"1", ABSENT)])
        gone = await store.commit([Delete("w/b", first), Delete("w/c", first)])
        last = await store.commit([Put("w/a", b"2", first)])
        back = await store.commit([Put("w/c", b"2", ABSENT)])
        assert await next_of(watcher, 3) == [
            Change("w/b", None, gone),
            Change("w/a", Record("w/a", b"2", last), last),
            Change("w/c", Record("w/c", b"2", back), back),
        ]

    async def test_a_waiting_watcher_is_woken(self, store: Store) -> None:
        async with asyncio.TaskGroup() as tasks:
            woken = [tasks.create_task(next_of(store.watch("w/"), 1)) for _ in range(3)]
            await asyncio.sleep(0)
            revision = await store.commit([Put("w/a", b"1", ABSENT)])
        assert [task.result()[0].revision for task in woken] == [revision] * 3

    async def test_refused_and_empty_changes_are_not_seen(self, store: Store) -> None:
        watcher = store.watch("w/")
        with pytest.raises(Conflict):
            await store.commit([Put("w/a", b"", ABSENT), Put("w/b", b"", 7)])
        await store.commit([Delete("w/c", None), Delete("w/d", ABSENT)])
        await store.commit([Put("w/end", b"", ABSENT)])
        assert [change.key for change in await next_of(watcher, 1)] == ["w/end"]

    async def test_a_waiting_watcher_can_be_cancelled(self, store: Store) -> None:
        waiting = asyncio.create_task(next_of(store.watch(""), 1))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


class TestSeats:
    async def test_only_one_has_a_seat_and_each_taking_raises_its_term(self, store: Store) -> None:
        seat = await store.take_seat("s", "me", 10)
        assert seat is not None
        assert (seat.name, seat.holder, seat.term, seat.ttl_s) == ("s", "me", 1, 10)
        assert await store.take_seat("s", "you", 10) is None
        again = await store.take_seat("s", "me", 10)
        assert again is not None
        assert again.term == 2
        other = await store.take_seat("t", "you", 10)
        assert other is not None
        assert [(s.name, s.holder, s.term, s.trusted_until) for s in await store.seats()] == [
            ("s", "me", 2, 0.0),
            ("t", "you", 1, 0.0),
        ]

    async def test_of_many_who_take_a_free_seat_one_gets_it(self, store: Store) -> None:
        seats = await asyncio.gather(*(store.take_seat("s", str(n), 10) for n in range(20)))
        assert len([seat for seat in seats if seat is not None]) == 1

    async def test_it_is_trusted_for_less_time_than_it_lasts(self, store: Store, clock: ManualClock) -> None:
        seat = await store.take_seat("s", "me", 10)
        assert seat is not None
        assert clock.monotonic() + 5 < seat.trusted_until < clock.monotonic() + 10
        clock.advance(seat.trusted_until - clock.monotonic())
        assert await store.take_seat("s", "you", 10) is None

    async def test_it_expires_a_ttl_after_the_last_keep(self, store: Store, clock: ManualClock) -> None:
        seat = await store.take_seat("s", "me", 10)
        assert seat is not None
        for _ in range(3):
            clock.advance(9)
            kept = await store.keep_seat(seat)
            assert kept == replace(seat, trusted_until=kept.trusted_until)
            assert kept.trusted_until > clock.monotonic()
        clock.advance(9.99)
        assert await store.take_seat("s", "you", 10) is None
        assert len(await store.seats()) == 1
        clock.advance(0.02)
        assert await store.seats() == []
        taken = await store.take_seat("s", "you", 10)
        assert taken is not None
        assert taken.term == 2

    async def test_one_that_expired_is_kept_while_nobody_took_it(self, store: Store, clock: ManualClock) -> None:
        seat = await store.take_seat("s", "me", 10)
        assert seat is not None
        clock.advance(11)
        kept = await store.keep_seat(seat)
        assert (kept.term, kept.trusted_until) == (seat.term, seat.trusted_until + 11)
        assert await store.take_seat("s", "you", 10) is None

    async def test_a_term_that_is_over_is_not_kept(self, store: Store, clock: ManualClock) -> None:
        seat = await store.take_seat("s", "me", 10)
        assert seat is not None
        clock.advance(11)
        assert await store.take_seat("s", "you", 10) is not None
        with pytest.raises(NotLeader):
            await store.keep_seat(seat)
        clock.advance(11)
        with pytest.raises(NotLeader):
            await store.keep_seat(seat)
        assert await store.take_seat("s", "me", 10) is not None
        with pytest.raises(NotLeader):
            await store.keep_seat(seat)

    async def test_the_time_of_day_does_not_matter(self, store: Store, clock: ManualClock) -> None:
        seat = await store.take_seat("s", "me", 10)
        assert seat is not None
        clock.set_wall(clock.wall() + 1e6)
        assert await store.take_seat("s", "you", 10) is None
        clock.set_wall(0)
        clock.advance(11)
        assert await store.take_seat("s", "you", 10) is not None

    async def test_a_seat_given_back_is_free_and_its_term_spent(self, store: Store) -> None:
        seat = await store.take_seat("s", "me", 10)
        assert seat is not None
        await store.leave_seat(seat)
        await store.leave_seat(seat)
        assert await store.seats() == []
        with pytest.raises(NotLeader):
            await store.keep_seat(seat)
        with pytest.raises(NotLeader):
            await store.commit([Fence("s", seat.term), Put("a", b"", ABSENT)])
        taken = await store.take_seat("s", "you", 10)
        assert taken is not None
        assert taken.term == 2
        await store.leave_seat(seat)
        assert [s.holder for s in await store.seats()] == ["you"]

    async def test_a_dead_holder_is_replaced_at_once_but_only_at_its_term(self, store: Store) -> None:
        seat = await store.take_seat("s", "dead", 10)
        assert seat is not None
        assert await store.take_seat("s", "me", 10, dead_term=seat.term + 1) is None
        taken = await store.take_seat("s", "me", 10, dead_term=seat.term)
        assert taken is not None
        assert taken.term == 2
        assert await store.take_seat("s", "late", 10, dead_term=seat.term) is None

    async def test_a_fence_lets_only_the_newest_term_commit(self, store: Store, clock: ManualClock) -> None:
        with pytest.raises(NotLeader):
            await store.commit([Fence("s", 1), Put("a", b"", ABSENT)])
        seat = await store.take_seat("s", "me", 10)
        assert seat is not None
        fence = Fence("s", seat.term)
        revision = await store.commit([fence, Put("a", b"1", ABSENT)])
        clock.advance(11)
        assert await store.take_seat("s", "you", 10) is not None
        with pytest.raises(NotLeader):
            await store.commit([Put("a", b"2", revision), fence], [happened("never")])
        assert await store.get("a") == Record("a", b"1", revision)
        assert await store.events() == []


class TestLife:
    async def test_starting_and_stopping_twice_is_no_error_and_loses_nothing(self, store: Store) -> None:
        await store.start()
        revision = await store.commit([Put("a", b"1", ABSENT)], [happened("a")])
        seat = await store.take_seat("s", "me", 10)
        assert seat is not None
        await store.drain()
        await store.stop()
        await store.stop()
        await store.start()
        assert await store.get("a") == Record("a", b"1", revision)
        assert await store.last_event_id() == 1
        assert (await store.keep_seat(seat)).term == seat.term
        assert await store.commit([Put("b", b"", ABSENT)]) == revision + 1

    async def test_a_closed_store_refuses(self, store: Store) -> None:
        was_well = store.well
        await store.stop()
        assert (was_well, store.well) == (True, False)
        for refused in (store.get("a"), store.list(""), store.commit([Put("a", b"", None)]), store.events(),
                        store.last_event_id(), store.take_seat("s", "me", 1), store.seats()):  # fmt: skip
            with pytest.raises(StoreUnavailable, match="start it"):
                await refused
        with pytest.raises(StoreUnavailable):
            store.watch("")

    async def test_stopping_ends_those_who_wait(self, store: Store) -> None:
        waiting = [asyncio.ensure_future(anext(source)) for source in (store.watch(""), store.follow(after=0))]
        await asyncio.sleep(0)
        await store.stop()
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreUnavailable, StoreUnavailable]

    async def test_commits_under_way_are_finished_by_stop(self, store: Store) -> None:
        under_way = [asyncio.ensure_future(store.commit([Put(f"k/{n}", b"", ABSENT)])) for n in range(50)]
        await asyncio.sleep(0)
        await store.stop()
        revisions = await asyncio.gather(*under_way)
        await store.start()
        assert revisions == list(range(1, 51))
        assert len(await store.list("k/")) == 50

    async def test_a_cancelled_caller_harms_nobody_else(self, store: Store) -> None:
        cancelled = asyncio.ensure_future(store.commit([Put("a", b"", ABSENT)]))
        beside = asyncio.ensure_future(store.commit([Put("b", b"", ABSENT)]))
        await asyncio.sleep(0)
        cancelled.cancel()
        assert await beside >= 1
        assert await store.get("b") is not None
