"""Requests that fail: tried again, passed on to other targets, refused while a circuit is open."""

import asyncio

import pytest

from moc.inference.gateway import REPEATABLE
from moc.inference.request import Caller, Info, Kind, Request, Terms
from moc.inference.routing import Route, Target
from moc.inference.station import TrafficLimits
from moc.kernel.errors import (
    CircuitOpen,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    LoadFailed,
    MocError,
    NoCapacity,
    Unavailable,
    WorkerLost,
    code_of,
)
from moc.models.resident import Resident
from moc.resilience.breaker import BreakerLimits, Circuit
from moc.resilience.deadline import Deadline
from moc.testing.clock import ManualClock
from tests.crossroads import Crossroads, Models, until

SOMEBODY = Caller("key")
ANY = Info(kinds=("tensors", "chat", "embeddings", "rerank"), engine="fake", concurrency=64)
REQUEST = Request("chat", b"abc")
AGAIN = Terms(repeatable=True)
ROUTE = Route("alias", (Target("m", 100),), fallback=("spare", "cloud"))


@pytest.fixture
def place() -> Crossroads:
    place = Crossroads(Models(ANY))
    place.alias(ROUTE)
    return place


async def ask(place: Crossroads, name: str = "alias", terms: Terms | None = None, kind: Kind = "chat") -> str:
    """The version that answered."""
    answer = await place.gateway.infer(SOMEBODY, name, Request(kind, b"abc"), terms or Terms())
    return answer.reference


async def fails(place: Crossroads, name: str, terms: Terms | None = None, kind: Kind = "chat") -> MocError:
    with pytest.raises(MocError) as failed:
        await ask(place, name, terms, kind)
    return failed.value


async def test_an_alias_is_answered_by_its_target(place: Crossroads) -> None:
    assert await ask(place) == "m@1"
    assert (place.models.loads, place.journal.fallbacks) == (["m"], [])


@pytest.mark.parametrize(
    "error",
    [
        WorkerLost("gone", sent=True),
        Unavailable("down"),
        Internal("bug"),
        MocError("bug"),
        NoCapacity("no room"),
        RuntimeError("a bug nobody foresaw"),
    ],
)
async def test_a_target_that_fails_is_followed_by_the_next(place: Crossroads, error: Exception) -> None:
    await place.models.load("m")
    place.models.link("m").error = error
    assert await ask(place) == "spare@1"
    assert place.journal.fallbacks == [("alias", "m", code_of(error))]


async def test_a_target_that_cannot_be_loaded_is_followed_by_the_next(place: Crossroads) -> None:
    place.models.errors = {
        "m": LoadFailed("no such file", reason="load_failed"),
        "spare": CircuitOpen("it keeps failing", retry_after_s=9),
    }
    assert await ask(place) == "cloud@1"
    assert [code for _, _, code in place.journal.fallbacks] == ["load_failed", "circuit_open"]


async def test_a_load_that_cannot_be_in_time_is_begun_and_not_waited_for(place: Crossroads) -> None:
    await place.models.load("spare")
    place.alias(Route("alias", (Target("m", 100),), fallback=("spare",)))
    place.models.load_s = 60.0
    place.models.workers.gate.clear()
    assert await ask(place, terms=Terms(Deadline.after(30))) == "spare@1"
    refused = await fails(place, "m", Terms(Deadline.after(30)))
    assert (refused.code, refused.retry_after_s) == ("deadline_unreachable", 60.0)
    place.models.load_s = 20.0
    place.models.workers.gate.set()
    assert await ask(place, "m", Terms(Deadline.after(30))) == "m@1"
    assert place.models.loads.count("m") >= 1


async def test_a_fault_of_the_caller_is_told_at_once(place: Crossroads) -> None:
    await place.models.load("m")
    place.models.link("m").error = InvalidRequest("no messages")
    error = await fails(place, "alias")
    assert (error.code, error.details, place.models.loads) == ("invalid_request", {}, ["m"])


