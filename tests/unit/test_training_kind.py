"""Trainings as a type of job: what is refused before anything starts, and what the program is told."""

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moc.kernel.clock import SystemClock
from moc.kernel.errors import InvalidRequest, MocError, NotFound, Unimplemented
from moc.learning.files import File, Files, Purpose
from moc.learning.job import Job, JobSpec, JobType
from moc.learning.ports import Base, Trained
from moc.learning.training import Training
from moc.store.memory import MemoryStore
from tests.job_house import made_job

CHAT = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'
PREFERENCE = b'{"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}\n'
BASE = Base(
    reference="tiny@2",
    digest="sha256:1",
    runtime="llama_cpp",
    path=Path("/models/tiny.gguf"),
    sha256="abc",
    size_bytes=100,
    adapters=({"path": "a.gguf", "peft": "/results/peft", "scale": 1.0},),
    spec={"options": {"chat_template": "{{ x }}"}},
    parameters=135_000_000,
)


class Models:
    """The models of one that can be trained; what was registered is in `registered`."""

    def __init__(self) -> None:
        self.registered: list[Trained] = []

    def pin(self, reference: str) -> str:
        if reference != "tiny":
            raise NotFound(f"there is no model {reference!r}")
        return "tiny@2"

    def check_name(self, name: str) -> None:
        if name == "no name":
            raise InvalidRequest("no model may be called that")

    async def base(self, reference: str) -> Base:
        assert reference == "tiny@2"
        return BASE

    async def register(self, trained: Trained) -> str:
        self.registered.append(trained)
        return f"{trained.job.spec.name}@1"


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


