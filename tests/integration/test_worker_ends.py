"""Workers ending, being killed, being adopted: with real processes."""

import asyncio
import os
import signal
import struct
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from moc.inference.request import Info, Request
from moc.kernel.errors import (
    LoadFailed,
    NotLeader,
    WorkerLost,
)
from moc.workers.heartbeat import Patience
from moc.workers.link import WorkerLink
from moc.workers.local import LocalWorkers
from moc.workers.wire import Frames, Hello
from tests.full_store import FullStore
from tests.hosted import (
    Host,
    arrays,
    eventually,
    example,
    folders_in,
    is_there,
    kinds,
    link_to,
    lost_workers,
    noting,
    processes_of,
    reads,
    start,
    tensors,
    written,
)

NOTHING = Request("chat", b"{}")
WAITS = """
import asyncio, pathlib
class Model:
    def load(self, notes=None): self.notes = notes
    async def chat(self, request):
        note = pathlib.Path(self.notes)
        note.write_text("running")
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            note.write_text("cancelled")
            raise
"""

# ending

GRANDCHILD = """
import pathlib, subprocess
class Model:
    def load(self):
        child = subprocess.Popen(["sleep", "1000"])
        (pathlib.Path(__file__).parent / "grandchild").write_text(str(child.pid))
    def infer(self, inputs): ...
"""
STUBBORN = """
import pathlib, subprocess, time
class Model:
    def load(self):
        script = "trap '' TERM; while true; do sleep 1000; done"
        child = subprocess.Popen(["sh", "-c", script], start_new_session=True)
        (pathlib.Path(__file__).parent / "grandchild").write_text(str(child.pid))
    def infer(self, inputs): ...
    def close(self): time.sleep(1000)
"""


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def break_off(link: WorkerLink) -> None:
    """Let the connection to a worker break."""
    assert link._transport is not None
    link._transport.abort()


async def test_stopping_ends_the_whole_tree_and_leaves_nothing(
    here: Host, workers: LocalWorkers, tmp_path: Path
) -> None:
    worker = await start(workers, written(tmp_path, GRANDCHILD))
    child = int((tmp_path / "grandchild").read_text())
    assert running(child)
    await asyncio.gather(*(workers.stop_worker(worker.id, reason="Test") for _ in range(3)))
    assert not running(child)
    assert not running(worker.pid)
    assert not is_there(worker)
    assert workers.workers() == []
    assert await here.store.list("workers/") == []
    assert (await here.store.events())[-1].reason == "Test"
    await workers.stop_worker(worker.id, reason="Test")


async def test_a_worker_that_will_not_end_is_killed(here: Host, tmp_path: Path) -> None:
    here.stop_grace_s = 0.2
    workers = await here.coordinator()
    worker = await start(workers, written(tmp_path, STUBBORN))
    child = int((tmp_path / "grandchild").read_text())
    await workers.stop_worker(worker.id, reason="Test")
    assert not running(worker.pid)
    assert not running(child)


async def test_a_worker_that_is_killed_is_missed_at_once(here: Host, workers: LocalWorkers, tmp_path: Path) -> None:
    launch, notes = noting(tmp_path, WAITS)
    worker = await start(workers, launch)
    lost = lost_workers(workers)
    asked = asyncio.create_task(link_to(workers, worker).infer(NOTHING))
    await eventually(lambda: reads(notes, "running"))
    link = link_to(workers, worker)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost) as caught:
        await asked
    assert caught.value.sent
    with pytest.raises(WorkerLost) as caught:
        await link.infer(NOTHING)
    assert not caught.value.sent
    assert workers.link(worker.id) is None
    who, why = await asyncio.wait_for(lost.get(), 10)
    assert (who.id, why) == (worker.id, "was killed by SIGKILL")
    await eventually(lambda: not is_there(worker))


async def test_what_a_killed_worker_started_is_killed_too(workers: LocalWorkers, tmp_path: Path) -> None:
    worker = await start(workers, written(tmp_path, GRANDCHILD))
    child = int((tmp_path / "grandchild").read_text())
    os.kill(worker.pid, signal.SIGKILL)
    await eventually(lambda: not running(child))


async def test_a_worker_that_hangs_is_no_obstacle_to_ending_it(here: Host) -> None:
    here.stop_grace_s = 0.2
    workers = await here.coordinator()
    worker = await start(workers, example("identity"))
    os.kill(worker.pid, signal.SIGSTOP)
    await workers.stop_worker(worker.id, reason="Test")
    assert not running(worker.pid)


async def test_a_worker_is_ended_though_that_cannot_be_recorded(here: Host) -> None:
    here.store = store = FullStore()
    workers = await here.coordinator()
    worker = await start(workers, example("identity"))
    store.full = True
    await workers.stop_worker(worker.id, reason="Test")
    assert not running(worker.pid)
    assert not is_there(worker)
    assert workers.workers() == []
    store.full = False
    newer = await here.coordinator()
    assert await newer.adopt() == []
    assert await store.list("workers/") == []


