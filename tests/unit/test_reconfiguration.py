"""Configurations put in force over real catalogues: all of one or nothing, whatever fails and whenever it ends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from moc.config import Config, load
from moc.config.history import History
from moc.config.inventory import Inventory
from moc.config.reconfiguration import Reconfiguration
from moc.kernel.clock import SystemClock
from moc.kernel.component import Stack
from moc.kernel.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable
from moc.kernel.events import Event
from moc.kernel.records import Op
from moc.models.alias import Alias
from moc.models.aliases import AliasBook
from moc.models.catalogue import Catalogue
from moc.models.footprints import Footprints
from moc.models.manager import ModelManager
from moc.models.model import ModelSpec
from moc.models.slot import Limits
from moc.resilience.deadline import NEVER
from moc.store.memory import MemoryStore
from moc.testing.seat import FakeSeat
from moc.testing.workers import FakeMemory, FakeSources, FakeWorkers

SMALL: dict[str, Any] = {"models": {"a": {"runtime": "python", "source": "file:a.py"}}}
LARGE: dict[str, Any] = {
    "models": {
        "a": {"runtime": "python", "source": "file:newer.py"},
        "b": {"runtime": "python", "source": "file:b.py"},
    },
    "aliases": {"front": {"versions": {"a": 1}, "fallback": ["b"]}},
    "resources": {"soft_limit_pct": 50},
}


class Mortal(MemoryStore):
    """A store that takes `left` more commits, then fails: once, or, when it `dies`, for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.left: int | None = None
        self.dies = False

    async def commit(self, ops: Sequence[Op], events: Sequence[Event] = ()) -> int:
        if self.left == 0:
            self.left = 0 if self.dies else None
            raise StoreUnavailable("the store is gone")
        if self.left is not None:
            self.left -= 1
        return await super().commit(ops, events)


class Site:
    """A data directory, its store, and the coordinators that come one after the other."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.store = Mortal()
        self.taken_up: list[Config] = []
        self.vouched: list[Config] = []
        self.workers = FakeWorkers()
        self.sources = FakeSources()

    def write(self, sections: dict[str, Any]) -> None:
        """Change the file."""
        (self.data_dir / "moc.yaml").write_text(text_of(sections))

    def take_up(self, config: Config, vouched: Config) -> None:
        """See `Reconfiguration`."""
        self.taken_up.append(config)
        self.vouched.append(vouched)

    @asynccontextmanager
    async def running(self, **options: Any) -> AsyncIterator[Reconfiguration]:
        """A coordinator from its start to its end."""
        config = load(data_dir=self.data_dir, file=None, ports={}, **options)
        seat, clock, store = FakeSeat(self.store), SystemClock(), self.store
        self.catalogue = Catalogue(store=store, seat=seat, clock=clock)
        self.aliases = AliasBook(store=store, seat=seat, clock=clock, catalogue=self.catalogue)
        self.manager = ModelManager(
            catalogue=self.catalogue,
            workers=self.workers,
            sources=self.sources,
            footprints=Footprints(store=store, clock=clock),
            memory=FakeMemory(),
            limits=Limits(),
            on_loaded=lambda *_: None,
        )
        inventory = Inventory(
            catalogue=self.catalogue, manager=self.manager, aliases=self.aliases, sources=self.sources
        )
        history = History(store=store, seat=seat)
        running = Reconfiguration(config, history=history, inventory=inventory, take_up=self.take_up, clock=clock)
        stack = Stack([store, seat, self.catalogue, self.aliases, running, self.manager])
        await stack.start()
        try:
            yield running
        finally:
            await stack.stop()

    @property
    def sources_there(self) -> dict[str, str]:
        """The source of what each model's name stands for."""
        return {name: self.catalogue.entry(name).version.spec.source for name in self.catalogue.names()}

    def standing(self) -> tuple[dict[str, str], dict[str, Alias | None], float]:
        """All that a configuration decides."""
        aliases = {name: self.aliases.find(name) for name in self.aliases.names()}
        return self.sources_there, aliases, self.taken_up[-1].settings.resources.soft_limit_pct

    async def events(self, kind: str) -> list[Event]:
        return [event for event in await self.store.events() if event.kind == kind]


