"""What was trained becomes a version: over real files, a real engine, and the manager that serves everything else."""

import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moc.inference.request import Request
from moc.kernel.clock import SystemClock
from moc.kernel.errors import Conflict, InvalidRequest, LoadFailed, NotFound
from moc.learning.job import Job, JobSpec, JobState, JobType
from moc.learning.ports import Trained
from moc.models.alias import Alias
from moc.models.aliases import AliasBook
from moc.models.catalogue import Catalogue
from moc.models.footprints import Footprints
from moc.models.manager import ModelManager
from moc.models.model import ModelSpec, State
from moc.models.results import Results
from moc.models.slot import Limits
from moc.models.sources import ArtifactSources, Bounds
from moc.resilience.deadline import NEVER
from moc.service.registry import ModelRegistry
from moc.testing.seat import FakeSeat
from moc.testing.workers import FakeMemory
from moc.workers.fleet import Fleet
from moc.workers.local import LocalWorkers
from moc.workers.remote import RemoteWorkers
from moc.workers.trainers.export import export
from tests.gguf_models import adapted, network_of, tiny_gguf
from tests.hosted import Host, host
from tests.job_house import made_job

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # in PEFT
OPTIONS = {"context": 512, "slots": 1, "threads": 1, "batch_threads": 1}
CLOSE, FAR = 0.03, 0.1


class Shop:
    """A coordinator's models, with what is trained from them."""

    def __init__(self, here: Host, workers: LocalWorkers, folder: Path) -> None:
        store, clock, seat = here.store, SystemClock(), FakeSeat(here.store, "host/models")
        self.seat = seat
        self.folder = folder
        self.results = Results(folder / "results")
        remote = RemoteWorkers(store=store, seat=seat, host="here", clock=clock, secrets=folder, reach=print)
        self.local = workers
        self.workers = Fleet(local=workers, remote=remote)
        self.catalogue = Catalogue(store=store, seat=seat, clock=clock)
        self.aliases = AliasBook(store=store, seat=seat, clock=clock, catalogue=self.catalogue)
        self.manager = ModelManager(
            catalogue=self.catalogue,
            workers=self.workers,
            sources=ArtifactSources(
                folder / "blobs", bounds=Bounds(), base_dir=folder, size_limit_bytes=2**30, results=self.results
            ),
            footprints=Footprints(store=store, clock=clock),
            memory=FakeMemory(),
            limits=Limits(),
            on_loaded=lambda reference, seconds: None,
        )
        self.jobs: list[Job] = []
        self.registry = ModelRegistry(
            catalogue=self.catalogue, aliases=self.aliases, manager=self.manager, results=self.results
        )
        self.registry.join(lambda: self.jobs)

    async def add(self, name: str, path: Path, runtime: str = "llama_cpp", **options: Any) -> str:
        given = OPTIONS if runtime == "llama_cpp" else {}
        spec = ModelSpec(runtime=runtime, source=f"file:{path}", options={**given, **options}, ttl_s=0, priority=3)
        return (await self.manager.add(name, spec, actor="test")).version.reference

    async def trained(self, job: Job, *, result: str = "adapter", **config: Any) -> Trained:
        """What a job made of its base: a random adapter."""
        base, folder = await self.registry.base(job.spec.model), self.folder / "jobs" / job.id
        adapted(network_of(self.folder / "base" / "model.gguf"), folder, **config)
        about = {"runtime": base.runtime, "path": str(base.path), "adapters": base.adapters}
        made = export({"base": about, "hyperparameters": {"method": "lora"}, "result": result}, folder)
        return Trained(
            job=job,
            base=base,
            kind=made["kind"],
            path=folder / "output",
            data_digest="sha256:da7a",
            metrics={"train_loss": 0.25},
            trained_tokens=1234,
            hyperparameters={"method": "lora", "lora_rank": 8},
        )

    async def likeliest(self, reference: str) -> list[float]:
        """Log-probabilities of what a model says next."""
        resident = await self.manager.ensure_ready(reference, NEVER)
        link = self.workers.link(resident.worker_id)
        assert link is not None
        body = {"prompt": [40, 43, 46], "max_tokens": 1, "logprobs": 10, "logit_bias": [[300, 1000]]}
        answer = json.loads(bytes((await link.infer(Request("completion", json.dumps(body).encode()))).body))
        return [entry["logprob"] for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]]


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Shop]:
    with tempfile.TemporaryDirectory(prefix="moc-") as short:  # a socket's path must be
        async with host(Path(short)) as here:
            shop = Shop(here, await here.coordinator(), folder)
            parts = (shop.seat, shop.catalogue, shop.aliases, shop.manager)
            for part in parts:
                await part.start()
            yield shop
            for part in reversed(parts):
                await part.stop()


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with opened(tmp_path) as it:
        await it.add("tiny", tiny_gguf(tmp_path / "base"))
        yield it


