"""What an evaluation is of: the version that was meant when it was asked for."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from moc.kernel.clock import SystemClock
from moc.kernel.errors import InvalidRequest, NotFound
from moc.learning.evaluation import Evaluation
from moc.learning.files import Files, Purpose
from moc.learning.job import JobSpec, JobType
from moc.store.memory import MemoryStore
from tests.job_house import made_job

SUITE = {"name": "s", "tasks": [{"name": "t", "type": "perplexity", "items": [{"text": "It is."}]}]}
VERSIONS: Mapping[str, Mapping[str, str]] = {
    "m": {"m@2": "d2"},
    "either": {"m@1": "d1", "m@2": "d2"},
    "unpulled": {"m@1": "d1", "n@1": ""},
}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(store=MemoryStore(), folder=tmp_path, clock=SystemClock(), take=lambda _: None)


@pytest.fixture
def kind(files: Files) -> Evaluation:
    return Evaluation(files=files, answerers=lambda name: VERSIONS.get(name, {}))


@pytest.mark.parametrize(("asked", "pinned"), [("m", "m@2"), ("either", "either")])
async def test_what_means_one_version_stays_with_it(kind: Evaluation, asked: str, pinned: str) -> None:
    spec = await kind.check(JobSpec(type=JobType.EVALUATE, model=asked, options={"suite": SUITE}))
    assert spec.model == pinned


async def test_what_means_none_is_refused(kind: Evaluation) -> None:
    with pytest.raises(NotFound, match="nobody"):
        await kind.check(JobSpec(type=JobType.EVALUATE, model="nobody", options={"suite": SUITE}))


@pytest.mark.parametrize(("asked", "digests"), [("m", ["d2"]), ("either", ["d1", "d2"]), ("unpulled", [])])
async def test_the_program_is_told_who_may_answer_once_all_are_known(
    kind: Evaluation, tmp_path: Path, asked: str, digests: list[str]
) -> None:
    spec = JobSpec(type=JobType.EVALUATE, model=asked, options={"suite": SUITE})
    prepared = await kind.prepare(made_job(spec), tmp_path)
    assert prepared.task["digests"] == digests


async def test_a_wrong_row_is_told_with_the_name_of_its_file(kind: Evaluation, files: Files, tmp_path: Path) -> None:
    async def rows() -> AsyncIterator[bytes]:
        yield b'{"text": "It is."}\nprompt,expected\n'

    await files.start()
    file = await files.add(rows(), filename="x.csv", purpose=Purpose.EVALS, actor="me")
    suite = {"name": "s", "tasks": [{"name": "t", "type": "perplexity", "data": {"file": file.id}}]}
    spec = await kind.check(JobSpec(type=JobType.EVALUATE, model="m", options={"suite": suite}))
    with pytest.raises(InvalidRequest, match=r"^x\.csv:2: the task t: no JSON"):
        await kind.prepare(made_job(spec), tmp_path)


async def test_a_schema_that_is_none_is_refused_when_it_is_asked_for(kind: Evaluation) -> None:
    task = {"name": "t", "type": "json_schema", "schema": {"type": "objekt"}, "items": [{"prompt": "a"}]}
    with pytest.raises(InvalidRequest, match=r"^tasks\[0\].schema.type: is not a JSON schema: 'objekt' is not one of"):
        await kind.check(JobSpec(type=JobType.EVALUATE, model="m", options={"suite": {"name": "s", "tasks": [task]}}))
