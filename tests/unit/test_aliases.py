"""Aliases against a real store: what they may be, what is remembered of them, and what they keep from going."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from moc.kernel.clock import SystemClock
from moc.kernel.errors import Conflict, InvalidRequest, NotFound, NotLeader
from moc.kernel.events import Event
from moc.kernel.records import ABSENT, Put
from moc.models.alias import Alias
from moc.models.aliases import AliasBook, Along
from moc.models.catalogue import Catalogue
from moc.models.model import ModelSpec
from moc.store.memory import MemoryStore
from moc.testing.seat import FakeSeat

SPEC = ModelSpec(runtime="python", source="file:a.py")
ONE = Alias(versions={"m@1": 100})
TWO = Alias(versions={"m@1": 90, "m@2": 10}, fallback=("cloud",), shadow={"m@3": 5}, sticky="session", hedge=True)


class Shelf:
    """A book of aliases over a store, with the models m@1 to m@3 and cloud@1."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.seat = FakeSeat(store, "host/fake")
        self.catalogue = Catalogue(store=store, seat=self.seat, clock=SystemClock())
        self.book = AliasBook(store=store, seat=self.seat, clock=SystemClock(), catalogue=self.catalogue)
        self.told: list[tuple[str, Alias | None]] = []
        self.book.on_change(lambda name, alias: self.told.append((name, alias)))

    async def start(self) -> "Shelf":
        await self.catalogue.start()
        await self.book.start()
        return self

    async def set(self, name: str, alias: Alias, **more: Any) -> int:
        return (await self.book.set(name, alias, actor="me", reason="Test", **more)).number

    async def history(self, name: str) -> list[tuple[int, str, Alias | None]]:
        return [(change.number, change.reason, change.alias) for change in await self.book.history(name)]


@pytest.fixture
async def shelf() -> AsyncIterator[Shelf]:
    store = MemoryStore()
    await store.start()
    shelf = Shelf(store)
    await shelf.seat.start()
    await shelf.start()
    for name, count in (("m", 3), ("cloud", 1)):
        for _ in range(count):
            await shelf.catalogue.add(name, SPEC, actor="test", anew=True)
    yield shelf
    await store.stop()


async def again(shelf: Shelf) -> Shelf:
    """The next coordinator over the same store."""
    following = Shelf(shelf.store)
    following.seat.term, following.seat.held = shelf.seat.term, True
    return await following.start()


async def test_what_is_set_counts_at_once_and_is_remembered(shelf: Shelf) -> None:
    assert await shelf.set("a", ONE) == 1
    assert await shelf.set("a", TWO) == 2
    assert await shelf.set("a", TWO) == 2  # the same again is no change
    assert shelf.book.find("a") == TWO
    assert shelf.told == [("a", ONE), ("a", TWO)]
    assert await shelf.history("a") == [(1, "Test", ONE), (2, "Test", TWO)]
    assert [change.number for change in await shelf.book.history("a", after=1)] == [2]
    events = [event for event in await shelf.store.events() if event.kind == "alias.set"]
    assert [(event.subject, event.actor, event.data["number"]) for event in events] == [("a", "me", 1), ("a", "me", 2)]
    assert events[1].data["versions"] == {"m@1": 90, "m@2": 10}
    following = await again(shelf)
    assert following.book.find("a") == TWO
    assert following.told == [("a", TWO)]


async def test_rollback_is_one_more_change_and_brings_back_what_was_removed(shelf: Shelf) -> None:
    await shelf.set("a", ONE)
    await shelf.set("a", TWO)
    assert (await shelf.book.rollback("a", actor="me")).alias == ONE
    assert (await shelf.book.rollback("a", actor="me")).alias == TWO
    assert (await shelf.book.rollback("a", actor="me", to=1)).alias == ONE
    await shelf.book.remove("a", actor="me", reason="Test")
    assert shelf.book.find("a") is None
    assert shelf.book.names() == []
    assert (await shelf.book.rollback("a", actor="me")).alias == ONE
    reasons = [reason for _, reason, _ in await shelf.history("a")]
    assert reasons == ["Test", "Test", "Rollback to 1", "Rollback to 2", "Rollback to 1", "Test", "Rollback to 5"]
    with pytest.raises(Conflict, match="was no alias then"):
        await shelf.book.rollback("a", actor="me", to=6)
    with pytest.raises(NotFound, match="has no change 9"):
        await shelf.book.rollback("a", actor="me", to=9)
    await shelf.set("new", ONE)
    with pytest.raises(Conflict, match="was no alias then"):
        await shelf.book.rollback("new", actor="me")
    for name in ("nobody", "m"):
        with pytest.raises(NotFound, match="there never was an alias"):
            await shelf.book.rollback(name, actor="me")