def job(name: str = "zorblax", model: str = "tiny@1", *, number: int = 1, **changes: Any) -> Job:
    spec = JobSpec(type=JobType.SUPERVISED, name=name, model=model, seed=7)
    return made_job(spec, id=f"job_{number}", created_at=1.0, created_by="key_1", created_by_name="ada", **changes)


def apart(left: list[float], right: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(left, right, strict=True))


def adapters(shop: Shop, reference: str) -> list[Mapping[str, Any]]:
    listed: list[Mapping[str, Any]] = shop.catalogue.entry(reference).version.spec.options["lora"]
    return listed


async def test_what_was_trained_is_served_beside_its_base(shop: Shop) -> None:
    assert await shop.registry.register(await shop.trained(job())) == "zorblax@1"
    before, after = await shop.likeliest("tiny"), await shop.likeliest("zorblax")
    assert apart(before, after) > FAR
    base, tuned = shop.catalogue.entry("tiny").version, shop.catalogue.entry("zorblax").version
    assert tuned.digest not in ("", base.digest)
    assert tuned.artifact == base.artifact
    assert (tuned.spec.priority, tuned.spec.ttl_s, tuned.spec.source) == (3, 0, base.spec.source)
    assert {key: tuned.spec.options[key] for key in OPTIONS} == OPTIONS
    lineage = tuned.lineage
    assert lineage is not None
    assert (lineage.base, lineage.base_digest, lineage.data_digest) == ("tiny@1", base.digest, "sha256:da7a")
    assert (lineage.job, lineage.type, lineage.method, lineage.seed) == ("job_1", "supervised", "lora", 7)
    assert (lineage.metrics, lineage.trained_tokens, lineage.licence) == ({"train_loss": 0.25}, 1234, "apache-2.0")


async def test_a_new_version_takes_over_from_the_one_that_is_loaded(shop: Shop) -> None:
    await shop.registry.register(await shop.trained(job()))
    first = await shop.likeliest("zorblax")
    assert await shop.registry.register(await shop.trained(job(number=2), seed=5, size=0.2)) == "zorblax@2"
    assert apart(await shop.likeliest("zorblax@2"), first) > FAR
    assert shop.manager.serving("zorblax").version.version == 2


async def test_one_job_makes_one_version_of_a_name_however_often_it_is_told(shop: Shop) -> None:
    trained = await shop.trained(job())
    (shop.folder / "results" / ".new-job_1").mkdir(parents=True)  # a copy that was cut short
    assert await shop.registry.register(trained) == "zorblax@1"
    await shop.registry.register(await shop.trained(job(number=2)))
    assert await shop.registry.register(trained) == "zorblax@1"
    other = replace(trained, job=job("best"))
    assert await shop.registry.register(other) == "best@1"
    assert [entry.version.version for entry in shop.catalogue.versions("zorblax")] == [1, 2]
    assert shop.catalogue.entry("best").version.digest == shop.catalogue.entry("zorblax@1").version.digest
    assert sorted(path.name for path in (shop.folder / "results").iterdir()) == ["job_1", "job_2"]


async def test_a_copy_that_was_whole_before_a_crash_is_registered_after_it(shop: Shop) -> None:
    trained = await shop.trained(job())
    output = trained.path
    shop.results.keep("job_1", {"adapter.gguf": output / "adapter.gguf", "peft": output / "adapter"})
    assert await shop.registry.register(trained) == "zorblax@1"
    await shop.likeliest("zorblax")


async def test_a_tuned_model_is_tuned_again_and_keeps_what_it_stands_on(shop: Shop) -> None:
    await shop.registry.register(await shop.trained(job()))
    again = await shop.trained(job("second", "zorblax@1", number=2), seed=2)
    (below,) = again.base.adapters
    assert (below["scale"], Path(below["peft"]).joinpath("adapter_config.json").is_file()) == (1.0, True)
    await shop.registry.register(again)
    assert [Path(entry["path"]).parts[-2] for entry in adapters(shop, "second")] == ["job_1", "job_2"]
    stacked = await shop.likeliest("second")
    assert apart(stacked, await shop.likeliest("zorblax")) > FAR
    await shop.manager.remove("zorblax", actor="test")
    assert apart(await shop.likeliest("second"), stacked) < CLOSE
    await shop.manager.remove("second", actor="test")
    assert [*(shop.folder / "results").iterdir()] == []
    await shop.likeliest("tiny")