async def until(feed: AsyncIterator[Event], kind: str) -> AsyncIterator[Event]:
    """Events up to the first of a kind."""
    async for event in feed:
        yield event
        if event.kind == kind:
            return


def text_of(sections: dict[str, Any]) -> str:
    return yaml.safe_dump(sections)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_what_is_applied_is_there_at_once_and_after_a_restart(site: Site) -> None:
    site.write(SMALL)
    async with site.running() as configuration:
        found = await configuration.diff(text_of(LARGE), "new.yaml")
        assert [(change.key, change.live) for change in found] == [
            ("aliases.front", True),
            ("models.a.source", True),
            ("models.b", True),
            ("resources.soft_limit_pct", True),
        ]
        assert (configuration.revision.reason, site.standing()) == ("Start", ({"a": "file:a.py"}, {}, 90))
        revision = await configuration.apply(text_of(LARGE), "new.yaml", actor="key")
        assert (revision.number, revision.actor, revision.outcome) == (2, "key", "applied")
        assert list(revision.changes) == found
        after = site.standing()
        assert after[0] == {"a": "file:newer.py", "b": "file:b.py"}
        assert (set(after[1]), after[2]) == ({"front"}, 50)
        (event,) = [event for event in await site.events("config.applied") if event.subject == "2"]
        assert (event.actor, event.data["changes"]) == ("key", [change.key for change in found])
    async with site.running() as configuration:
        assert (configuration.revision.number, site.standing()) == (2, after)
        assert configuration.settings()["resources"]["soft_limit_pct"] == 50


async def test_a_file_that_was_edited_counts_at_the_next_start(site: Site) -> None:
    site.write(SMALL)
    async with site.running() as configuration:
        await configuration.apply(text_of(LARGE), "new.yaml", actor="key")
    site.write({"models": {"c": {"runtime": "python", "source": "file:c.py"}}, "server": {"rest_port": 1234}})
    async with site.running() as configuration:
        assert (configuration.revision.number, configuration.revision.reason) == (3, "Start")
        assert site.standing() == ({"c": "file:c.py"}, {}, 90)
    async with site.running() as configuration:
        assert configuration.revision.number == 3


async def test_the_same_text_is_the_same_revision_and_brings_back_what_is_gone(site: Site) -> None:
    site.write(SMALL)
    async with site.running() as configuration:
        await site.manager.remove("a", actor="somebody")
        revision = await configuration.apply(text_of(SMALL), "moc.yaml", actor="key")
        assert revision.number == 1
        assert site.sources_there == {"a": "file:a.py"}


async def test_what_needs_a_restart_is_refused_with_everything_beside_it(site: Site) -> None:
    async with site.running() as configuration:
        before = site.standing() if site.taken_up else None
        text = text_of({**LARGE, "server": {"rest_port": 1}, "devices": []})
        found = await configuration.diff(text, "x.yaml")
        assert [change.key for change in found if not change.live] == ["devices", "server.rest_port"]
        with pytest.raises(Conflict) as refused:
            await configuration.apply(text, "x.yaml", actor="key")
        assert refused.value.details["restart"] == ["devices", "server.rest_port"]
        assert (site.standing(), configuration.revision.number) == (before, 1)
        (event,) = await site.events("config.refused")
        assert (event.subject, event.actor) == ("x.yaml", "key")
        assert "server.rest_port" in event.data["message"]


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"resources": {"soft_limit": 1}}, "x.yaml:2: resources.soft_limit: unknown key; did you mean"),
        ({"aliases": {"f": {"versions": {"nobody": 1}}}}, "x.yaml:2: aliases.f: names nobody"),
        ({"models": {"a": SMALL["models"]["a"]}, "aliases": {"a": {"versions": {"a": 1}}}}, "is a model of that name"),
        ({"models": {"m": {"runtime": "cobol", "source": "file:x"}}}, "x.yaml:2: models.m: unknown runtime"),
    ],
)
async def test_what_is_wrong_is_told_with_its_line_and_changes_nothing(
    site: Site, sections: dict[str, Any], problem: str
) -> None:
    async with site.running() as configuration:
        before = site.standing()
        with pytest.raises(InvalidRequest) as refused:
            await configuration.diff(text_of(sections), "x.yaml")
        assert problem in refused.value.message
        with pytest.raises(InvalidRequest) as refused:
            await configuration.apply(text_of(sections), "x.yaml", actor="key")
        assert problem in refused.value.message
        assert site.standing() == before