async def test_one_that_did_not_start_is_ended_though_nobody_waits_to_hear_why(
    here: Host, workers: LocalWorkers, tmp_path: Path
) -> None:
    starting = asyncio.create_task(start(workers, written(tmp_path, "import time\ntime.sleep(1000)")))
    await eventually(lambda: any(workers.link(worker.id) for worker in workers.workers()))
    (worker,) = workers.workers()
    break_off(link_to(workers, worker))
    await eventually(lambda: workers.link(worker.id) is None)
    starting.cancel()  # while it is being found out how its process ended, which lives
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert workers.workers() == []
    assert processes_of(here.run_dir) == []
    assert folders_in(here.run_dir) == []


async def test_an_orphan_ends_itself_and_takes_its_folder_along(here: Host, tmp_path: Path) -> None:
    here.orphan_grace_s = 0.2
    workers = await here.coordinator()
    worker = await start(workers, written(tmp_path, GRANDCHILD))
    child = int((tmp_path / "grandchild").read_text())
    await workers.stop()
    await eventually(lambda: not running(worker.pid) and not running(child))
    assert not is_there(worker)


# adopting


async def test_workers_outlive_their_coordinator_and_serve_the_next(here: Host, workers: LocalWorkers) -> None:
    worker = await start(workers, example("identity"))
    await workers.stop()
    assert running(worker.pid)
    newer = await here.coordinator()
    (adopted,) = await newer.adopt()
    assert (adopted.id, adopted.pid, adopted.adopted, adopted.state) == (worker.id, worker.pid, True, "ready")
    assert adopted.term > worker.term
    assert adopted.info == worker.info
    reply = await link_to(newer, adopted).infer(tensors(INPUT0=np.ones((1, 8), "<f4")))
    assert arrays(reply)["OUTPUT0"].sum() == 8
    assert await newer.adopt() == []
    assert await kinds(here) == ["worker.starting", "worker.ready", "worker.adopted"]


async def test_dead_workers_are_cleared_up(here: Host, workers: LocalWorkers, tmp_path: Path) -> None:
    worker = await start(workers, written(tmp_path, GRANDCHILD))
    child = int((tmp_path / "grandchild").read_text())
    await workers.stop()
    os.kill(worker.pid, signal.SIGKILL)
    await eventually(lambda: not running(worker.pid))
    newer = await here.coordinator()
    assert await newer.adopt() == []
    assert newer.workers() == []
    assert not is_there(worker)
    assert not running(child)
    assert await here.store.list("workers/") == []


async def test_a_worker_that_was_still_loading_is_not_adopted(
    here: Host, workers: LocalWorkers, tmp_path: Path
) -> None:
    starting = asyncio.create_task(start(workers, written(tmp_path, "import time\ntime.sleep(1000)")))
    await eventually(lambda: processes_of(here.run_dir) != [])
    newer = await here.coordinator()
    assert await newer.adopt() == []
    assert processes_of(here.run_dir) == []
    assert await here.store.list("workers/") == []
    with pytest.raises((LoadFailed, NotLeader)):
        await starting


async def test_a_folder_without_a_record_is_cleared_up_with_its_worker(here: Host, workers: LocalWorkers) -> None:
    worker = await start(workers, example("identity"))
    await workers.stop()
    (record,) = await here.store.list("workers/")
    newer = await here.coordinator()
    await here.store.commit([newer._table.delete(worker.id, expect=record.revision)])
    (here.run_dir / "wrk-without-a-process").mkdir()
    assert await newer.adopt() == []
    assert not running(worker.pid)
    assert folders_in(here.run_dir) == []


async def test_a_worker_of_another_host_is_left_alone(here: Host, workers: LocalWorkers) -> None:
    worker = await start(workers, example("identity"))
    elsewhere = await here.coordinator(host="there")
    assert await elsewhere.adopt() == []
    assert running(worker.pid)


async def test_a_number_that_another_process_has_now_is_not_killed(here: Host, workers: LocalWorkers) -> None:
    worker = await start(workers, example("identity"))
    await workers.stop()
    bystander = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    try:
        (record,) = await here.store.list("workers/")
        value = record.value.replace(f'"pid":{worker.pid}'.encode(), f'"pid":{bystander.pid}'.encode())
        newer = await here.coordinator()
        put = newer._table.put(worker.id, worker, expect=record.revision)
        await here.store.commit([type(put)(put.key, value, record.revision)])
        os.kill(worker.pid, signal.SIGKILL)
        await eventually(lambda: not running(worker.pid))
        assert await newer.adopt() == []
        assert running(bystander.pid)
    finally:
        bystander.kill()
        await bystander.wait()
    assert not is_there(worker)