async def test_when_all_fail_the_most_telling_error_names_them_all(place: Crossroads) -> None:
    lost = Unavailable("the engine is down", details={"engine": 7}, retry_after_s=3)
    place.models.errors = {
        "m": CircuitOpen("m keeps failing", retry_after_s=9),
        "spare": lost,
        "cloud": LoadFailed("no key", reason="load_failed"),
    }
    error = await fails(place, "alias")
    tried = [
        {"reference": "m", "code": "circuit_open"},
        {"reference": "spare", "code": "unavailable"},
        {"reference": "cloud", "code": "load_failed"},
    ]
    assert isinstance(error, Unavailable)
    assert (error.message, error.retry_after_s) == ("the engine is down", 3)
    assert error.details == {"engine": 7, "tried": tried}
    assert lost.details == {"engine": 7}


async def test_no_other_target_is_tried_when_there_is_no_time_left(place: Crossroads) -> None:
    await place.models.load("m")
    place.models.link("m").gate.clear()
    error = await fails(place, "alias", Terms(Deadline.after(0.02)))
    assert isinstance(error, DeadlineExceeded)
    assert place.models.loads == ["m"]
    assert place.models.resident("m").users == 0


async def test_a_caller_that_leaves_between_targets_leaves_nothing_behind(place: Crossroads) -> None:
    await place.models.load("m", "spare")
    place.models.link("m").error = Unavailable("down")
    place.models.link("spare").gate.clear()
    task = asyncio.create_task(ask(place))
    await until(lambda: place.models.link("spare").running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert place.models.link("spare").cancelled == 1
    assert place.models.resident("m").users == place.models.resident("spare").users == 0


async def test_a_stream_falls_back_until_its_first_chunk(place: Crossroads) -> None:
    await place.models.load("m")
    place.models.link("m").error = WorkerLost("gone", sent=True)
    stream = await place.gateway.stream(SOMEBODY, "alias", REQUEST, Terms())
    assert (stream.reference, [chunk async for chunk in stream]) == ("spare@1", [b"a", b"b", b"c"])


async def test_who_will_speak_is_not_yet_said(place: Crossroads) -> None:
    """A stream that breaks after its first chunk, which has no more than a role in it, falls back too."""
    role = b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}'
    word = b'{"choices":[{"index":0,"delta":{"content":"one"}}]}'
    await place.models.load("m", "spare")
    place.models.link("m").script = [role, WorkerLost("gone", sent=True)]
    place.models.link("spare").script = [role, word]
    stream = await place.gateway.stream(SOMEBODY, "alias", REQUEST, Terms())
    assert stream.reference == "spare@1"
    assert [chunk async for chunk in stream] == [role, word]
    assert place.journal.fallbacks == [("alias", "m", "worker_lost")]


async def test_a_stream_that_breaks_says_how_far_it_got(place: Crossroads) -> None:
    stream = await place.gateway.stream(SOMEBODY, "alias", REQUEST, Terms())
    assert [await anext(stream), await anext(stream)] == [b"a", b"b"]
    place.models.link("m").error = WorkerLost("the worker went away", sent=True)
    with pytest.raises(WorkerLost, match=r"incomplete.*after 2 chunks: the worker went away") as broken:
        await anext(stream)
    assert broken.value.details == {"sent": True, "chunks": 2, "incomplete": True}
    assert place.models.loads == ["m"]


# the same model again


async def spoilt(place: Crossroads, name: str, error: MocError, *, answered: int) -> None:
    """A model that answered so often, and fails from now on."""
    for _ in range(answered):
        await ask(place, name)
    place.models.link(name).error = error