async def apply(configuration: Reconfiguration, sections: dict[str, Any]) -> None:
    await configuration.apply(text_of(sections), "moc.yaml", actor="key")


async def test_the_environment_wins_and_is_checked_with_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site.running() as configuration:
        monkeypatch.setenv("MOC_RESOURCES__SOFT_LIMIT_PCT", "70")
        await apply(configuration, {"resources": {"soft_limit_pct": 60}})
        assert site.taken_up[-1].settings.resources.soft_limit_pct == 70
        monkeypatch.setenv("MOC_RESOURCES__SOFT_LIMIT_PCT", "700")
        with pytest.raises(InvalidRequest, match="MOC_RESOURCES__SOFT_LIMIT_PCT"):
            await apply(configuration, {"resources": {"soft_limit_pct": 50}})


async def test_rolling_back_is_one_more_revision(site: Site) -> None:
    site.write(SMALL)
    async with site.running() as configuration:
        before = site.standing()
        await apply(configuration, LARGE)
        revision = await configuration.rollback(1, actor="key")
        assert (revision.number, revision.reason, site.standing()) == (3, "Rollback to 1", before)
        assert [each.number for each in await configuration.history(after=1, limit=10)] == [2, 3]
        with pytest.raises(NotFound, match="config history"):
            await configuration.rollback(9, actor="key")


async def test_what_an_operator_changed_stays_until_its_entry_does(site: Site) -> None:
    site.write(SMALL)
    async with site.running() as configuration:
        await apply(configuration, LARGE)
        await site.manager.add("a", ModelSpec(runtime="python", source="file:mine.py"), actor="somebody")
        mine = Alias(versions={"b": 1.0})
        await site.aliases.set("front", mine, actor="somebody", reason="")
        await apply(configuration, {**LARGE, "resources": {"soft_limit_pct": 40}})
        assert (site.sources_there["a"], site.aliases.find("front")) == ("file:mine.py", mine)
    async with site.running() as configuration:
        assert (site.sources_there["a"], site.aliases.find("front")) == ("file:mine.py", mine)
        changed = {**LARGE, "models": {**LARGE["models"], "a": {"runtime": "python", "source": "file:third.py"}}}
        await apply(configuration, changed)
        assert (site.sources_there["a"], site.aliases.find("front")) == ("file:third.py", mine)


async def test_only_what_the_configuration_brought_goes_with_its_entry(site: Site) -> None:
    async with site.running() as configuration:
        own = ModelSpec(runtime="python", source="file:own.py")
        await site.manager.add("a", own, actor="somebody")
        await apply(configuration, LARGE)
        await site.manager.ensure_ready("b", NEVER)
        await apply(configuration, {})
        assert site.sources_there == {"a": "file:newer.py"}
        assert site.workers.workers() == []
        assert site.aliases.names() == []
        await apply(configuration, LARGE)
        assert site.aliases.names() == ["front"]


async def test_what_an_alias_of_somebody_names_cannot_go(site: Site) -> None:
    async with site.running() as configuration:
        await apply(configuration, LARGE)
        await site.aliases.set("mine", Alias(versions={"b@1": 1.0}), actor="somebody", reason="")
        before = site.standing()
        with pytest.raises(Conflict, match="alias mine names b@1"):
            await apply(configuration, SMALL)
        assert site.standing() == before
    site.write(SMALL)
    async with site.running() as configuration:
        assert set(site.sources_there) == {"a", "b"}
        await site.aliases.remove("mine", actor="somebody", reason="")
        await apply(configuration, {**SMALL, "resources": {"eviction": "lru"}})
        assert set(site.sources_there) == {"a"}


async def test_a_new_model_to_be_preloaded_is_loaded(site: Site) -> None:
    async with site.running() as configuration:
        sections = {"models": {"a": {"runtime": "python", "source": "file:a.py", "preload": True}}}
        await apply(configuration, sections)
        resident = await site.manager.ensure_ready("a", NEVER)
        assert site.catalogue.entry("a").status.reason == "Preload"
        assert resident.reference == "a@1"


