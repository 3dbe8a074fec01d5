"""The operator's word before what was measured, what was measured before an estimate."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from moc.models.footprint import estimate
from moc.models.footprints import LOADS_KEPT, MARGIN, Footprints
from moc.models.model import Artifact, ModelSpec, ModelVersion
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
    found = await footprints.expected(version, version.artifact)
    return found.bytes, found.how


def with_margin(size: int) -> int:
    return round(size * (1 + MARGIN))


async def test_before_the_first_load_it_is_estimated(footprints: Footprints, version: ModelVersion) -> None:
    assert version.artifact is not None
    estimated = estimate(Path(version.artifact.path), "python", {})
    assert await expected(footprints, version) == (estimated.bytes, "estimated")


async def test_after_a_load_that_was_used_it_is_learned(footprints: Footprints, version: ModelVersion) -> None:
    await footprints.learn(version, "w1", MIB, used=True)
    assert await expected(footprints, version) == (with_margin(MIB), "learned")


async def test_what_was_never_used_counts_only_when_it_is_more(footprints: Footprints, version: ModelVersion) -> None:
    await footprints.learn(version, "w1", MIB, used=False)
    assert (await expected(footprints, version))[1] == "estimated"
    await footprints.learn(version, "w1", BIG, used=False)
    assert await expected(footprints, version) == (with_margin(BIG), "learned")


async def test_the_peak_counts(footprints: Footprints, version: ModelVersion) -> None:
    for size in (5 * MIB, 9 * MIB, 3 * MIB):
        await footprints.learn(version, "w1", size, used=True)
    assert await expected(footprints, version) == (with_margin(9 * MIB), "learned")


async def test_an_old_peak_is_forgotten(footprints: Footprints, version: ModelVersion) -> None:
    await footprints.learn(version, "w0", BIG, used=True)
    for number in range(1, LOADS_KEPT):
        await footprints.learn(version, f"w{number}", MIB, used=True)
    assert await expected(footprints, version) == (with_margin(BIG), "learned")
    await footprints.learn(version, "the last", MIB, used=True)
    assert await expected(footprints, version) == (with_margin(MIB), "learned")


async def test_the_operators_word_is_final(footprints: Footprints, version: ModelVersion) -> None:
    await footprints.learn(version, "w1", BIG, used=True)
    declared = replace(version, spec=replace(version.spec, memory_bytes=7), artifact=None)
    found = await footprints.known(declared)
    assert found is not None
    assert (found.bytes, found.how) == (7, "declared")


async def test_another_coordinator_knows_it_too(
    store: MemoryStore, footprints: Footprints, version: ModelVersion
) -> None:
    other = Footprints(store=store, clock=ManualClock())
    await other.learn(version, "w1", BIG, used=True)
    await footprints.learn(version, "w2", MIB, used=True)
    for each in (footprints, other):
        assert await expected(each, version) == (with_margin(BIG), "learned")


async def test_other_options_and_devices_are_learned_apart(footprints: Footprints, version: ModelVersion) -> None:
    assert version.artifact is not None
    await footprints.learn(version, "w1", BIG, used=True)
    other = replace(version, spec=replace(version.spec, options={"class": "Other"}))
    assert (await expected(footprints, other))[1] == "estimated"
    assert (await footprints.expected(version, version.artifact, device_kind="cuda")).how == "estimated"


async def test_only_news_is_written(store: MemoryStore, footprints: Footprints, version: ModelVersion) -> None:
    async def revision() -> int:
        (record,) = await store.list("footprints/")
        return record.revision

    await footprints.learn(version, "w1", 0, used=False)
    assert await store.list("footprints/") == []
    await footprints.learn(version, "w1", 1000 * MIB, used=False)
    first = await revision()
    await footprints.learn(version, "w1", 1001 * MIB, used=False)
    await footprints.learn(version, "w1", 10 * MIB, used=False)
    assert await revision() == first
    await footprints.learn(version, "w1", 10 * MIB, used=True)
    assert await revision() > first


async def test_files_that_are_gone_are_no_error(footprints: Footprints, version: ModelVersion) -> None:
    assert version.artifact is not None
    gone = replace(version, artifact=replace(version.artifact, path=version.artifact.path + ".gone"))
    assert (await expected(footprints, gone))[0] > 0
    await footprints.learn(gone, "w1", BIG, used=True)
    assert await expected(footprints, gone) == (with_margin(BIG), "learned")
    assert await footprints.known(replace(version, artifact=None)) is None
