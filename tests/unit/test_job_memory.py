"""Memory for jobs: how much they need, what they wait for, that they get it back."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moc.gpu.device import CUDA, HOST
from moc.gpu.lease import LeaseState
from moc.kernel.errors import Conflict, NoCapacity
from moc.learning.estimate import CUDA_CONTEXT_BYTES, DEFAULTS, ENGINE_BYTES, MIB, Dimensions, estimate
from moc.learning.hyperparameters import complete, resolved
from moc.learning.job import Attempt, Job, JobSpec, JobType, Progress
from moc.learning.needs import MARGIN, PEAKS_KEPT, JobNeeds, estimated
from moc.learning.ports import Base, Prepared
from moc.service.job_memory import TTL_S, JobMemory
from moc.store.memory import MemoryStore
from moc.testing.devices import FakeDevices, fake_reading
from tests.headers import gguf
from tests.job_house import made_job
from tests.unit.test_handover import SharedHost

LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
}
YEAR_S = 365 * 86_400.0
NO_PROCESS = 5_000_001
"""A process id that no system gives out."""

SMOLLM2 = Dimensions(parameters=134_515_008, layers=30, width=576, feed_forward=1536, vocabulary=49_152)
MEASURED_MIB = [
    ("lora", 1, 128, False, 1526),
    ("lora", 4, 128, False, 2808),
    ("lora", 4, 512, False, 7751),
    ("lora", 1, 1024, False, 4464),
    ("lora", 4, 512, True, 4932),
    ("full", 2, 128, False, 2985),
]
"""Peaks of real trainings, by method, batch size, length and gradient checkpointing."""

MANY_WORDS_MIB = [
    (151_936, 2, 64, 128, 2, 1024, 2699),
    (151_936, 2, 64, 128, 1, 256, 951),
    (151_936, 8, 256, 512, 4, 512, 3327),
    (151_936, 2, 64, 128, 4, 2048, 4929),
    (32_768, 2, 64, 128, 2, 1024, 2665),
    (8_000, 12, 512, 1024, 4, 256, 1701),
    (8_000, 12, 512, 4096, 4, 256, 3033),
    (8_000, 24, 256, 512, 4, 512, 2635),
]
"""The same of other networks: vocabulary, layers, width, feed-forward, batch size, length."""

OTHERS = {
    "Qwen2.5-0.5B": Dimensions(parameters=494 * 10**6, layers=24, width=896, feed_forward=4864, vocabulary=151_936),
    "Llama-3.1-8B": Dimensions(parameters=8 * 10**9, layers=32, width=4096, feed_forward=14_336, vocabulary=128_256),
}


def shape(**given: Any) -> dict[str, Any]:
    usual = {"method": "lora", "batch_size": 4, "max_length": 128, "gradient_checkpointing": False, "lora_rank": 8}
    return {**usual, **given}


def job(**spec: Any) -> Job:
    given = {"type": JobType.SUPERVISED, "model": "m", "hyperparameters": shape(), **spec}
    one = JobSpec(**given)
    if one.type is JobType.SUPERVISED:
        one = replace(one, hyperparameters=complete(one.type, one.hyperparameters))
    return made_job(one, created_by_name="ann")


def ran(one: Job, *, given_bytes: int = 0, step: int = 1, epoch: float = 1.0) -> Job:
    attempt = Attempt(number=1, host="here", started_at=0, bytes=given_bytes)
    return replace(one, attempts=(attempt,), progress=Progress(step=step, epoch=epoch))


@pytest.mark.parametrize(("method", "batch", "length", "checkpointing", "mib"), MEASURED_MIB)
def test_the_estimate_is_not_under_what_was_measured_and_not_far_above(
    method: str, batch: int, length: int, checkpointing: bool, mib: int
) -> None:
    given = shape(method=method, batch_size=batch, max_length=length, gradient_checkpointing=checkpointing)
    found = estimate(JobType.SUPERVISED, SMOLLM2, given, on_gpu=False).bytes
    assert mib * MIB <= found <= 1.25 * mib * MIB


@pytest.mark.parametrize(("vocabulary", "layers", "width", "feed", "batch", "length", "mib"), MANY_WORDS_MIB)
def test_a_large_vocabulary_takes_no_more_than_a_tile_of_it(
    vocabulary: int, layers: int, width: int, feed: int, batch: int, length: int, mib: int
) -> None:
    parameters = vocabulary * width + layers * (3 * width**2 + 3 * width * feed)
    model = Dimensions(parameters=parameters, layers=layers, width=width, feed_forward=feed, vocabulary=vocabulary)
    found = estimate(JobType.SUPERVISED, model, shape(batch_size=batch, max_length=length), on_gpu=False).bytes
    assert mib * MIB <= found <= 1.25 * mib * MIB


@pytest.mark.parametrize(("name", "gib"), [("Qwen2.5-0.5B", 8), ("Llama-3.1-8B", 24)])
def test_with_what_is_usual_it_fits_on_the_gpus_that_such_models_are_trained_on(name: str, gib: int) -> None:
    model = OTHERS[name]
    given = resolved(JobType.SUPERVISED, {}, model.parameters)
    assert estimate(JobType.SUPERVISED, model, given, on_gpu=True).bytes < gib * 1024**3


def test_rows_that_are_short_take_less() -> None:
    def need(longest: int) -> int:
        return estimate(JobType.SUPERVISED, SMOLLM2, shape(max_length=512), on_gpu=False, longest=longest).bytes

    assert need(64) < need(128) < need(512) == need(5000) == need(0)


def test_what_takes_more_is_estimated_at_more() -> None:
    def need(type: JobType = JobType.SUPERVISED, *, on_gpu: bool = False, **given: Any) -> int:
        return estimate(type, Dimensions.usual(8_000_000_000), shape(**given), on_gpu=on_gpu).bytes

    assert need() < need(batch_size=8) < need(batch_size=16)
    assert need(gradient_checkpointing=True) < need() < need(lora_rank=64) < need(method="full")
    assert need(on_gpu=True) < need() < need(JobType.DPO)
    assert need(JobType.DPO, method="full") - need(method="full") > 4 * 8_000_000_000, (
        "what it is held to is there, too"
    )


LIMIT_BYTES = 64 * 1024**3


@pytest.fixture
async def needs() -> JobNeeds:
    return JobNeeds(MemoryStore())


async def expected(
    needs: JobNeeds, one: Job, model: Dimensions | None = SMOLLM2, *, kind: str = HOST, longest: int = 0
) -> int:
    return await needs.expected(one, model, "digest", kind=kind, limit_bytes=LIMIT_BYTES, longest=longest)


def base_bytes(one: Job) -> int:
    return estimated(one, SMOLLM2, HOST, 0).base_bytes


async def test_what_was_measured_corrects_the_estimates_of_that_base(needs: JobNeeds) -> None:
    small, large = job(), job(hyperparameters=shape(batch_size=16))
    before, before_large = await expected(needs, small), await expected(needs, large)
    await needs.learn(ran(small), SMOLLM2, "digest", kind=HOST, peak_bytes=2 * before)
    assert await expected(needs, small) == round(2 * before * (1 + MARGIN))
    base = base_bytes(small)
    ratio = (2 * before - base) / (before - base)
    corrected = (base + (before_large - base) * ratio) * (1 + MARGIN)
    assert await expected(needs, large) == pytest.approx(corrected, rel=0.01), "the weights are no more than before"
    assert await expected(needs, small, kind=CUDA) < before, "another kind of device is another matter"


async def test_one_whose_rows_were_short_teaches_nothing_about_others(needs: JobNeeds) -> None:
    one, more = job(hyperparameters=shape(max_length=512)), job(hyperparameters=shape(max_length=64))
    long, less = await expected(needs, one, longest=5000), await expected(needs, more, longest=300)
    peak = base_bytes(one) + 100 * MIB
    await needs.learn(ran(one), SMOLLM2, "digest", kind=HOST, peak_bytes=peak, longest=300)
    assert await expected(needs, one, longest=300) == round(peak * (1 + MARGIN))
    assert await expected(needs, one, longest=5000) == long
    assert await expected(needs, more, longest=300) == less


async def test_it_is_never_below_what_is_there_before_the_first_step(needs: JobNeeds) -> None:
    for _ in range(3):
        await needs.learn(ran(job()), SMOLLM2, "digest", kind=HOST, peak_bytes=10 * MIB)
    assert await expected(needs, job()) == base_bytes(job())


async def test_one_that_did_not_see_all_its_rows_teaches_only_that_it_was_too_little(needs: JobNeeds) -> None:
    before = await expected(needs, job())
    peak = base_bytes(job()) + 10 * MIB
    resumed = ran(job(), given_bytes=before, step=10, epoch=1.0)
    resumed = replace(resumed, attempts=(replace(resumed.attempts[-1], first_step=9),))
    for short in (ran(job(), given_bytes=before, step=2, epoch=0.4), resumed):
        await needs.learn(short, SMOLLM2, "digest", kind=HOST, peak_bytes=peak)
        assert await expected(needs, job()) == before
    await needs.learn(
        ran(job(), given_bytes=before, epoch=0.4), SMOLLM2, "digest", kind=HOST, peak_bytes=before + 100 * MIB
    )
    assert await expected(needs, job()) > before


async def test_a_gpu_has_more_than_its_program_tells(needs: JobNeeds) -> None:
    peak = 3 * 1024**3
    await needs.learn(ran(job()), SMOLLM2, "digest", kind=CUDA, peak_bytes=peak)
    assert await expected(needs, job(), kind=CUDA) == round((peak + CUDA_CONTEXT_BYTES) * (1 + MARGIN))


async def test_it_is_never_below_what_the_same_job_took(needs: JobNeeds) -> None:
    small, large = job(), job(hyperparameters=shape(batch_size=16))
    before = await expected(needs, large)
    await needs.learn(ran(small), SMOLLM2, "digest", kind=HOST, peak_bytes=3 * before)
    for _ in range(9):
        await needs.learn(ran(large), SMOLLM2, "digest", kind=HOST, peak_bytes=before // 2)
    assert await expected(needs, small) == round(3 * before * (1 + MARGIN))
    assert await expected(needs, large) == pytest.approx(before // 2 * (1 + MARGIN), rel=0.01)


async def test_one_misjudged_job_is_not_held_against_others_for_ever(needs: JobNeeds) -> None:
    before = await expected(needs, job())
    await needs.learn(ran(job(), given_bytes=before), SMOLLM2, "digest", kind=HOST, peak_bytes=9 * before)
    for _ in range(PEAKS_KEPT):
        await needs.learn(ran(job()), SMOLLM2, "digest", kind=HOST, peak_bytes=before // 2)
    assert await expected(needs, job()) == pytest.approx(before // 2 * (1 + MARGIN), rel=0.01)


async def test_what_was_learned_never_asks_for_more_than_there_is(needs: JobNeeds) -> None:
    before = await expected(needs, job())
    await needs.learn(ran(job()), SMOLLM2, "digest", kind=HOST, peak_bytes=2 * LIMIT_BYTES)
    assert await expected(needs, job()) == LIMIT_BYTES
    tight = await needs.expected(job(), SMOLLM2, "digest", kind=HOST, limit_bytes=1)
    assert tight == before, "what cannot be there at all is still told"


async def test_one_that_ended_early_teaches_only_that_it_was_too_little(needs: JobNeeds) -> None:
    before = await expected(needs, job())
    early = ran(job(), given_bytes=before, step=0, epoch=0.0)
    await needs.learn(early, SMOLLM2, "digest", kind=HOST, peak_bytes=before // 10)
    assert await expected(needs, job()) == before
    await needs.learn(early, SMOLLM2, "digest", kind=HOST, peak_bytes=round(before * 1.25))
    assert await expected(needs, job()) == pytest.approx(before * 1.25 * (1 + MARGIN), rel=0.01)


async def test_jobs_that_train_nothing_need_what_such_a_job_took(needs: JobNeeds) -> None:
    one, other = (
        job(type=JobType.SCRIPT, options={"command": ["a"]}),
        job(type=JobType.SCRIPT, options={"command": ["b"]}),
    )
    assert await expected(needs, one, None) == DEFAULTS[JobType.SCRIPT]
    await needs.learn(ran(one), None, "", kind=HOST, peak_bytes=5)
    assert await needs.expected(one, None, "", kind=HOST, limit_bytes=LIMIT_BYTES) == 5
    assert await needs.expected(other, None, "", kind=HOST, limit_bytes=LIMIT_BYTES) == DEFAULTS[JobType.SCRIPT]


async def test_the_operators_word_is_final(needs: JobNeeds) -> None:
    declared = job(memory_bytes=77)
    await needs.learn(ran(declared), SMOLLM2, "digest", kind=HOST, peak_bytes=1000)
    assert await expected(needs, declared) == 77


# leases


class JobHost(SharedHost):
    """A hundred bytes of main memory."""

    def start(self) -> None:
        self.source = FakeDevices(fake_reading(HOST, capacity_bytes=100), kind=HOST)
        super().start()
        self.memory = JobMemory(
            leases=self.leases,
            broker=self.broker,
            devices=self.devices,
            store=self.store,
            grace_s=5.0,
            min_runtime_s=20.0,
        )


@pytest.fixture
async def host() -> AsyncIterator[JobHost]:
    one = JobHost()
    async with one.running():
        yield one


def ignore(_: str) -> None:
    """Nobody wants to know."""


async def test_a_job_has_a_lease_of_its_own_that_can_be_renewed_after_a_restart(host: JobHost) -> None:
    holding = await host.memory.acquire(job(priority=3), 60, on_wait=ignore)
    lease = host.leases.show(holding.lease_id).lease
    assert (lease.holder, lease.holder_name, lease.terms.job, lease.terms.priority) == ("key-1", "ann", "job-1", 3)
    assert (holding.device, holding.bytes, holding.gpus, holding.evict_in_s) == (HOST, 60, (), None)
    await host.leases.stop()
    host.start()
    async with host.running():
        assert await host.memory.renew(holding, None) == holding
        host.clock.advance(TTL_S)
        await host.memory.renew(holding, None)
        await host.pass_time(TTL_S)
        assert host.charges() == {f"lease:{holding.lease_id}": 60}
        for _ in range(2):
            await host.memory.release(holding)
        assert host.charges() == {}
        with pytest.raises(Conflict):
            await host.memory.renew(holding, None)


async def test_it_says_what_it_waits_for_and_who_has_it(host: JobHost) -> None:
    await host.load(50, name="chat@1")
    first = await host.memory.acquire(job(), 30, on_wait=ignore)
    told: asyncio.Queue[str] = asyncio.Queue()
    waiting = asyncio.create_task(host.memory.acquire(job(), 60, on_wait=told.put_nowait))
    async with asyncio.timeout(20):
        news = await told.get()
    assert "60B on host; host: 20B of 100B free, chat@1 has 50B, " in news
    assert f"lease {first.lease_id} has 30B" in news
    assert "when nobody has asked for it for 60 s" in news
    await host.memory.release(first)
    await host.models.evict("model:chat@1", reason="", because="")
    await host.leases.look()
    async with asyncio.timeout(20):
        holding = await waiting
    assert host.charges() == {f"lease:{holding.lease_id}": 60}


async def test_it_says_whom_it_waits_behind(host: JobHost) -> None:
    first = await host.memory.acquire(job(), 60, on_wait=ignore)
    large, small = replace(job(), id="job-2"), replace(job(), id="job-3")
    told: asyncio.Queue[str] = asyncio.Queue()
    waiting = [asyncio.create_task(host.memory.acquire(large, 80, on_wait=told.put_nowait))]
    async with asyncio.timeout(20):
        assert "in line" not in await told.get()
        waiting.append(asyncio.create_task(host.memory.acquire(small, 10, on_wait=told.put_nowait)))
        while "10B on host" not in (news := await told.get()):
            pass
    assert "number 2 in line, behind job-2, which waits for 80B" in news
    await host.memory.release(first)
    await host.leases.look()
    async with asyncio.timeout(20):
        await asyncio.gather(*waiting)


async def test_it_waits_for_ever_but_not_for_what_can_never_be(host: JobHost) -> None:
    with pytest.raises(NoCapacity, match="even when it is empty"):
        await host.memory.acquire(job(), 101, on_wait=ignore)
    with pytest.raises(NoCapacity, match="no device 'cuda:7'"):
        await host.memory.acquire(job(devices="cuda:7"), 1, on_wait=ignore)
    await host.memory.acquire(job(), 60, on_wait=ignore)
    waiting = asyncio.create_task(host.memory.acquire(job(), 60, on_wait=ignore))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # it asks for its lease, which stands in line
    (waiter,) = host.leases._queue
    assert waiter.until is not None
    assert waiter.until - host.clock.monotonic() > YEAR_S, "who asks anew goes to the end of the line"
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_process_that_has_just_ended_is_for_its_runner_to_see(host: JobHost) -> None:
    holding = await host.memory.acquire(job(), 60, on_wait=ignore)
    assert await host.memory.renew(holding, NO_PROCESS) == holding


async def test_one_that_waits_no_longer_leaves_nothing_behind(host: JobHost) -> None:
    first = await host.memory.acquire(job(), 60, on_wait=ignore)
    told: asyncio.Queue[str] = asyncio.Queue()
    waiting = asyncio.create_task(host.memory.acquire(job(), 60, on_wait=told.put_nowait))
    async with asyncio.timeout(20):
        await told.get()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await host.memory.release(first)
    await host.leases.look()
    assert (host.charges(), host.leases.standings()) == ({}, [])


async def test_it_is_told_how_long_it_has_left(host: JobHost) -> None:
    holding = await host.memory.acquire(job(), 70, on_wait=ignore)
    host.clock.advance(20)
    load = await host.loading(80, host.leases.show(holding.lease_id))
    assert (await host.memory.renew(holding, None)).evict_in_s == 5.0
    await host.memory.release(holding)
    assert (await load).bytes == 80
    assert host.leases.show(holding.lease_id).lease.state is LeaseState.EVICTED


async def test_a_gpu_is_preferred_by_who_computes(host: JobHost) -> None:
    host.source.readings.append(fake_reading("cuda:0", capacity_bytes=100))
    await host.devices.refresh()
    training = await host.memory.acquire(job(), 10, on_wait=ignore)
    assert (training.device, training.gpus) == ("cuda:0", ("0",))
    for one in (job(type=JobType.EVALUATE), job(devices=HOST)):
        assert (await host.memory.acquire(one, 10, on_wait=ignore)).device == HOST


async def test_the_numbers_of_the_base_are_read_from_its_files(host: JobHost, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(LLAMA, {"token_embd.weight": ((64, 100), 0, 25_600)}))
    small = Base(
        reference="m@1",
        digest="d",
        runtime="llama_cpp",
        path=path,
        sha256="",
        size_bytes=path.stat().st_size,
        parameters=200_000,
    )
    training, prepared = job(hyperparameters=shape()), Prepared(task={}, base=small)
    need = await host.memory.need(training, prepared)
    unknown = replace(small, path=tmp_path / "gone", parameters=10**9)
    assert need < await host.memory.need(training, replace(prepared, base=unknown))
    assert need > await host.memory.need(training, replace(prepared, longest=20))
    assert await host.memory.need(job(type=JobType.TUNE, options={}), Prepared(task={})) == DEFAULTS[JobType.TUNE]
    await host.memory.learn(ran(training), prepared, device=HOST, peak_bytes=2 * need)
    assert await host.memory.need(training, prepared) == need, "there is no more here than that"
    peak = ENGINE_BYTES + 10 * MIB
    for _ in range(PEAKS_KEPT):
        await host.memory.learn(ran(training), prepared, device=HOST, peak_bytes=peak)
    assert await host.memory.need(training, prepared) == round(peak * (1 + MARGIN)) < need


async def test_a_gpu_that_does_not_compute_in_bfloat16_holds_whole_weights(host: JobHost, tmp_path: Path) -> None:
    parameters = 10**9
    unknown = Base(
        reference="m@1",
        digest="d",
        runtime="llama_cpp",
        path=tmp_path / "gone",
        sha256="",
        size_bytes=1,
        parameters=parameters,
    )
    prepared, needs = Prepared(task={}, base=unknown), []
    for bfloat16 in (True, False):
        card = fake_reading("cuda:0", capacity_bytes=LIMIT_BYTES)
        host.source.readings[1:] = [replace(card, device=replace(card.device, bfloat16=bfloat16))]
        await host.devices.refresh()
        needs.append(await host.memory.need(job(), prepared))
    assert needs[1] - needs[0] > 2 * parameters
    one = host.source.readings[1]
    host.source.readings.append(replace(one, device=replace(one.device, id="cuda:1", bfloat16=True)))
    await host.devices.refresh()
    await host.memory.learn(ran(job()), prepared, device="cuda:1", peak_bytes=needs[1] + MIB)
    assert await host.memory.need(job(), prepared) > needs[1], "it may come to either"


async def test_so_little_that_a_training_cannot_begin_is_doubted_but_given(host: JobHost, tmp_path: Path) -> None:
    unknown = Base(
        reference="m@1",
        digest="d",
        runtime="llama_cpp",
        path=tmp_path / "gone",
        sha256="",
        size_bytes=1,
        parameters=200_000,
    )
    prepared = Prepared(task={}, base=unknown)
    little, enough = job(memory_bytes=10), job(memory_bytes=ENGINE_BYTES + 8 * MIB)
    assert await host.memory.need(little, prepared) == 10
    doubt = await host.memory.doubt(little, prepared)
    assert doubt.startswith("it was given 10B of memory, and 6"), doubt
    for other in (enough, job(), job(type=JobType.SCRIPT, options={}, memory_bytes=10)):
        assert await host.memory.doubt(other, prepared) == ""