async def test_numbers_go_on_after_a_removal(shelf: Shelf) -> None:
    await shelf.set("a", ONE)
    await shelf.book.remove("a", actor="me", reason="Test")
    with pytest.raises(NotFound):
        await shelf.book.remove("a", actor="me", reason="Test")
    following = await again(shelf)
    assert following.told == [("a", None)]
    assert await following.set("a", TWO, expect=0) == 3
    assert [number for number, _, _ in await following.history("a")] == [1, 2, 3]


async def test_only_one_of_two_who_saw_the_same_changes_it(shelf: Shelf) -> None:
    number = await shelf.set("a", ONE, expect=0)
    results = await asyncio.gather(
        shelf.set("a", TWO, expect=number),
        shelf.set("a", Alias(versions={"m@3": 1}), expect=number),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [int, Conflict]
    assert shelf.book.find("a") == TWO
    for expect, message in ((0, "exists already"), (1, "is at change 2, not 1")):
        with pytest.raises(Conflict, match=message):
            await shelf.set("a", ONE, expect=expect)
    with pytest.raises(Conflict, match="is gone"):
        await shelf.set("b", ONE, expect=1)


@pytest.mark.parametrize(
    ("name", "alias", "message"),
    [
        ("-", ONE, "not a name"),
        ("a@1", ONE, "not a name"),
        ("a", Alias(versions={}), "name 1 to 32"),
        ("a", Alias(versions={"m@1": 0}), "every weight is 0"),
        ("a", Alias(versions={"m@1": -1, "m@2": 2}), "a weight is from 0"),
        ("a", Alias(versions={"m@1": float("nan")}), "a weight is from 0"),
        ("a", Alias(versions={"m@1": float("inf")}), "a weight is from 0"),
        ("a", Alias(versions={"m@": 1}), "not a model reference"),
        ("a", Alias(versions={"m@9": 1}), "has no version 9"),
        ("a", Alias(versions={"m@1": 1}, fallback=("gone",)), "there is no model 'gone'"),
        ("a", Alias(versions={"m@1": 1}, fallback=("m", "m")), "each once"),
        ("a", Alias(versions={"m@1": 1}, fallback=("other",)), "an alias stands for models alone"),
        ("a", Alias(versions={"a": 1}), "an alias stands for models alone"),
        ("a", Alias(versions={"m@1": 1}, shadow={"m@2": 0}), "more than 0"),
        ("a", Alias(versions={"m@1": 1}, shadow={"m@2": 101}), "at most 100"),
        ("a", Alias(versions={"m@1": 1}, shadow={"m@2": 1, "m@3": 1}), "one at most"),
    ],
)
async def test_what_cannot_be_is_refused_and_leaves_nothing(
    shelf: Shelf, name: str, alias: Alias, message: str
) -> None:
    await shelf.set("other", ONE)
    with pytest.raises(InvalidRequest, match=message):
        await shelf.set(name, alias)
    assert shelf.book.names() == ["other"]


async def test_a_name_is_an_alias_or_a_model(shelf: Shelf) -> None:
    await shelf.set("a", ONE)
    with pytest.raises(Conflict, match="m is a model"):
        await shelf.set("m", ONE)
    with pytest.raises(Conflict, match="a is an alias"):
        await shelf.catalogue.add("a", SPEC, actor="test")
    both = await asyncio.gather(
        shelf.set("b", ONE), shelf.catalogue.add("b", SPEC, actor="test"), return_exceptions=True
    )
    assert isinstance(both[1], Conflict)
    await shelf.book.remove("a", actor="me", reason="Test")
    await shelf.catalogue.add("a", SPEC, actor="test")
    with pytest.raises(Conflict, match="a is a model"):
        await shelf.book.rollback("a", actor="me")


async def test_what_an_alias_names_cannot_be_removed(shelf: Shelf) -> None:
    await shelf.set("a", TWO)
    for reference in ("m@1", "m@2", "m@3", "cloud"):
        with pytest.raises(Conflict, match="alias a names"):
            await shelf.catalogue.remove(shelf.catalogue.entry(reference), actor="test")
    await shelf.set("a", Alias(versions={"m": 1}))
    for reference in ("m@1", "m@2"):
        await shelf.catalogue.remove(shelf.catalogue.entry(reference), actor="test")
    with pytest.raises(Conflict, match="alias a names m"):  # the last one that its bare name stands for
        await shelf.catalogue.remove(shelf.catalogue.entry("m@3"), actor="test")
    await shelf.book.remove("a", actor="me", reason="Test")
    await shelf.catalogue.remove(shelf.catalogue.entry("m@3"), actor="test")


async def test_the_configuration_counts_when_it_says_something_new(shelf: Shelf) -> None:
    await shelf.book.configure("a", ONE)
    await shelf.book.configure("a", ONE)
    assert await shelf.history("a") == [(1, "Configured", ONE)]
    await shelf.set("a", TWO)
    following = await again(shelf)
    await following.book.configure("a", ONE)
    assert following.book.find("a") == TWO  # it was changed since, and the configuration was not
    await following.book.remove("a", actor="me", reason="Test")
    await following.book.configure("a", ONE)
    assert following.book.find("a") is None
    three = Alias(versions={"m@3": 1})
    await following.book.configure("a", three)
    assert following.book.find("a") == three
    await following.set("a", TWO)
    await following.book.configure("a", TWO)  # it says what is so already
    await following.set("a", ONE)
    await following.book.configure("a", TWO)
    assert following.book.find("a") == ONE


async def test_what_the_configuration_says_no_more_goes(shelf: Shelf) -> None:
    await shelf.book.configure("a", ONE)
    await shelf.set("a", TWO)
    await shelf.set("own", ONE)
    for name in ("a", "own", "never"):
        await shelf.book.configure(name, None)
    assert shelf.book.names() == ["own"]
    assert [reason for _, reason, _ in await shelf.history("a")] == ["Configured", "Test", "Configured"]
    await shelf.book.configure("a", ONE)  # as it said long ago, but not the last time
    assert shelf.book.find("a") == ONE


async def test_nothing_but_the_rollout_changes_an_alias_that_it_moves(shelf: Shelf) -> None:
    await shelf.set("a", ONE)
    await shelf.book.claim("a", "rol-1")
    with pytest.raises(Conflict, match="rollout rol-1"):
        await shelf.book.claim("a", "rol-2")
    for change in (
        shelf.set("a", TWO),
        shelf.set("a", TWO, rollout="rol-2"),
        shelf.book.rollback("a", actor="me", to=1),
        shelf.book.remove("a", actor="me", reason="Test"),
        shelf.book.configure("a", TWO),
    ):
        with pytest.raises(Conflict, match="rollout rol-1"):
            await change
    steps = [Alias(versions={"m@1": 100 - share, "m@2": share}) for share in (1, 50)]
    for step in steps:
        await shelf.set("a", step, rollout="rol-1")
    shelf.book.freed("a")
    assert (await shelf.book.rollback("a", actor="me")).alias == ONE  # all its steps are one change
    assert (await shelf.book.rollback("a", actor="me")).alias == steps[1]


async def test_what_goes_along_is_in_the_same_commit(shelf: Shelf) -> None:
    number = await shelf.set("a", ONE)
    revisions: list[int] = []
    event = Event(kind="rollout.progressing", subject="rol-1")
    along = Along([Put("note", b"1", ABSENT)], [event], revisions.append)
    await shelf.set("a", TWO, along=along)
    note = await shelf.store.get("note")
    assert note is not None
    assert [note.revision] == revisions
    assert [each.kind for each in (await shelf.store.events())[-2:]] == ["alias.set", "rollout.progressing"]
    with pytest.raises(Conflict):
        await shelf.set("a", ONE, along=along)  # what cannot be done along leaves the alias as it is
    assert (shelf.book.find("a"), shelf.book.newest("a").number) == (TWO, number + 1)


async def test_a_coordinator_whose_term_is_over_changes_nothing(shelf: Shelf) -> None:
    await shelf.set("a", ONE)
    shelf.seat.lose()
    with pytest.raises(NotLeader):
        await shelf.set("a", TWO)
    assert shelf.book.find("a") == ONE
    assert shelf.told == [("a", ONE)]