class Place:
    """Both types of training over files in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        (folder / "files").mkdir()
        self.models = Models()
        self.cache = folder / "cache"
        self.files = Files(store=MemoryStore(), folder=folder / "files", clock=SystemClock(), take=lambda _: None)

    def training(self, type: JobType = JobType.SUPERVISED, **more: Any) -> Training:
        return Training(type=type, files=self.files, registry=self.models, cache=self.cache, kept=3, **more)

    async def file(self, content: bytes) -> File:
        return await self.files.add(_chunks(content), filename="rows.jsonl", purpose=Purpose.FINE_TUNE, actor="a")

    async def spec(self, content: bytes = CHAT, **more: Any) -> JobSpec:
        file = await self.file(content)
        return JobSpec(type=JobType.SUPERVISED, name="mine", model="tiny", training_file=file.id, **more)

    async def job(self, spec: JobSpec) -> Job:
        return made_job(await self.training(spec.type).check(spec), id="job_1")


@pytest.fixture
async def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    await made.files.start()
    return made


async def test_the_base_is_pinned_and_every_hyperparameter_named(place: Place) -> None:
    checked = await place.training().check(await place.spec(hyperparameters={"epochs": 2}))
    assert checked.model == "tiny@2"
    assert checked.hyperparameters["epochs"] == 2.0
    assert checked.hyperparameters["batch_size"] == "auto"
    assert checked.result == "adapter"
    assert await place.training().check(replace(checked, model="tiny")) == checked


async def test_all_weights_end_in_a_merged_model(place: Place) -> None:
    checked = await place.training().check(await place.spec(hyperparameters={"method": "full"}))
    assert checked.result == "merged"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "no name"}, "no model may be called that"),
        ({"result": "quantised"}, "there are adapter and merged"),
        ({"seed": -1}, "`seed` is -1"),
        ({"seed": 2**32}, "not from 0 to"),
        ({"options": {"beta": 1}}, "no options such as 'beta'"),
        ({"training_file": ""}, "needs a `training_file`"),
        ({"training_file": "file_x"}, "there is no file 'file_x'"),
        ({"validation_file": "file_x"}, "there is no file 'file_x'"),
        ({"hyperparameters": {"epoch": 1}}, "did you mean 'epochs'"),
        ({"model": "tinny"}, "there is no model 'tinny'"),
        ({"model": ""}, "a training needs a `model` to start from"),
        ({"hyperparameters": {"early_stopping_patience": 2}}, "needs something to validate with"),
        ({"hyperparameters": {"eval_steps": 2}}, "needs something to validate with"),
        ({"hyperparameters": {"method": "full", "lora_rank": 8}}, "'lora_rank' does nothing with method=full"),
        ({"hyperparameters": {"method": "full", "lora_alpha": 8}}, "'lora_alpha' does nothing with method=full"),
    ],
)
async def test_what_cannot_be_is_refused_at_once(place: Place, change: dict[str, Any], told: str) -> None:
    with pytest.raises(MocError) as refused:
        await place.training().check(replace(await place.spec(), **change))
    assert told in refused.value.message


async def test_a_share_to_validate_with_is_refused_beside_a_file_and_lets_others_act(place: Place) -> None:
    split = {"validation_split": 0.1, "eval_steps": 2, "early_stopping_patience": 2}
    checked = await place.training().check(await place.spec(hyperparameters=split))
    assert checked.hyperparameters["eval_steps"] == 2
    file = await place.file(CHAT)
    with pytest.raises(InvalidRequest, match="does nothing beside a validation file"):
        await place.training().check(replace(checked, validation_file=file.id))
    alone = replace(checked, model="tiny", validation_file=file.id, hyperparameters={**split, "validation_split": 0})
    assert (await place.training().check(alone)).hyperparameters["early_stopping_patience"] == 2


async def test_without_the_libraries_the_extra_is_named(place: Place) -> None:
    with pytest.raises(Unimplemented, match=r"modelops-coordinator\[learning\]"):
        await place.training(library="no_such_library").check(await place.spec())


async def test_the_program_is_told_all_it_needs(place: Place, tmp_path: Path) -> None:
    validation = await place.file(CHAT * 2)
    job = await place.job(await place.spec(validation_file=validation.id))
    prepared = await place.training().prepare(job, tmp_path)
    task = json.loads(json.dumps(prepared.task))
    assert task["base"] == {
        "reference": "tiny@2",
        "runtime": "llama_cpp",
        "path": "/models/tiny.gguf",
        "sha256": "abc",
        "adapters": [{"path": "a.gguf", "peft": "/results/peft", "scale": 1.0}],
        "chat_template": "{{ x }}",
    }
    assert task["training_file"] == str(place.files.path(job.spec.training_file))
    assert task["validation_file"] == str(place.files.path(validation.id))
    assert (task["result"], task["kept"], task["cache"]) == ("adapter", 3, str(place.cache))
    assert task["hyperparameters"]["learning_rate"] == 5e-4
    assert prepared.base == BASE


async def test_the_digest_of_the_data_is_that_of_both_files(place: Place, tmp_path: Path) -> None:
    job = await place.job(await place.spec())
    alone = (await place.training().prepare(job, tmp_path)).data_digest
    assert alone == f"sha256:{hashlib.sha256(hashlib.sha256(CHAT).hexdigest().encode()).hexdigest()}"
    again = await place.job(await place.spec())
    assert (await place.training().prepare(again, tmp_path)).data_digest == alone
    file = await place.file(CHAT)
    both = await place.job(await place.spec(validation_file=file.id))
    assert (await place.training().prepare(both, tmp_path)).data_digest != alone


async def test_broken_rows_are_refused_with_their_lines(place: Place, tmp_path: Path) -> None:
    job = await place.job(await place.spec(CHAT + b"{}\n" + CHAT + b"nothing\n"))
    with pytest.raises(InvalidRequest) as refused:
        await place.training().prepare(job, tmp_path)
    assert refused.value.details["lines"] == [2, 4]
    assert "rows.jsonl" in refused.value.message


async def test_rows_of_the_other_type_are_refused_saying_which(place: Place, tmp_path: Path) -> None:
    job = await place.job(await place.spec(PREFERENCE))
    with pytest.raises(InvalidRequest, match="format preference, which trainings of the type dpo learn from"):
        await place.training().prepare(job, tmp_path)
    dpo = await place.job(replace(await place.spec(PREFERENCE), type=JobType.DPO))
    await place.training(JobType.DPO).prepare(dpo, tmp_path)
    other = await place.job(replace(await place.spec(CHAT), type=JobType.DPO))
    with pytest.raises(InvalidRequest, match="of the type supervised learn from, not dpo"):
        await place.training(JobType.DPO).prepare(other, tmp_path)


TOLD = {
    "metrics": {"train_loss": 0.5},
    "trained_tokens": 90,
    "data": {"kind": "adapter", "path": "output/adapter.gguf", "step": 4},
}


async def test_what_was_trained_is_registered_under_its_name(place: Place, tmp_path: Path) -> None:
    job = await place.job(await place.spec())
    prepared = await place.training().prepare(job, tmp_path)
    outcome = await place.training().finish(job, prepared, TOLD, tmp_path)
    assert (outcome.model, outcome.metrics, outcome.trained_tokens) == ("mine@1", {"train_loss": 0.5}, 90)
    (trained,) = place.models.registered
    assert (trained.kind, trained.path, trained.base) == ("adapter", tmp_path / "output", BASE)
    assert trained.hyperparameters == prepared.task["hyperparameters"]
    assert trained.data_digest == prepared.data_digest


async def test_without_a_name_it_is_registered_when_it_is_published(place: Place, tmp_path: Path) -> None:
    job = await place.job(replace(await place.spec(), name=""))
    training = place.training()
    with pytest.raises(InvalidRequest, match="has not ended in anything"):
        await training.publish(job, tmp_path, "best")
    prepared = await training.prepare(job, tmp_path)
    outcome = await training.finish(job, prepared, TOLD, tmp_path)
    assert outcome.model == ""
    assert place.models.registered == []
    assert await training.publish(replace(job, outcome=outcome), tmp_path, "best") == "best@1"
    assert place.models.registered[0].data_digest == prepared.data_digest
    with pytest.raises(InvalidRequest, match="may be called that"):
        await training.publish(replace(job, outcome=outcome), tmp_path, "no name")


async def test_the_longest_row_of_both_files_is_known(place: Place, tmp_path: Path) -> None:
    short = await place.spec()
    long = await place.file(CHAT.replace(b"Hello", b"Hello " * 100))
    alone = await place.training().prepare(await place.job(short), tmp_path)
    both = await place.training().prepare(await place.job(replace(short, validation_file=long.id)), tmp_path)
    assert len(CHAT) <= alone.longest < 400 < both.longest