@pytest.mark.parametrize("kind", ["chat", "tensors", "embeddings", "rerank"])
@pytest.mark.parametrize("repeatable", [True, False])
async def test_what_may_be_run_twice_is_asked_again(place: Crossroads, kind: Kind, repeatable: bool) -> None:
    await spoilt(place, "m", Unavailable("down"), answered=10)
    await fails(place, "m", Terms(repeatable=repeatable), kind)
    asked_again = repeatable or kind in REPEATABLE
    assert len(place.models.link("m").given) == 10 + 1 + asked_again
    assert place.journal.retries == [("m", "unavailable")] * asked_again


@pytest.mark.parametrize("error", [Internal("bug"), InvalidRequest("no"), NoCapacity("full"), DeadlineExceeded("late")])
async def test_what_would_fail_again_is_not_asked_again(place: Crossroads, error: MocError) -> None:
    await spoilt(place, "m", error, answered=10)
    await fails(place, "m", AGAIN)
    assert len(place.models.link("m").given) == 11


async def test_what_was_lost_on_the_way_is_answered_by_the_next_worker(place: Crossroads) -> None:
    for _ in range(10):
        await ask(place, "m")
    place.models.link("m").gate.clear()
    task = asyncio.create_task(ask(place, "m", AGAIN))
    await until(lambda: place.models.link("m").running)
    place.models.crash("m")
    assert await task == "m@1"
    assert place.models.loads == ["m", "m"]


class Slow(Models):
    """Does not know of a worker that it is gone before it was asked so often; see Residents.find."""

    asked = 0

    def find(self, reference: str) -> Resident | None:
        self.asked += 1
        return self._residents.get(reference) if self.asked < 5 else super().find(reference)


async def test_what_was_not_sent_waits_until_it_is_known_that_the_worker_is_gone() -> None:
    models = Slow(ANY)
    place = Crossroads(models)
    await models.load("m")
    models.crash("m")
    assert await ask(place, "m") == "m@1"
    assert (models.loads, place.journal.retries) == (["m", "m"], [("m", "worker_lost")])


@pytest.mark.parametrize("limit_s", [None, 0.1])
async def test_it_waits_no_longer_than_a_moment_or_than_there_is_time(limit_s: float | None) -> None:
    models = Slow(ANY)
    models.asked = -(10**6)
    await models.load("m")
    models.crash("m")
    assert (await fails(Crossroads(models), "m", Terms(Deadline.after(limit_s)))).code == "worker_lost"
    assert models.loads == ["m"]


async def test_the_last_target_of_an_alias_is_asked_again(place: Crossroads) -> None:
    place.alias(Route("single", (Target("m", 1),)))
    await spoilt(place, "m", Unavailable("down"), answered=10)
    await fails(place, "single", AGAIN)
    assert len(place.models.link("m").given) == 12


async def test_in_a_full_outage_hardly_more_is_asked_than_callers_ask() -> None:
    place = Crossroads(Models(ANY), limits=TrafficLimits(breaker=BreakerLimits(failure_threshold=10**6)))
    await place.models.load("m")
    place.models.link("m").error = Unavailable("down")
    await asyncio.gather(*(fails(place, "m", AGAIN) for _ in range(500)))
    assert len(place.models.link("m").given) <= 500 * 1.1


async def test_nothing_is_asked_again_past_the_deadline(place: Crossroads) -> None:
    await spoilt(place, "m", Unavailable("down"), answered=10)
    error = await fails(place, "m", Terms(Deadline.after(0.009), repeatable=True))
    assert isinstance(error, Unavailable | DeadlineExceeded)
    assert len(place.models.link("m").given) <= 11


# circuits


def failing_fast(clock: ManualClock) -> Crossroads:
    limits = TrafficLimits(breaker=BreakerLimits(failure_threshold=3, reset_timeout_s=10))
    place = Crossroads(Models(ANY), limits=limits, clock=clock)
    place.alias(ROUTE)
    return place