async def test_a_merged_model_is_a_file_of_its_own(shop: Shop) -> None:
    await shop.registry.register(await shop.trained(job()))
    assert await shop.registry.register(await shop.trained(job("whole", number=2), result="merged")) == "whole@1"
    whole = shop.catalogue.entry("whole").version
    assert whole.artifact is not None
    assert whole.spec.source == f"file:{whole.artifact.path}"
    assert "lora" not in whole.spec.options
    assert apart(await shop.likeliest("whole"), await shop.likeliest("zorblax")) < CLOSE
    await shop.manager.remove("whole", actor="test")
    assert sorted(path.name for path in (shop.folder / "results").iterdir()) == ["job_1"]


async def test_a_folder_of_transformers_becomes_one(shop: Shop) -> None:
    base = shop.folder / "base" / "transformers"
    (base / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Tiny\n")
    await shop.add("folder", base, runtime="transformers")
    assert (await shop.registry.base("folder")).parameters == (await shop.registry.base("tiny")).parameters > 100_000
    assert await shop.registry.register(await shop.trained(job("tuned", "folder@1"))) == "tuned@1"
    tuned = shop.catalogue.entry("tuned").version
    assert tuned.spec.source == f"file:{shop.folder}/results/job_1/merged"
    assert tuned.lineage is not None
    assert tuned.lineage.licence == "mit"


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


async def test_an_adapter_that_was_changed_is_not_loaded(shop: Shop) -> None:
    await shop.registry.register(await shop.trained(job()))
    path = Path(adapters(shop, "zorblax")[0]["path"])
    damage(path)
    with pytest.raises(LoadFailed, match="no longer what was registered"):
        await shop.manager.load("zorblax", NEVER, actor="test")
    shutil.rmtree(path.parent)
    with pytest.raises(LoadFailed, match="cannot be read"):
        await shop.manager.load("zorblax", NEVER, actor="test")


async def test_references_are_pinned(shop: Shop) -> None:
    await shop.add("tiny", shop.folder / "base" / "model.gguf", slots=2)
    await shop.aliases.set("assistant", Alias(versions={"tiny@1": 70, "tiny@2": 30}), actor="test", reason="Requested")
    assert shop.registry.pin("tiny") == "tiny@2"
    assert shop.registry.pin("assistant") == "tiny@1"
    with pytest.raises(NotFound):
        shop.registry.pin("nothing")
    with pytest.raises(Conflict):
        shop.registry.check_name("assistant")
    with pytest.raises(InvalidRequest):
        shop.registry.check_name("no name")
    shop.registry.check_name("tiny")


async def test_what_gives_no_way_to_its_weights_is_not_trained(shop: Shop) -> None:
    base, other = shop.folder / "base" / "model.gguf", shop.folder / "other.gguf"
    other.write_bytes(base.read_bytes().replace(b"llama", b"lxama"))
    (shop.folder / "foreign.gguf").write_bytes(b"GGUF")
    (shop.folder / "empty").mkdir()
    (shop.folder / "empty" / "file").touch()
    await shop.add("code", base, runtime="python")
    await shop.add("embedder", base, embeddings=True)
    await shop.add("classifier", shop.folder / "base" / "transformers", runtime="transformers", task="classification")
    await shop.add("strange", other)
    await shop.add("helped", base, lora=[{"path": str(shop.folder / "foreign.gguf")}])
    await shop.add("odd", base, lora=3)
    await shop.add("empty", shop.folder / "empty", runtime="transformers")
    for name, why in {
        "code": "python.*llama_cpp and transformers",
        "embedder": "writes no text",
        "classifier": "writes no text",
        "strange": "'lxama'",
        "helped": "foreign.gguf, which was not trained here",
        "odd": "not trained here",
        "empty": "config.json",
    }.items():
        with pytest.raises(InvalidRequest, match=why):
            await shop.registry.base(name)


async def test_a_model_stays_until_the_jobs_about_it_have_ended(shop: Shop) -> None:
    await shop.add("tiny", shop.folder / "base" / "model.gguf", slots=2)
    shop.jobs = [job()]
    for reference in ("tiny", "tiny@1"):
        with pytest.raises(Conflict, match="job_1"):
            await shop.manager.remove(reference, actor="test")
    await shop.manager.remove("tiny@2", actor="test")
    shop.jobs = [job(state=JobState.SUCCEEDED)]
    await shop.manager.remove("tiny", actor="test")
    assert shop.catalogue.names() == []


async def test_the_next_coordinator_knows_where_it_came_from(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="moc-") as short:
        async with host(Path(short)) as here:
            shop = Shop(here, await here.coordinator(), tmp_path)
            for part in (shop.seat, shop.catalogue, shop.manager):
                await part.start()
            await shop.add("tiny", tiny_gguf(tmp_path / "base"))
            await shop.registry.register(await shop.trained(job()))
            later = Shop(here, shop.local, tmp_path)
            await later.catalogue.start()
            assert later.catalogue.entry("zorblax").version == shop.catalogue.entry("zorblax").version
            assert later.catalogue.entry("zorblax").status.state is State.REGISTERED
            await shop.manager.stop()
