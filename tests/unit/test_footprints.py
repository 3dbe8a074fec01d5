"""The operator's word before what was measured, what was measured before an estimate."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from moc.models.footprint import estimate
from moc.models.footprints import LOADS_KEPT, MARGIN, Footprints
from moc.models.model import Artifact, ModelSpec, ModelVersion
from moc.models.ports import Holding
from moc.store.memory import MemoryStore
from moc.testing.clock import ManualClock

MIB = 2**20
BIG = 900 * MIB


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    it = MemoryStore()
    await it.start()
    yield it
    await it.stop()


@pytest.fixture
def footprints(store: MemoryStore) -> Footprints:
    return Footprints(store=store, clock=ManualClock())


@pytest.fixture
def version(tmp_path: Path) -> ModelVersion:
    path = tmp_path / "model.py"
    path.write_text("class Model: ...")
    spec = ModelSpec(runtime="python", source=f"file:{path}")
    artifact = Artifact(path=str(path), sha256="ab", size_bytes=16, modified_at=0.0)
    return ModelVersion(name="a", version=1, spec=spec, created_at=0.0, artifact=artifact, digest="sha256:ab")


async def expected(footprints: Footprints, version: ModelVersion) -> tuple[int, str]:
    assert version.artifact is not None
    found = await footprints.expected(version, version.artifact, device_kind="host")
    return found.bytes, found.how


async def learn(footprints: Footprints, version: ModelVersion, worker_id: str, size: int, *, used: bool) -> None:
    await footprints.learn(version, worker_id, Holding(kind="host", bytes=size), used=used)


def with_margin(size: int) -> int:
    return round(size * (1 + MARGIN))


async def test_before_the_first_load_it_is_estimated(footprints: Footprints, version: ModelVersion) -> None:
    assert version.artifact is not None
    estimated = estimate(Path(version.artifact.path), "python", {})
    assert await expected(footprints, version) == (estimated.bytes, "estimated")


async def test_after_a_load_that_was_used_it_is_learned(footprints: Footprints, version: ModelVersion) -> None:
    await learn(footprints, version, "w1", MIB, used=True)
    assert await expected(footprints, version) == (with_margin(MIB), "learned")


async def test_what_was_never_used_counts_only_when_it_is_more(footprints: Footprints, version: ModelVersion) -> None:
    await learn(footprints, version, "w1", MIB, used=False)
    assert (await expected(footprints, version))[1] == "estimated"
    await learn(footprints, version, "w1", BIG, used=False)
    assert await expected(footprints, version) == (with_margin(BIG), "learned")


async def test_the_peak_counts(footprints: Footprints, version: ModelVersion) -> None:
    for size in (5 * MIB, 9 * MIB, 3 * MIB):
        await learn(footprints, version, "w1", size, used=True)
    assert await expected(footprints, version) == (with_margin(9 * MIB), "learned")


async def test_an_old_peak_is_forgotten(footprints: Footprints, version: ModelVersion) -> None:
    await learn(footprints, version, "w0", BIG, used=True)
    for number in range(1, LOADS_KEPT):
        await learn(footprints, version, f"w{number}", MIB, used=True)
    assert await expected(footprints, version) == (with_margin(BIG), "learned")
    await learn(footprints, version, "the last", MIB, used=True)
    assert await expected(footprints, version) == (with_margin(MIB), "learned")


async def test_the_operators_word_is_final(footprints: Footprints, version: ModelVersion) -> None:
    await learn(footprints, version, "w1", BIG, used=True)
    declared = replace(version, spec=replace(version.spec, memory_bytes=7), artifact=None)
    found = await footprints.known(declared, device_kind="host")
    assert found is not None
    assert (found.bytes, found.how) == (7, "declared")


async def test_another_coordinator_knows_it_too(
    store: MemoryStore, footprints: Footprints, version: ModelVersion
) -> None:
    other = Footprints(store=store, clock=ManualClock())
    await learn(other, version, "w1", BIG, used=True)
    await learn(footprints, version, "w2", MIB, used=True)
    for each in (footprints, other):
        assert await expected(each, version) == (with_margin(BIG), "learned")


async def test_other_options_and_devices_are_learned_apart(footprints: Footprints, version: ModelVersion) -> None:
    assert version.artifact is not None
    await learn(footprints, version, "w1", BIG, used=True)
    other = replace(version, spec=replace(version.spec, options={"class": "Other"}))
    assert (await expected(footprints, other))[1] == "estimated"
    assert (await footprints.expected(version, version.artifact, device_kind="cuda")).how == "estimated"


async def test_only_news_is_written(store: MemoryStore, footprints: Footprints, version: ModelVersion) -> None:
    async def revision() -> int:
        (record,) = await store.list("footprints/")
        return record.revision

    await learn(footprints, version, "w1", 0, used=False)
    assert await store.list("footprints/") == []
    await learn(footprints, version, "w1", 1000 * MIB, used=False)
    first = await revision()
    await learn(footprints, version, "w1", 1001 * MIB, used=False)
    await learn(footprints, version, "w1", 10 * MIB, used=False)
    assert await revision() == first
    await learn(footprints, version, "w1", 10 * MIB, used=True)
    assert await revision() > first


async def test_files_that_are_gone_are_no_error(footprints: Footprints, version: ModelVersion) -> None:
    assert version.artifact is not None
    gone = replace(version, artifact=replace(version.artifact, path=version.artifact.path + ".gone"))
    assert (await expected(footprints, gone))[0] > 0
    await learn(footprints, gone, "w1", BIG, used=True)
    assert await expected(footprints, gone) == (with_margin(BIG), "learned")
    assert await footprints.known(replace(version, artifact=None), device_kind="host") is None


async def test_what_a_gpu_holds_and_what_main_memory_holds_beside_it_are_kept_apart(
    footprints: Footprints, version: ModelVersion
) -> None:
    assert await footprints.beside(version, device_kind="cuda") is None
    await footprints.learn(version, "w1", Holding(kind="cuda", bytes=BIG, beside_bytes=300 * MIB), used=True)
    on_gpu = await footprints.known(version, device_kind="cuda")
    assert on_gpu is not None
    assert (on_gpu.bytes, on_gpu.how) == (with_margin(BIG), "learned")
    assert await footprints.beside(version, device_kind="cuda") == 300 * MIB
    assert (await expected(footprints, version))[1] == "estimated"
    await footprints.learn(version, "w1", Holding(kind="cuda", bytes=BIG, beside_bytes=400 * MIB), used=True)
    assert await footprints.beside(version, device_kind="cuda") == 400 * MIB


async def test_shards_share_the_model_and_each_has_an_engine(footprints: Footprints, version: ModelVersion) -> None:
    one = replace(version, spec=replace(version.spec, runtime="llama_cpp"))
    three = replace(one, spec=replace(one.spec, shards=3))
    whole, share = [await footprints.known(each, device_kind="cuda") for each in (one, three)]
    assert whole is not None
    assert share is not None
    assert share.parts == {"files": 6, "engine": whole.parts["engine"]}
    assert share.bytes == sum(share.parts.values())
    await footprints.learn(one, "w1", Holding(kind="cuda", bytes=BIG), used=True)
    assert await footprints.known(three, device_kind="cuda") == share
    declared = replace(three, spec=replace(three.spec, memory_bytes=100))
    found = await footprints.known(declared, device_kind="cuda")
    assert found is not None
    assert found.bytes == 34