# falling silent

BUSY = """
import time
class Model:
    async def chat(self, request):
        end = time.monotonic() + request["s"]
        while time.monotonic() < end: pass
        return {}
"""
PATIENCE = Patience(unresponsive_after_s=0.5, hung_after_s=1.0)


@pytest.fixture
async def impatient(here: Host) -> LocalWorkers:
    here.patience = PATIENCE
    return await here.coordinator()


async def test_a_suspended_worker_is_not_responsive_and_is_again_when_it_goes_on(
    here: Host, workers: LocalWorkers
) -> None:
    worker = await start(workers, example("identity"))
    link = link_to(workers, worker)
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        await eventually(lambda: not link.responsive)
        assert link.alive
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    await eventually(lambda: link.responsive)
    assert workers.workers() == [worker]
    async for event in here.store.follow(after=0):
        if event.kind == "worker.responsive":
            break
    assert await kinds(here) == ["worker.starting", "worker.ready", "worker.unresponsive", "worker.responsive"]
    assert arrays(await link.infer(tensors(INPUT0=np.ones((1, 8), "f4"))))["OUTPUT0"].shape == (1, 8)


async def test_a_hung_worker_is_killed_with_its_requests_and_then_told_as_lost(
    here: Host, impatient: LocalWorkers, tmp_path: Path
) -> None:
    launch, notes = noting(tmp_path, WAITS)
    worker = await start(impatient, launch)
    lost = lost_workers(impatient)
    asked = asyncio.create_task(link_to(impatient, worker).infer(NOTHING))
    await eventually(lambda: reads(notes, "running"))
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(WorkerLost) as caught:
        await asked
    assert caught.value.sent
    told, why = await lost.get()
    assert (told.id, why) == (worker.id, "gave no sign of life")
    assert not psutil.pid_exists(worker.pid)
    await eventually(lambda: not is_there(worker))


async def test_a_worker_at_work_that_says_nothing_is_not_taken_for_hung(
    impatient: LocalWorkers, tmp_path: Path
) -> None:
    worker = await start(impatient, written(tmp_path, BUSY))
    link = link_to(impatient, worker)
    asked = asyncio.create_task(link.infer(Request("chat", b'{"s": 2.5}')))
    await eventually(lambda: not link.responsive)
    assert bytes((await asked).body) == b"{}"
    assert link.responsive
    assert impatient.workers() == [worker]


async def test_a_worker_that_works_silently_for_far_too_long_is_replaced(
    impatient: LocalWorkers, tmp_path: Path
) -> None:
    worker = await start(impatient, written(tmp_path, BUSY))
    lost = lost_workers(impatient)
    with pytest.raises(WorkerLost):
        await link_to(impatient, worker).infer(Request("chat", b'{"s": 1000}'))
    assert (await lost.get())[0].id == worker.id


async def test_a_worker_may_be_replaced_on_demand(here: Host, workers: LocalWorkers) -> None:
    worker = await start(workers, example("identity"))
    lost = lost_workers(workers)
    workers.replace_worker(worker.id, why="its canary failed")
    workers.replace_worker(worker.id, why="again")
    assert await lost.get() == (worker, "its canary failed")
    assert lost.empty()
    workers.replace_worker(worker.id, why="gone already")
    await eventually(lambda: not is_there(worker))


class OldWorker(asyncio.Protocol):
    """A worker of before there were pings, which breaks off when it is sent one."""

    def __init__(self, met: "asyncio.Future[list[str]]") -> None:
        self._met = met
        self._frames = Frames()
        self._heard: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for message, _ in self._frames.feed(data):
            self._heard.append(type(message).__name__)
            if isinstance(message, Hello):
                header = msgspec.msgpack.encode([1, message.term, Info(("chat",), "old")])
                self._transport.write(struct.pack("<II", len(header), 0) + header)

    def connection_lost(self, exc: Exception | None) -> None:
        self._met.set_result(self._heard)


async def test_an_older_worker_that_knows_no_ping_is_not_sent_one_and_not_taken_for_hung(here: Host) -> None:
    loop = asyncio.get_running_loop()
    met: asyncio.Future[list[str]] = loop.create_future()
    here.run_dir.mkdir(parents=True, exist_ok=True)
    path = str(here.run_dir.parent / "old.sock")
    server = await loop.create_unix_server(lambda: OldWorker(met), path)
    async with server:
        link = await WorkerLink.connect("wrk-old", path, Hello("", 1, ""), lambda _: None)
        assert link.is_loaded
        for _ in range(10):
            link.beat(60.0, unresponsive_after_s=1.0)
        assert (link.responsive, link.silent_s) == (True, 0.0)
        link.stop()
        link.close()
        assert await met == ["Hello", "Stop"]
    os.unlink(path)
