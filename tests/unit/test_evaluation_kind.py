"""What an evaluation is of: the version that was meant when it was asked for."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from moc.kernel.clock import SystemClock
from moc.kernel.errors import NotFound
from moc.learning.evaluation import Evaluation
from moc.learning.files import Files
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
def kind(tmp_path: Path) -> Evaluation:
    files = Files(store=MemoryStore(), folder=tmp_path, clock=SystemClock(), take=lambda _: None)
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