async def test_the_starter_is_there_while_it_is_asked_for_and_no_entry_takes_it_away(site: Site) -> None:
    async with site.running(starter=True) as configuration:
        await apply(configuration, SMALL)
        assert set(site.sources_there) == {"a", "smollm2"}
    async with site.running():
        assert set(site.sources_there) == {"a", "smollm2"}


async def test_a_failing_store_leaves_all_or_nothing(site: Site) -> None:
    """The store fails at every commit of a change in turn."""
    site.write(SMALL)
    async with site.running() as configuration:
        before, number, failures = site.standing(), 1, 0
        while number == 1:
            site.store.left = failures
            try:
                await apply(configuration, LARGE)
            except StoreUnavailable:
                assert site.standing() == before
                failures += 1
            number = configuration.revision.number
        assert failures >= 5
        assert site.standing()[0] == {"a": "file:newer.py", "b": "file:b.py"}
        assert [each.outcome for each in await configuration.history(after=0, limit=1000)].count("applied") == 2


@pytest.mark.parametrize("target", ["LARGE", "nothing"])
async def test_a_coordinator_that_ends_midway_leaves_all_or_nothing(tmp_path: Path, target: str) -> None:
    """It ends at every commit of a change in turn; the next one starts over what is left."""
    sections = LARGE if target == "LARGE" else {"resources": {"soft_limit_pct": 50}}
    ends, seen = 0, set()
    while True:
        folder = tmp_path / str(ends)
        folder.mkdir()
        site = Site(folder)
        site.write(SMALL)
        async with site.running() as configuration:
            before = site.standing()
            site.store.left, site.store.dies = ends, True
            try:
                await apply(configuration, sections)
                done = site.store.left > 0
            except StoreUnavailable:
                done = False
            after_apply = site.standing()
            site.store.left = None
        async with site.running() as configuration:
            number = configuration.revision.number
            seen.add(number)
            assert site.standing()[2] == (90 if number == 1 else 50)
            if number == 1:
                assert site.standing() == before
            elif target == "LARGE":
                assert site.sources_there == {"a": "file:newer.py", "b": "file:b.py"}
                assert site.aliases.names() == ["front"]
            else:
                assert site.sources_there == {}
            outcomes = [each.outcome for each in await configuration.history(after=0, limit=10)]
            assert "applying" not in outcomes
        if done:
            assert after_apply == site.standing()
            break
        ends += 1
    assert seen == {1, 2}


async def test_the_file_is_read_again_when_asked(site: Site) -> None:
    site.write(SMALL)
    async with site.running() as configuration:
        await apply(configuration, LARGE)
        feed = site.store.follow(after=await site.store.last_event_id())
        configuration.reread_soon()
        async with asyncio.timeout(10):
            told = [event async for event in until(feed, "model.removed")]
        (event,) = [event for event in told if event.kind == "config.applied"]
        assert (event.reason, event.subject, site.sources_there) == ("Signal", "3", {"a": "file:a.py"})
        (site.data_dir / "moc.yaml").write_text("nonsense: 1")
        configuration.reread_soon()
        async with asyncio.timeout(10):
            *_, event = [event async for event in until(feed, "config.refused")]
        assert event.subject == str(site.data_dir / "moc.yaml")
        assert "moc.yaml:1: nonsense" in event.data["message"]
        assert configuration.revision.number == 3


async def test_what_is_no_longer_understood_gives_way_to_the_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write(SMALL)
    monkeypatch.setenv("MOC_SERVER__REST_PORT", "0")
    async with site.running() as configuration:
        await apply(configuration, {**LARGE, "server": {"rest_port": 1}})
    monkeypatch.delenv("MOC_SERVER__REST_PORT")
    async with site.running() as configuration:
        assert (configuration.revision.number, site.sources_there) == (3, {"a": "file:a.py"})


async def test_secrets_are_not_shown(site: Site) -> None:
    async with site.running() as configuration:
        options = {"headers": {"authorization": "Bearer abc"}, "env": {"HF_TOKEN": "hf"}}
        text = text_of({"models": {"r": {"runtime": "python", "source": "file:r.py", "options": options}}})
        shown = [str(change) for change in await configuration.diff(text, "x.yaml")]
        await configuration.apply(text, "x.yaml", actor="key")
        shown += [str(configuration.settings()), str(configuration.revision.changes)]
        for each in shown:
            assert "redacted" in each
            assert "abc" not in each
            assert "'hf'" not in each


