"""Workers that sleep, with a real server that can."""

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from moc.inference.request import Request
from moc.models.ports import Launch, Worker
from moc.resilience.deadline import NEVER
from moc.workers.local import LocalWorkers
from moc.workers.sleepers import Sleepers
from tests.full_store import FullStore
from tests.hosted import Host, eventually, kinds, link_to, lost_workers, processes_of, start

MOODY = str(Path(__file__).parents[1] / "moody_server.py")
MIB = 96
CHAT = Request("chat", b'{"messages":[]}')
HOOKS = {"sleep": {"path": "/sleep"}, "wake": {"path": "/wake", "body": {"tags": ["weights"]}}}


@pytest.fixture
def sleepers(workers: LocalWorkers) -> Sleepers:
    return Sleepers(workers)


def moody(notes: Path, **options: Any) -> Launch:
    command = [sys.executable, MOODY, "{port}", str(notes), str(MIB)]
    given = {"command": command, "health_interval_s": 0.1, **HOOKS, **options}
    return Launch(model="moody@1", digest="d", runtime="command", path="", options=given, devices=("host",), bytes=7)


def server_of(worker: Worker) -> psutil.Process:
    return psutil.Process(worker.info["details"]["pid"])


async def test_a_worker_sleeps_without_its_memory_and_wakes_with_it(
    here: Host, workers: LocalWorkers, sleepers: Sleepers, tmp_path: Path
) -> None:
    launch = moody(tmp_path)
    worker = await start(workers, launch)
    server = server_of(worker)
    held = server.memory_info().rss
    assert await sleepers.lay(worker.id)
    assert sleepers.models() == ["moody@1"]
    assert sleepers.has(worker.id)
    assert [each.state for each in workers.workers()] == ["asleep"]
    assert server.memory_info().rss < held - MIB * 2**20 // 2
    woken = await sleepers.wake(replace(launch, bytes=8), NEVER)
    assert woken is not None
    assert (woken.id, woken.state, woken.bytes) == (worker.id, "ready", 8)
    assert workers.workers() == [woken]
    assert server.memory_info().rss > held - MIB * 2**20 // 2
    assert json.loads(bytes((await link_to(workers, woken).infer(CHAT)).body))["choices"]
    assert sleepers.models() == []
    assert (await kinds(here))[-2:] == ["worker.asleep", "worker.ready"]


async def test_one_that_sleeps_is_not_asked_how_it_is(
    workers: LocalWorkers, sleepers: Sleepers, tmp_path: Path
) -> None:
    worker = await start(workers, moody(tmp_path))
    lost = lost_workers(workers)
    assert await sleepers.lay(worker.id)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(lost.get(), 1)  # its health has failed ten times meanwhile
    assert await sleepers.wake(moody(tmp_path), NEVER)


async def test_who_cannot_or_will_not_sleep_is_told(workers: LocalWorkers, sleepers: Sleepers, tmp_path: Path) -> None:
    (tmp_path / "stubborn").touch()
    will_not = await start(workers, moody(tmp_path))
    cannot = await start(workers, replace(moody(tmp_path, sleep=None, wake=None), model="other@1"))
    for worker in (will_not, cannot):
        assert not await sleepers.lay(worker.id)
    assert not await sleepers.lay("wrk-gone")
    assert sleepers.models() == []


@pytest.mark.parametrize("change", [{"devices": ("declared:1",)}, {"digest": "e"}])
async def test_who_is_wanted_otherwise_is_ended(
    workers: LocalWorkers, sleepers: Sleepers, tmp_path: Path, change: dict[str, Any]
) -> None:
    worker = await start(workers, moody(tmp_path))
    await sleepers.lay(worker.id)
    assert await sleepers.wake(replace(moody(tmp_path), **change), NEVER) is None
    assert not server_is_there(worker)
    assert workers.link(worker.id) is None


async def test_one_that_dies_in_its_sleep_is_not_woken(
    workers: LocalWorkers, sleepers: Sleepers, tmp_path: Path
) -> None:
    worker = await start(workers, moody(tmp_path))
    await sleepers.lay(worker.id)
    server_of(worker).kill()
    await eventually(lambda: workers.link(worker.id) is None)
    assert await sleepers.wake(moody(tmp_path), NEVER) is None
    await eventually(lambda: not psutil.pid_exists(worker.pid))


async def test_one_whose_process_dies_in_its_sleep_is_missed(
    workers: LocalWorkers, sleepers: Sleepers, tmp_path: Path
) -> None:
    worker = await start(workers, moody(tmp_path))
    lost = lost_workers(workers)
    await sleepers.lay(worker.id)
    os.kill(worker.pid, signal.SIGKILL)
    who, _ = await asyncio.wait_for(lost.get(), 10)
    assert who.id == worker.id
    assert sleepers.models() == []
    assert workers.workers() == []


async def test_one_that_dies_as_it_wakes_is_not_taken_for_awake(here: Host, tmp_path: Path) -> None:
    here.store = store = FullStore()
    workers = await here.coordinator()
    sleepers = Sleepers(workers)
    worker = await start(workers, moody(tmp_path))
    await sleepers.lay(worker.id)
    store.slow = "worker.ready"
    waking = asyncio.create_task(sleepers.wake(moody(tmp_path), NEVER))
    await store.reached.wait()
    os.kill(worker.pid, signal.SIGKILL)
    await eventually(lambda: workers.link(worker.id) is None)
    store.gate.set()
    assert await waking is None
    await eventually(lambda: processes_of(here.run_dir) == [])


async def test_one_that_sleeps_can_be_ended(workers: LocalWorkers, sleepers: Sleepers, tmp_path: Path) -> None:
    worker = await start(workers, moody(tmp_path))
    await sleepers.lay(worker.id)
    await sleepers.end("moody@1")
    await sleepers.end("moody@1")
    assert not server_is_there(worker)
    assert sleepers.models() == []


async def test_a_later_coordinator_ends_what_sleeps(
    here: Host, workers: LocalWorkers, sleepers: Sleepers, tmp_path: Path
) -> None:
    worker = await start(workers, moody(tmp_path))
    await sleepers.lay(worker.id)
    await workers.stop()
    later = await here.coordinator()
    assert await later.adopt() == []
    assert processes_of(here.run_dir) == []
    assert not server_is_there(worker)


def server_is_there(worker: Worker) -> bool:
    pid = worker.info["details"]["pid"]
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
