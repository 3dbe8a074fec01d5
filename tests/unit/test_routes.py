"""What an alias adds to a request: whose turn it is, a second target for slow ones, copies for a shadow."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from moc.inference.observed import SAMPLES_MIN
from moc.inference.request import Caller, Info, Request, Terms
from moc.inference.routing import Route, Shadow, Target
from moc.inference.shadow import COPIES_MAX, COPY_TIMEOUT_S
from moc.kernel.errors import InvalidRequest, MocError, Unavailable
from moc.resilience.deadline import Deadline
from moc.testing.clock import ManualClock
from moc.testing.workers import FakeLink
from tests.crossroads import Crossroads, Models, until

SOMEBODY = Caller("key")
INFO = Info(kinds=("chat",), engine="fake", concurrency=64)
REQUEST = Request("chat", b"abc")
BOTH = (Target("a", 50), Target("b", 50))
HEDGED = Route("alias", (Target("a", 1),), fallback=("b",), hedge=True)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def place(clock: ManualClock) -> Crossroads:
    return Crossroads(Models(INFO), clock=clock)


async def ask(place: Crossroads, *, caller: Caller = SOMEBODY, terms: Terms | None = None) -> str:
    return (await place.gateway.infer(caller, "alias", REQUEST, terms or Terms())).reference


# whose turn it is


async def test_requests_are_shared_by_weight(place: Crossroads) -> None:
    await place.models.load("a", "b")
    place.alias(Route("alias", BOTH))
    counts = Counter([await ask(place) for _ in range(400)])
    assert min(counts["a@1"], counts["b@1"]) > 120


async def test_those_of_a_key_or_a_session_go_to_the_same_target(place: Crossroads) -> None:
    await place.models.load("a", "b")
    place.alias(Route("alias", BOTH, sticky="key"))
    by_key = [{await ask(place, caller=Caller(f"key-{key}")) for _ in range(5)} for key in range(20)]
    assert all(len(found) == 1 for found in by_key)
    assert {reference for found in by_key for reference in found} == {"a@1", "b@1"}
    place.alias(Route("alias", BOTH, sticky="session"))
    by_session = [{await ask(place, terms=Terms(session=f"{session}")) for _ in range(5)} for session in range(20)]
    assert all(len(found) == 1 for found in by_session)
    assert {reference for found in by_session for reference in found} == {"a@1", "b@1"}
    assert {await ask(place) for _ in range(60)} == {"a@1", "b@1"}  # no session, nothing to stick to


async def test_one_that_is_loaded_answers_while_the_one_whose_turn_it_is_loads(place: Crossroads) -> None:
    await place.models.load("a")
    place.models.workers.gate.clear()
    place.alias(Route("alias", (Target("a", 0.001), Target("b", 10_000))))
    assert [await ask(place) for _ in range(3)] == ["a@1"] * 3
    assert place.models.loads == ["a", "b"]
    place.models.workers.gate.set()
    await until(lambda: place.models.find("b"))
    assert await ask(place) == "b@1"


async def test_the_fastest_is_not_one_whose_load_takes_longer_than_answers_do(place: Crossroads) -> None:
    await place.models.load("a")
    place.models.load_s = 60.0
    place.alias(Route("alias", BOTH, policy="fastest"))
    assert {await ask(place) for _ in range(20)} == {"a@1"}
    assert place.models.loads == ["a"]


async def test_a_load_is_billed_to_the_key_that_caused_it_though_it_did_not_wait(place: Crossroads) -> None:
    place.models.workers.gate.clear()
    hasty = asyncio.create_task(place.gateway.infer(Caller("hasty"), "a", REQUEST, Terms()))
    await until(lambda: place.models.loads)
    hasty.cancel()
    patient = asyncio.create_task(place.gateway.infer(Caller("patient"), "a", REQUEST, Terms()))
    await asyncio.sleep(0.05)
    place.models.workers.gate.set()
    assert (await patient).reference == "a@1"
    assert place.shares.keys == ["hasty", "patient"]  # the load, the answer
    assert place.shares.used("hasty") / place.shares.units_per_s() > 0.045


async def test_a_load_that_was_begun_by_others_is_billed_to_nobody(place: Crossroads) -> None:
    place.models.loading.add("a")
    assert (await place.gateway.infer(Caller("late"), "a", REQUEST, Terms())).reference == "a@1"
    assert place.shares.keys == ["late"]  # the answer


# a second target for slow ones


@pytest.fixture
async def usual(place: Crossroads, clock: ManualClock) -> None:
    """It is known how long `a` takes, and enough was saved up to ask twice two times."""
    await place.models.load("a", "b")
    place.alias(HEDGED)
    for _ in range(SAMPLES_MIN):
        assert await ask(place) == "a@1"
    clock.advance(1)


@pytest.mark.usefixtures("usual")
async def test_a_slow_request_is_also_sent_to_the_next_target_and_the_first_answer_counts(place: Crossroads) -> None:
    place.models.link("a").gate.clear()
    assert await ask(place) == "b@1"
    assert place.journal.hedges == [("alias", "a")]
    assert (place.models.link("a").cancelled, place.models.link("a").running) == (1, 0)
    assert place.models.resident("a").users == place.models.resident("b").users == 0


@pytest.mark.usefixtures("usual")
async def test_no_more_is_asked_twice_than_was_saved_up(place: Crossroads) -> None:
    place.models.link("a").gate.clear()
    assert [await ask(place), await ask(place)] == ["b@1", "b@1"]
    third = asyncio.create_task(ask(place))
    await asyncio.sleep(0.05)
    assert not third.done()
    place.models.link("a").gate.set()
    assert await third == "a@1"
    assert len(place.models.link("b").given) == 2


@pytest.mark.parametrize(("error", "answered_by"), [(Unavailable("down"), "a@1"), (InvalidRequest("no"), None)])
@pytest.mark.usefixtures("usual")
async def test_an_error_of_the_second_counts_only_if_it_is_the_callers(
    place: Crossroads, error: MocError, answered_by: str | None
) -> None:
    slow = place.models.link("a")
    slow.gate.clear()
    place.models.link("b").error = error
    task = asyncio.create_task(ask(place))
    await asyncio.wait([task], timeout=0.1)
    assert task.done() == (answered_by is None)
    slow.gate.set()
    if answered_by is None:
        with pytest.raises(InvalidRequest):
            await task
    else:
        assert await task == answered_by


@pytest.mark.usefixtures("usual")
async def test_a_caller_that_leaves_stops_both(place: Crossroads) -> None:
    links = [place.models.link(name) for name in ("a", "b")]
    for link in links:
        link.gate.clear()
    task = asyncio.create_task(ask(place))
    await until(lambda: links[1].running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(link.running, link.cancelled) for link in links] == [(0, 1), (0, 1)]


@pytest.mark.usefixtures("usual")
async def test_a_stream_is_asked_twice_only_when_it_may_be(place: Crossroads) -> None:
    place.models.link("a").gate.clear()
    stream = await place.gateway.stream(SOMEBODY, "alias", REQUEST, Terms(repeatable=True))
    assert (stream.reference, [chunk async for chunk in stream]) == ("b@1", [b"a", b"b", b"c"])
    task = asyncio.create_task(place.gateway.stream(SOMEBODY, "alias", REQUEST, Terms()))
    await asyncio.sleep(0.05)
    assert not task.done()
    place.models.link("a").gate.set()
    await (await task).aclose()
    assert place.journal.hedges == [("alias", "a")]


class Stubborn(FakeLink):
    """Its streams say nothing while `gate` is closed, and do not end at once when they are cancelled."""

    ending = False

    async def stream(self, request: Request) -> AsyncIterator[list[bytes]]:
        try:
            await self.gate.wait()
            yield [b"a"]
        except asyncio.CancelledError:
            self.ending = True
            await asyncio.Event().wait()


async def test_a_caller_that_leaves_while_the_slower_one_is_stopped_stops_the_other_too(
    place: Crossroads, clock: ManualClock
) -> None:
    await place.models.load("a", "b")
    slow = place.models.workers.links[place.models.resident("a").worker_id] = Stubborn(INFO)
    place.alias(HEDGED)
    for _ in range(SAMPLES_MIN):
        await ask(place)
    clock.advance(1)
    slow.gate.clear()
    task = asyncio.create_task(place.gateway.stream(SOMEBODY, "alias", REQUEST, Terms(repeatable=True)))
    await until(lambda: slow.ending)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert place.models.link("b").running == 0
    assert place.models.resident("a").users == place.models.resident("b").users == 0


# copies for a shadow


def shadowed(share_pct: float = 100) -> Route:
    return Route("alias", (Target("a", 1),), shadow=Shadow("b", share_pct))


async def test_a_shadow_gets_copies_and_nobody_waits_for_it(place: Crossroads) -> None:
    await place.models.load("a", "b")
    place.alias(shadowed())
    place.models.link("b").gate.clear()
    assert await ask(place) == "a@1"
    await until(lambda: place.models.link("b").running)
    assert place.journal.served == ["a@1"]
    place.models.link("b").gate.set()
    await until(lambda: place.journal.copies)
    assert place.journal.copies == [("alias", "b", "ok")]
    assert place.journal.served == ["a@1"]
    assert [place.observed.snapshot(reference).ok for reference in ("a@1", "b@1")] == [1, 1]
    assert place.models.resident("b").users == 0


async def test_a_shadow_sees_a_stream_whole(place: Crossroads) -> None:
    await place.models.load("a", "b")
    place.alias(shadowed())
    stream = await place.gateway.stream(SOMEBODY, "alias", REQUEST, Terms())
    await stream.aclose()
    await until(lambda: place.journal.copies)
    assert place.journal.copies == [("alias", "b", "ok")]


async def test_errors_of_a_shadow_reach_nobody_and_are_counted(place: Crossroads) -> None:
    await place.models.load("a", "b")
    place.alias(shadowed())
    place.models.link("b").error = Unavailable("down")
    assert await ask(place) == "a@1"
    await until(lambda: place.journal.copies)
    assert place.journal.copies == [("alias", "b", "unavailable")]
    assert place.observed.snapshot("b@1").failures == 1


async def test_a_bug_that_a_shadow_shows_is_counted_and_its_deadline_is_its_own(place: Crossroads) -> None:
    await place.models.load("a", "b")
    place.alias(shadowed())
    shadow = place.models.link("b")
    shadow.error = RuntimeError("a bug")
    deadline = Deadline.after(600)
    assert await ask(place, terms=Terms(deadline)) == "a@1"
    await until(lambda: place.journal.copies)
    assert place.journal.copies == [("alias", "b", "internal")]
    left_s = shadow.given[0].deadline.remaining_s()
    assert left_s is not None
    assert left_s <= COPY_TIMEOUT_S
    assert place.models.link("a").given[0].deadline == deadline


async def test_a_shadow_is_not_loaded_and_takes_only_places_that_are_free(place: Crossroads) -> None:
    await place.models.load("a")
    place.alias(shadowed())
    assert await ask(place) == "a@1"
    await place.models.load("b")
    place.models.link("b").gate.clear()
    for _ in range(COPIES_MAX + 5):
        assert await ask(place) == "a@1"
    assert place.journal.copies == [("alias", "b", "dropped")] * 6
    await place.gateway.stop()
    assert (place.models.link("b").running, place.models.resident("b").users) == (0, 0)


async def test_a_share_is_copied(place: Crossroads) -> None:
    await place.models.load("a", "b")
    place.alias(shadowed(25))
    for _ in range(400):
        await ask(place)
    await until(lambda: len(place.journal.copies) == len(place.models.link("b").given))
    assert 50 < len(place.journal.copies) < 150
