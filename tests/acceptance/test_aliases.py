"""Aliases by command and in `moc.yaml`, against a real coordinator that is killed and started again."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from moc.cli.main import main
from tests.acceptance.conftest import EXAMPLES, model, served
from tests.coordinator import Coordinator, short_home

TENSORS = {"inputs": [{"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [1.0] * 8}]}
MODELS = {name: model("python", EXAMPLES / "identity.py") for name in ("one", "two")}
CONFIG: dict[str, Any] = {"models": MODELS, "aliases": {"written": {"versions": {"one@1": 1}}}}


@pytest.fixture(scope="module")
def coordinator() -> Iterator[Coordinator]:
    with short_home() as data_dir:
        yield from served(Coordinator(data_dir, config=CONFIG))


class Commands:
    """`moc aliases …`, in this process."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self._captured = captured

    def refused(self, *arguments: str) -> tuple[int, str]:
        """The exit status, and what it complains of; that it prints nothing else."""
        with pytest.raises(SystemExit) as ended:
            main(["aliases", *arguments])
        printed = self._captured.readouterr()
        assert printed.out == ""
        assert isinstance(ended.value.code, int)
        return ended.value.code, " ".join(printed.err.split())

    def run(self, *arguments: str) -> str:
        """What it prints; that it works."""
        with pytest.raises(SystemExit) as ended:
            main(["aliases", *arguments])
        printed = self._captured.readouterr()
        assert (ended.value.code, printed.err) == (0, "")
        return printed.out

    def read(self, *arguments: str) -> Any:
        """Its JSON."""
        return json.loads(self.run(*arguments, "--json"))


@pytest.fixture
def moc(coordinator: Coordinator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("MOC_URL", coordinator.url)
    monkeypatch.setenv("MOC_DATA_DIR", str(coordinator.data_dir))
    return Commands(capsys)


def answered_by(coordinator: Coordinator, name: str) -> str:
    answer = coordinator.post(f"/v2/models/{name}/infer", TENSORS)
    return answer.headers.get("x-moc-model", str(answer.status_code))


def test_an_aliass_whole_life(coordinator: Coordinator, moc: Commands) -> None:
    made = moc.run("set", "a", "--to", "one@1=90", "--to", "two=10", "--fallback", "two", "--sticky", "key")
    assert made == "a is one@1=90, two=10 (change 1)\n"
    changed = moc.read("set", "a", "--to", "two", "--policy", "fastest", "--shadow", "one=5", "--expect", "1")
    assert (changed["versions"], changed["fallback"], changed["sticky"]) == ({"two": 100}, ["two"], "key")
    assert (changed["policy"], changed["shadow"], changed["hedge"]) == ("fastest", {"one": 5}, False)
    assert answered_by(coordinator, "a") == "two@1"
    shown = moc.run("show", "a").splitlines()
    assert shown[-4].split() == ["MODEL", "PART", "SHARE", "STATE", "REQUESTS", "ERRORS", "P95"]
    assert shown[-3].split()[:7] == ["two", "(two@1)", "version", "1", "ready", "1", "0.00%"]
    assert [line.split()[0] for line in moc.run("list").splitlines()] == ["NAME", "a", "written"]
    cleared = moc.read("set", "a", "--no-fallback", "--no-shadow", "--sticky", "none", "--hedge")
    assert [cleared[key] for key in ("fallback", "shadow", "sticky", "hedge")] == [[], {}, "", True]
    assert moc.read("rollback", "a")["sticky"] == "key"
    assert moc.read("rollback", "a", "--to", "1")["versions"] == {"one@1": 90, "two": 10}
    assert moc.run("remove", "a") == "a is removed\n"
    history = moc.run("history", "a").splitlines()
    assert [line.split()[0] for line in history] == ["NUMBER", "1", "2", "3", "4", "5", "6"]
    assert history[1].endswith("one@1=90, two=10; fallback two")
    assert history[6].endswith("removed")
    assert answered_by(coordinator, "a") == "404"


def test_what_is_refused_says_why(moc: Commands) -> None:
    for status, arguments, complaint in (
        (1, ("show", "nobody"), "there is no alias 'nobody'"),
        (1, ("set", "nobody", "--sticky", "key"), "there is no alias 'nobody'"),
        (1, ("set", "a", "--to", "nobody"), "there is no model 'nobody'"),
        (1, ("set", "one", "--to", "two"), "one is a model"),
        (1, ("set", "written", "--to", "two", "--expect", "7"), "is at change 1, not 7"),
        (1, ("set", "written", "--policy", "best"), "policy is 'best'; it is one of weighted"),
        (2, ("set", "a", "--to", "one=much"), "is not REF=NUMBER"),
        (2, ("set", "a", "--shadow", "one"), "is not REF=NUMBER"),
    ):
        found, story = moc.refused(*arguments)
        assert (found, complaint in story) == (status, True), (arguments, story)


def test_what_was_changed_stays_until_the_configuration_says_something_new(
    coordinator: Coordinator, moc: Commands
) -> None:
    assert answered_by(coordinator, "written") == "one@1"
    moc.run("set", "written", "--to", "two@1", "--reason", "try")
    coordinator.kill()
    coordinator.start()
    assert answered_by(coordinator, "written") == "two@1"
    coordinator.stop()
    config = {**CONFIG, "aliases": {"written": {"versions": {"one@1": 1}, "fallback": ["two"]}}}
    (coordinator.data_dir / "moc.yaml").write_text(yaml.safe_dump(config))
    coordinator.start()
    assert answered_by(coordinator, "written") == "one@1"
    history = moc.read("history", "written")["changes"]
    assert [change["reason"] for change in history] == ["Configured", "try", "Configured"]