async def test_a_model_that_keeps_failing_is_left_alone_until_a_try_goes_well() -> None:
    clock = ManualClock()
    place = failing_fast(clock)
    await place.models.load("m")
    link, worker_id = place.models.link("m"), place.models.resident("m").worker_id
    link.error = Internal("bug")
    assert [(await fails(place, "m")).code for _ in range(5)] == ["internal"] * 3 + ["circuit_open"] * 2
    assert (len(link.given), place.gateway.stations.circuit(worker_id)) == (3, Circuit.OPEN)
    clock.advance(10)
    link.error = None
    link.gate.clear()
    trying = asyncio.create_task(ask(place, "m"))
    await until(lambda: link.running)
    assert (await fails(place, "m")).code == "circuit_open"
    link.gate.set()
    assert await trying == await ask(place, "m") == "m@1"
    assert [circuit for _, circuit in place.journal.circuits] == [Circuit.OPEN, Circuit.HALF_OPEN, Circuit.CLOSED]


async def test_a_try_whose_caller_leaves_is_given_to_the_next() -> None:
    clock = ManualClock()
    place = failing_fast(clock)
    await place.models.load("m")
    link = place.models.link("m")
    link.error = Internal("bug")
    for _ in range(3):
        await fails(place, "m")
    clock.advance(10)
    link.error = None
    link.gate.clear()
    error = await fails(place, "m", Terms(Deadline.after(0.01)))
    assert isinstance(error, DeadlineExceeded)
    link.gate.set()
    assert await ask(place, "m") == "m@1"


async def test_a_try_that_is_a_stream_closes_the_circuit_when_it_begins() -> None:
    clock = ManualClock()
    place = failing_fast(clock)
    await place.models.load("m")
    link = place.models.link("m")
    link.error = Internal("bug")
    for _ in range(3):
        await fails(place, "m")
    clock.advance(10)
    link.error = None
    stream = await place.gateway.stream(SOMEBODY, "m", REQUEST, Terms())
    assert await ask(place, "m") == "m@1"
    await stream.aclose()
    assert [circuit for _, circuit in place.journal.circuits] == [Circuit.OPEN, Circuit.HALF_OPEN, Circuit.CLOSED]


async def test_streams_that_break_after_they_began_open_the_circuit() -> None:
    place = failing_fast(ManualClock())
    await place.models.load("m")
    place.models.link("m").script = [b"{}", Internal("bug")]
    for _ in range(3):
        stream = await place.gateway.stream(SOMEBODY, "m", REQUEST, Terms())
        with pytest.raises(Internal):
            assert [chunk async for chunk in stream]
    assert (await fails(place, "m")).code == "circuit_open"


@pytest.mark.parametrize("error", [InvalidRequest("no"), DeadlineExceeded("late"), NoCapacity("full")])
async def test_faults_of_callers_and_want_of_room_open_no_circuit(error: MocError) -> None:
    place = failing_fast(ManualClock())
    await place.models.load("m")
    place.models.link("m").error = error
    assert {(await fails(place, "m")).code for _ in range(6)} == {error.code}


async def test_an_alias_passes_by_an_open_circuit_and_a_worker_that_is_not_well() -> None:
    place = failing_fast(ManualClock())
    await place.models.load("m", "spare")
    place.models.link("m").error = Internal("bug")
    for _ in range(3):
        assert await ask(place) == "spare@1"
    place.journal.fallbacks.clear()
    assert (await ask(place), place.journal.fallbacks) == ("spare@1", [])
    place.facts.unwell.add(place.models.resident("spare").worker_id)
    assert (await ask(place), place.journal.fallbacks) == ("cloud@1", [])


async def test_a_worker_that_does_not_respond_is_given_nothing() -> None:
    place = failing_fast(ManualClock())
    await place.models.load("m")
    place.models.link("m").responsive = False
    for _ in range(6):
        assert isinstance(await fails(place, "m"), Unavailable)
    place.models.link("m").responsive = True
    assert await ask(place, "m") == "m@1"
    assert len(place.models.link("m").given) == 1