async def test_what_an_interrupted_start_brought_goes_with_its_entry(site: Site) -> None:
    async with site.running():
        pass
    site.write(LARGE)
    site.store.left, site.store.dies = 4, True
    with pytest.raises(StoreUnavailable):
        async with site.running():
            pass
    site.store.left = None
    async with site.running() as configuration:
        assert set(site.sources_there) == {"a", "b"}
        await apply(configuration, {})
        assert site.sources_there == {}


async def test_what_is_not_the_files_word_is_held_to_the_bounds_of_the_api(site: Site) -> None:
    site.write(SMALL)
    async with site.running() as configuration:
        site.sources.refused = {"file:newer.py"}
        with pytest.raises(InvalidRequest, match=r"moc\.yaml:\d+: models\.a: file:newer\.py is not for everybody"):
            await apply(configuration, LARGE)
        opened = {**SMALL, "security": {"require_key": False}}
        with pytest.raises(InvalidRequest, match=r"security\.require_key: only the coordinator's own file"):
            await apply(configuration, opened)
        site.sources.refused = {"file:a.py"}
        await apply(configuration, {**SMALL, "resources": {"eviction": "lru"}})
        site.write({**LARGE, "security": {"require_key": False}})
        site.sources.refused = {"file:newer.py"}
        await apply(configuration, {**LARGE, "security": {"require_key": False}})
        assert site.taken_up[-1].settings.security.require_key is False
    async with site.running() as configuration:
        assert configuration.revision.number == 3


async def test_the_next_start_stands_what_was_changed_by_other_means(site: Site) -> None:
    """The alias of the file is gone with the model it named, and an alias has the name of another of its models."""
    alone = {"aliases": {"front": {"versions": {"mine": 1}}}, **SMALL}
    site.write(SMALL)
    async with site.running():
        await site.manager.add("mine", ModelSpec(runtime="python", source="file:mine.py"), actor="somebody")
    site.write(alone)
    async with site.running():
        await site.aliases.remove("front", actor="somebody", reason="")
        await site.manager.remove("a", actor="somebody")
        await site.aliases.set("a", Alias(versions={"mine": 1.0}), actor="somebody", reason="")
        await site.aliases.set("a", Alias(versions={"mine@1": 1.0}), actor="somebody", reason="")
    async with site.running() as configuration:
        assert site.aliases.names() == ["a"]
        await site.aliases.remove("a", actor="somebody", reason="")
        await site.manager.remove("mine", actor="somebody")
        with pytest.raises(InvalidRequest, match="names mine"):
            await apply(configuration, {"aliases": {"other": {"versions": {"mine": 1}}}})
    async with site.running():
        assert (set(site.sources_there), site.aliases.names()) == ({"a"}, [])


async def test_only_the_file_vouches_for_what_it_names(site: Site) -> None:
    site.write(SMALL)
    async with site.running() as configuration:
        await apply(configuration, LARGE)
        assert (site.taken_up[-1].text, site.vouched[-1].text) == (text_of(LARGE), text_of(SMALL))
    async with site.running() as configuration:
        assert (site.taken_up[-1].text, site.vouched[-1].text) == (text_of(LARGE), text_of(SMALL))
        site.write(LARGE)
        await apply(configuration, LARGE)
        assert site.vouched[-1].text == text_of(LARGE)


@pytest.mark.parametrize(
    "text",
    [
        "telemetry:\n  log_level: 2024-13-45",
        "telemetry:\n  log_level: " + "9" * 5000,
        "telemetry:\n  log_level: !!bool x",
        "telemetry:\n  log_level: !!int ''",
        "telemetry:\n  log_level: !!timestamp x",
        "telemetry: {}\n8080: x",
        "telemetry:\n  log_level: *hunter22",
        "telemetry:\n  log_level: !hunter22 x",
        "telemetry:\n  log_level: 'hunter22' x",
        'telemetry:\n  log_level: "hunter22\\q"',
    ],
)
async def test_what_is_no_yaml_is_told_with_its_line_and_without_what_it_says(site: Site, text: str) -> None:
    async with site.running() as configuration:
        with pytest.raises(InvalidRequest, match=r"^x\.yaml:2: ") as refused:
            await configuration.apply(text, "x.yaml", actor="key")
        assert "hunter22" not in refused.value.message
