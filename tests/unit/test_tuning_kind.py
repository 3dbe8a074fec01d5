"""Searches: what may be asked for, what trials have of it, and what becomes of the best one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moc.kernel.errors import Forbidden, InvalidRequest, NotFound, Unimplemented
from moc.learning.job import Job, JobSpec, JobType, Outcome
from moc.learning.ports import Prepared
from moc.learning.tuning import TRIALS_MAX, Tuning
from tests.job_house import made_job

SPACE = {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "rank": {"choices": [4, 8]}}
OPTIONS: dict[str, Any] = {"base": {"type": "supervised", "validation_file": "file-v"}, "space": SPACE}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"base": None}, "`base` is the job to try"),
    ({"base": {}}, "`base` is the job to try"),
    ({"base": {"type": []}}, "`base` is the job to try"),
    ({"base": {"type": "nonsense"}}, "trials are of the type dpo, script, supervised, not nonsense"),
    ({"base": {"type": "sft", "result": 7}}, "`base` is no job: Expected `str`"),
    ({"base": {"type": "sft", "seed": "x"}}, "`base` is no job: Expected `int`"),
    ({"base": {"type": "sft", "priority": 11}}, "priority is 1 (highest) to 10"),
    ({"base": {"type": "sft", "name": "x"}}, "`base` has no `name`"),
    ({"base": {"type": "sft", "parent": "x"}}, "`base` has no `parent`"),
    ({"base": {"type": "sft", "sede": 1}}, "has no 'sede'; did you mean `seed`?"),
    ({"base": {"type": "sft", "memory": "much"}}, "not a size"),
    ({"base": {"type": "sft", "metadata": {str(n): "" for n in range(16)}}}, "metadata is up to 16"),
    ({"base": {"type": "tune"}}, "trials are of the type dpo, script, supervised, not tune"),
    ({"base": {"type": "evaluate"}}, "not evaluate"),
    ({"space": {}}, "`space` names 1 to"),
    ({"space": {"rank": {"choices": [4, "refused"]}}}, "no rank of 'refused'"),
    ({"trials": 0}, "`trials` is a whole number from 1"),
    ({"trials": TRIALS_MAX + 1}, "`trials` is a whole number from 1"),
    ({"trials": True}, "`trials` is a whole number from 1"),
    ({"parallel": 0}, "`parallel` is a whole number"),
    ({"metric": ""}, "`metric` is the name"),
    ({"metric": "valid_los"}, "tell no 'valid_los'; did you mean `valid_loss`?"),
    ({"base": {"type": "sft"}}, "(`--validation`), or the hyperparameter `validation_split`"),
    ({"direction": "up"}, "`direction` is minimize or maximize"),
    ({"pruner": "hyper"}, "`pruner` is median or none"),
    ({"sampler_seed": -1}, "`sampler_seed` is a whole number"),
    ({"trails": 3}, "no option 'trails'; did you mean `trials`?"),
]


class Picky:
    """A kind that pins its model, and refuses one value. Remembers what it was asked to check."""

    def __init__(self) -> None:
        self.checked: list[JobSpec] = []

    async def check(self, spec: JobSpec) -> JobSpec:
        self.checked.append(spec)
        if spec.model == "missing":
            raise NotFound("there is no model 'missing'")
        if spec.hyperparameters.get("rank") == "refused":
            raise InvalidRequest("no rank of 'refused'")
        return replace(spec, model=f"{spec.model}@3", hyperparameters={**spec.hyperparameters, "filled_in": 1})

    async def prepare(self, job: Job, folder: Path) -> Prepared:
        raise AssertionError("trials are prepared as jobs")

    async def finish(self, job: Job, prepared: Prepared, told: Mapping[str, Any], folder: Path) -> Outcome:
        raise AssertionError("trials are finished as jobs")


class Bench:
    def __init__(self) -> None:
        self.kind = Picky()
        self.published: list[tuple[str, str]] = []

    def tuning(self, **terms: Any) -> Tuning:
        kinds = {JobType.SUPERVISED: self.kind, JobType.SCRIPT: self.kind}
        return Tuning(**{"kinds": kinds, "enabled": True, "publish": self.publish, "library": "json", **terms})

    async def publish(self, job_id: str, name: str) -> str:
        self.published.append((job_id, name))
        return f"{name}@1"


@pytest.fixture
def bench() -> Bench:
    return Bench()


def search(options: Mapping[str, Any] | None = None, **terms: Any) -> JobSpec:
    return JobSpec(type=JobType.TUNE, options={**OPTIONS, **(options or {})}, **{"model": "tiny", **terms})


@pytest.mark.parametrize(("options", "message"), WRONG)
async def test_what_is_wrong_is_said(bench: Bench, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await bench.tuning().check(search(options))
    assert message in refused.value.message


async def test_searches_may_be_switched_off(bench: Bench) -> None:
    with pytest.raises(Forbidden, match=r"learning\.enable_auto_tune"):
        await bench.tuning(enabled=False).check(search())


async def test_without_the_libraries_the_message_says_what_to_install(bench: Bench) -> None:
    with pytest.raises(Unimplemented, match=r"pip install 'modelops-coordinator\[learning\]'"):
        await bench.tuning(library="no_such_library").check(search())


async def test_a_trial_has_of_the_search_what_it_does_not_say_itself(bench: Bench) -> None:
    asked = search(
        {"base": {"type": "sft", "seed": 4, "memory": "1GiB", "hyperparameters": {"epochs": 2}}},
        name="best",
        training_file="file-1",
        validation_file="file-2",
        hyperparameters={"epochs": 1, "batch_size": 3},
        priority=7,
        seed=9,
        devices="cuda",
        result="merged",
    )
    checked = await bench.tuning().check(asked)
    assert checked.options == {
        "base": {
            "type": "supervised",
            "model": "tiny@3",
            "training_file": "file-1",
            "validation_file": "file-2",
            "hyperparameters": {"epochs": 2, "batch_size": 3},
            "options": {},
            "seed": 4,
            "priority": 7,
            "devices": "cuda",
            "memory_bytes": 1024**3,
            "result": "merged",
            "metadata": {},
        },
        "space": SPACE,
        "trials": 12,
        "parallel": 2,
        "metric": "valid_loss",
        "direction": "minimize",
        "pruner": "median",
        "sampler_seed": 9,
    }
    assert (checked.model, checked.devices, checked.memory_bytes) == ("tiny@3", "host", None)


async def test_every_extreme_of_the_space_is_checked_before_anything_runs(bench: Bench) -> None:
    await bench.tuning().check(search(name="best"))
    assert {spec.hyperparameters["learning_rate"] for spec in bench.kind.checked} == {1e-5, 1e-3}
    assert {spec.hyperparameters["rank"] for spec in bench.kind.checked} == {4, 8}
    assert {spec.name for spec in bench.kind.checked} == {"best"}
    with pytest.raises(NotFound):
        await bench.tuning().check(search(model="missing"))


async def test_scripts_end_in_no_model(bench: Bench) -> None:
    base = {"base": {"type": "script", "options": {"command": ["train"]}}}
    with pytest.raises(InvalidRequest, match="leave its `name` out"):
        await bench.tuning().check(search(base, name="best"))
    checked = await bench.tuning().check(search(base))
    assert checked.options["base"]["options"] == {"command": ["train"]}


async def test_the_best_trial_becomes_the_model_of_the_search(bench: Bench, tmp_path: Path) -> None:
    tuning = bench.tuning()
    told = {"metrics": {"valid_loss": 0.1}, "data": {"best": {"job": "job-7"}, "trials": []}}
    for name, model in (("best", "best@1"), ("", "")):
        running = made_job(await tuning.check(search(name=name)))
        prepared = await tuning.prepare(running, tmp_path)
        assert prepared.visits
        assert prepared.task == running.spec.options
        outcome = await tuning.finish(running, prepared, told, tmp_path)
        assert (outcome.model, outcome.metrics, outcome.data) == (model, told["metrics"], told["data"])
    assert bench.published == [("job-7", "best")]
