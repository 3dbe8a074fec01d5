"""Worker processes from the outside: who may command them, and that nothing of them is ever left."""

import asyncio
import os
import stat
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from moc.inference.request import Reply, Request
from moc.kernel.errors import (
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    LoadFailed,
    NotLeader,
    Unauthenticated,
    Unimplemented,
    WorkerLost,
)
from moc.models.ports import Launch
from moc.resilience.deadline import Deadline
from moc.workers.link import WorkerLink
from moc.workers.local import LocalWorkers
from moc.workers.wire import Hello
from tests.hosted import (
    Host,
    arrays,
    eventually,
    example,
    folders_in,
    host,
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
STREAMS = """
import pathlib
class Model:
    def load(self, notes=None): self.notes = pathlib.Path(notes)
    def chat(self, request): return {}
    def stream(self, request):
        try:
            for n in range(request["count"]):
                self.notes.write_text(str(n))
                yield {"n": n}
        finally:
            self.notes.with_suffix(".closed").touch()
"""


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# starting


async def test_a_worker_is_private_and_sees_no_secret(
    here: Host, workers: LocalWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOC_KEY", "a-secret")
    worker = await start(workers, example("identity"))
    folder = Path(worker.folder)
    token = (folder / "token").read_text()
    process = psutil.Process(worker.pid)
    assert mode_of(folder) == 0o700
    for name in ("token", "launch.json", "log", "pid"):
        assert mode_of(folder / name) == 0o600, name
    assert len(bytes.fromhex(token)) == 32
    assert token not in " ".join([*process.cmdline(), *process.environ().values()])
    assert "a-secret" not in process.environ().values()
    assert process.environ()["OMP_WAIT_POLICY"] == "passive"
    assert os.getsid(worker.pid) == worker.pid
    assert psutil.boot_time() + worker.process_started_at == pytest.approx(process.create_time(), abs=0.1)


@pytest.mark.parametrize("gpus", [(), ("GPU-1",), ("GPU-1", "MIG-7")], ids=len)
async def test_a_worker_sees_no_gpu_but_its_own(
    workers: LocalWorkers, gpus: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    worker = await start(workers, replace(example("identity"), gpus=gpus))
    seen = psutil.Process(worker.pid).environ()
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["CUDA_DEVICE_ORDER"]) == (",".join(gpus), "PCI_BUS_ID")


async def test_a_start_is_recorded_before_and_after(here: Host, workers: LocalWorkers) -> None:
    worker = await start(workers, example("identity"))
    assert worker.state == "ready"
    assert workers.workers() == [worker]
    assert await kinds(here) == ["worker.starting", "worker.ready"]
    assert (await here.store.list("workers/"))[0].key == f"workers/{worker.id}"


async def test_a_worker_below_a_deep_folder_is_put_where_its_socket_fits(tmp_path: Path) -> None:
    async with host(tmp_path / ("deep" * 30)) as here:
        workers = await here.coordinator()
        worker = await start(workers, example("identity"))
        assert link_to(workers, worker).alive
        assert len(worker.socket) < 108
        await workers.stop_worker(worker.id, reason="Test")
        assert not is_there(worker)


async def test_a_failing_load_shows_what_the_model_said(here: Host, workers: LocalWorkers, tmp_path: Path) -> None:
    source = (
        "import sys\nprint('reading', file=sys.stderr)\nclass Model:\n    def load(self): raise ValueError('no tea')"
    )
    with pytest.raises(LoadFailed, match="ValueError: no tea") as caught:
        await start(workers, written(tmp_path, source))
    assert "reading" in caught.value.details["log"]
    assert caught.value.reason == "load_failed"
    assert await kinds(here) == ["worker.starting", "worker.gone"]


async def test_a_model_that_takes_its_process_down_while_loading_is_a_failed_load(
    workers: LocalWorkers, tmp_path: Path
) -> None:
    source = "import os\nprint('fatal error: out of tea')\nos._exit(3)"
    with pytest.raises(LoadFailed, match="ended with status 3 while it was loading: fatal error: out of tea"):
        await start(workers, written(tmp_path, source))
    assert workers.workers() == []


async def test_an_unknown_runtime_is_refused(workers: LocalWorkers) -> None:
    with pytest.raises(LoadFailed, match="there is no runtime 'abacus'") as caught:
        await start(workers, Launch(model="x@1", digest="", runtime="abacus", path="x"))
    assert caught.value.reason == "invalid_spec"


async def test_a_load_that_takes_too_long_leaves_nothing(here: Host, workers: LocalWorkers, tmp_path: Path) -> None:
    launch = written(tmp_path, "import time\ntime.sleep(1000)")
    with pytest.raises(DeadlineExceeded):
        await workers.start_worker(launch, Deadline.after(0.3))
    assert processes_of(here.run_dir) == []
    assert await here.store.list("workers/") == []


async def test_a_start_that_is_cancelled_leaves_nothing(here: Host, workers: LocalWorkers, tmp_path: Path) -> None:
    starting = asyncio.create_task(start(workers, written(tmp_path, "import time\ntime.sleep(1000)")))
    await eventually(lambda: processes_of(here.run_dir) != [])
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert processes_of(here.run_dir) == []
    assert folders_in(here.run_dir) == []
    assert await here.store.list("workers/") == []


async def test_who_lost_the_seat_starts_nothing(here: Host, workers: LocalWorkers) -> None:
    await here.coordinator()
    with pytest.raises(NotLeader):
        await start(workers, example("identity"))
    assert processes_of(here.run_dir) == []
    assert folders_in(here.run_dir) == []


# commanding


async def test_a_wrong_token_is_refused(workers: LocalWorkers) -> None:
    worker = await start(workers, example("identity"))
    with pytest.raises(Unauthenticated):
        await WorkerLink.connect(worker.id, worker.socket, Hello("0" * 64, 99, "thief"), lambda _: None)
    assert link_to(workers, worker).alive


@pytest.mark.parametrize("newer", [0, -1])
async def test_a_term_that_is_not_newer_is_refused(workers: LocalWorkers, newer: int) -> None:
    worker = await start(workers, example("identity"))
    token = (Path(worker.folder) / "token").read_text()
    with pytest.raises(NotLeader, match=f"term {worker.term}"):
        await WorkerLink.connect(worker.id, worker.socket, Hello(token, worker.term + newer, "other"), lambda _: None)
    assert link_to(workers, worker).alive


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\n\r\n", struct.pack("<II", 2**31, 0), struct.pack("<II", 2, 0) + b"\x91\x0d"]
)
async def test_who_does_not_speak_the_protocol_is_dropped(workers: LocalWorkers, noise: bytes) -> None:
    worker = await start(workers, example("identity"))
    reader, writer = await asyncio.open_unix_connection(worker.socket)
    writer.write(noise)
    assert await reader.read() == b""
    writer.close()
    assert link_to(workers, worker).alive


async def test_a_newer_coordinator_takes_over_and_what_the_older_asked_is_cancelled(
    here: Host, workers: LocalWorkers, tmp_path: Path
) -> None:
    launch, notes = noting(tmp_path, WAITS)
    worker = await start(workers, launch)
    lost = lost_workers(workers)
    asked = asyncio.create_task(link_to(workers, worker).infer(NOTHING))
    await eventually(lambda: reads(notes, "running"))
    newer = await here.coordinator()
    (adopted,) = await newer.adopt()
    assert (adopted.id, adopted.pid, adopted.adopted) == (worker.id, worker.pid, True)
    with pytest.raises(WorkerLost) as caught:
        await asked
    assert caught.value.sent
    await eventually(lambda: reads(notes, "cancelled"))
    assert (await asyncio.wait_for(lost.get(), 10))[1] == "was claimed by a newer coordinator"
    with pytest.raises(NotLeader):
        await start(workers, launch)
    assert psutil.pid_exists(worker.pid)


async def test_a_cut_line_is_drawn_anew(workers: LocalWorkers) -> None:
    worker = await start(workers, example("identity"))
    before = link_to(workers, worker)
    transport = before._transport
    assert transport is not None
    transport.abort()
    await eventually(lambda: workers.link(worker.id) not in (None, before))
    assert arrays(await link_to(workers, worker).infer(tensors(INPUT0=np.ones((1, 8), "<f4"))))["OUTPUT0"].sum() == 8


# working


async def test_in_flight_counts_what_is_not_answered(workers: LocalWorkers, tmp_path: Path) -> None:
    launch, notes = noting(tmp_path, WAITS)
    worker = await start(workers, launch)
    asked = asyncio.create_task(link_to(workers, worker).infer(NOTHING))
    await eventually(lambda: reads(notes, "running"))
    assert workers.in_flight(worker.id) == 1
    asked.cancel()
    await asyncio.wait([asked])
    assert workers.in_flight(worker.id) == 0
    await eventually(lambda: reads(notes, "cancelled"))


async def test_a_reader_that_does_not_read_holds_the_model_back(workers: LocalWorkers, tmp_path: Path) -> None:
    launch, notes = noting(tmp_path, STREAMS)
    worker = await start(workers, launch)
    stream = link_to(workers, worker).stream(Request("chat", b'{"count":1000}'))
    first = await anext(stream)
    await eventually(lambda: notes.exists() and int(notes.read_text() or 0) >= 60)
    await asyncio.sleep(0.2)  # time in which an unbounded model would be done
    assert int(notes.read_text()) < 80
    rest = [chunk async for some in stream for chunk in some]
    assert [*first, *rest] == [b'{"n":%d}' % n for n in range(1000)]
    assert workers.in_flight(worker.id) == 0


async def test_closing_a_stream_stops_the_model(workers: LocalWorkers, tmp_path: Path) -> None:
    launch, notes = noting(tmp_path, STREAMS)
    worker = await start(workers, launch)
    stream = link_to(workers, worker).stream(Request("chat", b'{"count":1000000000}'))
    await anext(stream)
    await stream.aclose()
    await eventually(notes.with_suffix(".closed").exists)
    assert workers.in_flight(worker.id) == 0


async def test_an_error_in_the_users_code_is_told_and_survived(workers: LocalWorkers, tmp_path: Path) -> None:
    source = """
import sys
from moc.kernel.errors import InvalidRequest
class Model:
    def chat(self, request):
        if request["how"] == "exit": sys.exit(4)
        if request["how"] == "refuse": raise InvalidRequest("not today")
        if request["how"] == "list": return []
        return 1 / request["by"]
    def stream(self, request):
        yield {}
        raise KeyError("gone")
"""
    link = link_to(workers, await start(workers, written(tmp_path, source)))
    for body, kind, text in (
        (b'{"how":"divide","by":0}', Internal, "ZeroDivisionError: division by zero"),
        (b'{"how":"exit"}', Internal, "SystemExit: 4"),
        (b'{"how":"refuse"}', InvalidRequest, "not today"),
        (b'{"how":"list"}', Internal, "answered with a list"),
        (b"[]", InvalidRequest, "not a JSON object"),
    ):
        with pytest.raises(kind, match=text):
            await link.infer(Request("chat", body))
    stream = link.stream(Request("chat", b"{}"))
    assert await anext(stream) == [b"{}"]
    with pytest.raises(Internal, match="KeyError: 'gone'"):
        await anext(stream)
    with pytest.raises(Unimplemented):
        await link.infer(Request("tensors", b""))


async def test_an_async_model_loads_answers_and_streams(workers: LocalWorkers, tmp_path: Path) -> None:
    source = """
import asyncio
class Model:
    concurrency = 3
    async def load(self, greeting): await asyncio.sleep(0); self.greeting = greeting
    async def chat(self, request): return {"say": self.greeting}
    async def stream(self, request):
        for letter in self.greeting: yield {"say": letter}
"""
    launch = written(tmp_path, source)
    launch.options["greeting"] = "moin"
    link = link_to(workers, await start(workers, launch))
    assert link.info.concurrency == 3
    assert await link.infer(NOTHING) == Reply(b'{"say":"moin"}')
    assert [chunk async for some in link.stream(NOTHING) for chunk in some] == [b'{"say":"%c"}' % c for c in b"moin"]


async def test_a_big_tensor_passes_both_ways(workers: LocalWorkers) -> None:
    link = link_to(workers, await start(workers, example("identity")))
    big = np.random.default_rng(0).random((2**18, 8), "<f4")
    replies = await asyncio.gather(*(link.infer(tensors(INPUT0=big)) for _ in range(3)))
    for reply in replies:
        assert np.array_equal(arrays(reply)["OUTPUT0"], big)


async def test_the_memory_of_all_its_processes_is_measured(workers: LocalWorkers, tmp_path: Path) -> None:
    hoard = "x = b'1' * 50_000_000"
    source = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "{hoard}; print('there', flush=True); input()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
{hoard}
class Model:
    def infer(self, inputs): ...
"""
    worker = await start(workers, written(tmp_path, source))
    assert 100_000_000 < workers.memory_bytes(worker.id) < 300_000_000
    assert workers.memory_bytes("wrk-nobody") == 0
    (child,) = psutil.Process(worker.pid).children()
    assert workers.pids(worker.id) == {worker.pid, child.pid}
    assert workers.pids("wrk-nobody") == frozenset()
