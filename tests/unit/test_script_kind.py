"""Jobs of the type `script`: which programs may be run, and what they are told."""

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from moc.kernel.clock import SystemClock
from moc.kernel.errors import InvalidRequest, NotFound
from moc.learning.files import Files, Purpose
from moc.learning.job import Attempt, JobSpec, JobType, Outcome, Progress
from moc.learning.script import TEXT_BYTES_MAX, Script
from moc.learning.told import take_up
from moc.store.memory import MemoryStore
from tests.job_house import made_job

WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "needs the option `command`"),
    ({"command": ""}, "needs the option `command`"),
    ({"command": []}, "needs the option `command`"),
    ({"command": ["python", 3]}, "needs the option `command`"),
    ({"command": 'python "'}, "cannot be read as a line of a shell"),
    ({"command": ["", "x"]}, "is a program and its arguments"),
    ({"command": ["python", "\0"]}, "is a program and its arguments"),
    ({"command": ["python", "x" * TEXT_BYTES_MAX]}, "is a program and its arguments"),
    ({"command": "bash -c ls"}, "security.trusted_commands (./tool, /opt/train, python), not 'bash'"),
    ({"command": "./tool"}, "give its whole path"),
    ({"command": "python x", "comand": 1}, "no option 'comand'; did you mean `command`?"),
    ({"command": "python x", "env": {"PATH": "/tmp"}}, "no option 'env'; there are command, workdir"),
    ({"command": "python x", "workdir": "here"}, "whole path of a folder"),
    ({"command": "python x", "workdir": 7}, "whole path of a folder"),
]


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[Files]:
    store = MemoryStore()
    await store.start()
    files = Files(store=store, folder=tmp_path / "files", clock=SystemClock(), take=lambda _: None)
    await files.start()
    yield files
    await store.stop()


@pytest.fixture
def script(files: Files) -> Script:
    return Script(files=files, commands=frozenset({"python", "/opt/train", "./tool"}))


def spec(options: dict[str, Any], **terms: Any) -> JobSpec:
    return JobSpec(type=JobType.SCRIPT, options=options, **terms)


async def add(files: Files, content: bytes) -> str:
    async def chunks() -> AsyncIterator[bytes]:
        yield content

    return (await files.add(chunks(), filename="rows", purpose=Purpose.USER_DATA, actor="me")).id


@pytest.mark.parametrize(("options", "message"), WRONG)
async def test_what_is_wrong_is_said(script: Script, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await script.check(spec(options))
    assert message in refused.value.message


async def test_hyperparameters_are_bounded_and_files_must_exist(script: Script) -> None:
    with pytest.raises(InvalidRequest, match="put them in a file"):
        await script.check(spec({"command": "python x"}, hyperparameters={"a": "x" * TEXT_BYTES_MAX}))
    with pytest.raises(NotFound):
        await script.check(spec({"command": "python x"}, validation_file="file-0"))


async def test_a_command_is_a_list_or_what_a_shell_makes_one_of(script: Script, tmp_path: Path) -> None:
    line = await script.check(spec({"command": "python mine.py --name 'two words'", "workdir": str(tmp_path)}))
    assert line.options == {"command": ["python", "mine.py", "--name", "two words"], "workdir": str(tmp_path)}
    assert await script.check(line) == line


async def test_nothing_is_trusted_unless_it_is_named(files: Files) -> None:
    script = Script(files=files, commands=frozenset())
    with pytest.raises(InvalidRequest, match=r"\(none\)"):
        await script.check(spec({"command": "python x"}))
    script.adjust(commands=frozenset({"python"}))
    await script.check(spec({"command": "python x"}))


async def test_a_script_is_given_its_files_and_hyperparameters(script: Script, files: Files, tmp_path: Path) -> None:
    first, second = await add(files, b"one"), await add(files, b"two")
    checked = await script.check(
        spec({"command": "python x"}, training_file=first, validation_file=second, hyperparameters={"rate": 0.1})
    )
    prepared = await script.prepare(made_job(checked), tmp_path)
    assert prepared.command == ("python", "x")
    assert prepared.task == {
        "hyperparameters": {"rate": 0.1},
        "training_file": str(files.path(first)),
        "validation_file": str(files.path(second)),
    }
    assert json.loads(prepared.environment["MOC_HYPERPARAMETERS"]) == {"rate": 0.1}
    hashes = "".join(hashlib.sha256(content).hexdigest() for content in (b"one", b"two"))
    assert prepared.data_digest == f"sha256:{hashlib.sha256(hashes.encode()).hexdigest()}"
    assert (
        await script.prepare(made_job(replace(checked, training_file="", validation_file="")), tmp_path)
    ).data_digest == ""


async def test_a_folder_that_is_none_fails_before_anything_runs(script: Script, tmp_path: Path) -> None:
    checked = await script.check(spec({"command": "python x", "workdir": str(tmp_path / "none")}))
    with pytest.raises(InvalidRequest, match="is no folder"):
        await script.prepare(made_job(checked), tmp_path)


async def test_a_script_comes_to_what_it_told(script: Script, tmp_path: Path) -> None:
    checked = await script.check(spec({"command": "python x"}))
    prepared = await script.prepare(made_job(checked), tmp_path)
    done = replace(made_job(checked), progress=Progress(step=3, metrics={"loss": 0.5}))
    silent = await script.finish(done, prepared, {}, tmp_path)
    assert (silent.metrics, silent.data) == ({"loss": 0.5}, {})
    told = {"metrics": {"loss": 0.1}, "trained_tokens": 7, "data": {"more": 1}}
    outcome = await script.finish(done, prepared, told, tmp_path)
    assert (outcome.metrics, outcome.trained_tokens, outcome.data) == ({"loss": 0.1}, 7, {"more": 1})


ODD: dict[str, dict[str, Any]] = {
    "not a number": {"metrics": {"loss": float("nan"), "good": 0.5}},
    "null": {"metrics": {"loss": None, "name": "x"}},
    "a list of metrics": {"metrics": [1]},
    "words for tokens": {"trained_tokens": "many"},
    "fewer tokens than none": {"trained_tokens": -1},
    "a list of data": {"data": [1]},
    "data that is no number": {"data": {"loss": float("nan")}},
}


@pytest.mark.parametrize("kind", ["result", "error"])
@pytest.mark.parametrize("line", ODD.values(), ids=ODD)
async def test_whatever_it_tells_what_it_came_to_can_be_read_again(
    script: Script, tmp_path: Path, line: dict[str, Any], kind: str
) -> None:
    checked = await script.check(spec({"command": "python x"}))
    ran = made_job(checked, attempts=(Attempt(number=1, host="here", started_at=1.0),), attempt_count=1)
    job = take_up(ran, [{"type": kind, **line}], now=2.0, exists=lambda _: False).job
    outcome = await script.finish(job, await script.prepare(job, tmp_path), job.attempts[-1].told, tmp_path)
    again = msgspec.json.decode(msgspec.json.encode(outcome), type=Outcome)
    assert (again.metrics, again.trained_tokens) == (outcome.metrics, 0)
    assert outcome.metrics == ({"good": 0.5} if kind == "result" and "good" in str(line) else {})
