"""External servers as engines: started, asked, watched, ended; llama.cpp's own HTTP server and some that misbehave."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from moc.inference.request import Request
from moc.kernel.errors import LoadFailed, MocError
from moc.models.ports import Launch, Worker
from moc.workers.link import WorkerLink
from moc.workers.local import LocalWorkers
from tests.hosted import Host, arrays, eventually, link_to, lost_workers, start, tensors
from tests.models import EXAMPLES, smollm2_path

LLAMA = [sys.executable, str(Path(__file__).parents[1] / "llama_server.py"), "{port}", "{path}", "{model}"]
MOODY = str(Path(__file__).parents[1] / "moody_server.py")


def llama(**options: Any) -> Launch:
    """SmolLM2 behind llama.cpp's server, which asks for the key of its start."""
    given = {"command": LLAMA, "env": {"LLAMA_API_KEY": "{key}"}, "concurrency": 2, **options}
    return Launch(model="llm@1", digest="d", runtime="command", path=str(smollm2_path()), options=given)


def moody(notes: Path, **options: Any) -> Launch:
    """A server whose moods are set in a folder."""
    command = [sys.executable, MOODY, "{port}", str(notes)]
    given = {"command": command, "health_interval_s": 0.1, "stop_signal": "SIGINT", **options}
    return Launch(model="moody@1", digest="d", runtime="command", path="", options=given)


def running(command: list[str], **options: Any) -> Launch:
    """Any program."""
    return Launch(model="any@1", digest="d", runtime="command", path="", options={"command": command, **options})


def server_of(worker: Worker) -> psutil.Process:
    return psutil.Process(worker.info["details"]["pid"])


def is_dead(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def chat(**fields: Any) -> Request:
    body = {"messages": [{"role": "user", "content": "Name three rivers."}], "temperature": 0, "max_tokens": 12}
    return Request("chat", json.dumps(body | fields).encode())


async def answer(link: WorkerLink) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bytes((await link.infer(chat())).body))
    return found


async def test_a_chat_whole_and_streamed(workers: LocalWorkers) -> None:
    worker = await start(workers, llama())
    link = link_to(workers, worker)
    whole = await answer(link)
    assert whole["model"] == "llm@1"
    assert whole["usage"]["completion_tokens"] == 12
    chunks = [json.loads(chunk) async for some in link.stream(chat(stream=True)) for chunk in some]
    told = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert told == whole["choices"][0]["message"]["content"]
    assert link.info.concurrency == 2
    assert link.info.engine.startswith("python")


async def test_tensors_of_a_server_of_the_open_inference_protocol(workers: LocalWorkers, tmp_path: Path) -> None:
    config = {
        "security": {"require_key": False},
        "workers": {"orphan_grace_s": 1},
        "models": {"add_sub": {"runtime": "python", "source": f"file:{EXAMPLES / 'add_sub.py'}", "preload": True}},
    }
    (tmp_path / "moc.yaml").write_text(json.dumps(config))
    serve = ["serve", "--data-dir", str(tmp_path), "--stop-workers", "--grpc-port", "0", "--zmq-port", "0"]
    command = [sys.executable, "-m", "moc", *serve, "--rest-port", "{port}"]
    oip = {"protocol": "oip", "model": "add_sub", "health": "/v2/models/add_sub/ready"}
    link = link_to(workers, await start(workers, running(command, **oip)))
    assert [(spec.name, spec.datatype) for spec in link.info.inputs] == [("INPUT0", "INT32"), ("INPUT1", "INT32")]
    ones = np.full(16, 1, "<i4")
    reply = await link.infer(tensors(INPUT0=ones, INPUT1=ones * 2))
    assert {name: array.tolist() for name, array in arrays(reply).items()} == {
        "OUTPUT0": [3] * 16,
        "OUTPUT1": [-1] * 16,
    }


async def test_who_leaves_frees_the_slot_at_once(workers: LocalWorkers) -> None:
    link = link_to(workers, await start(workers, llama()))
    endless = chat(stream=True, max_tokens=1900, ignore_eos=True)
    for _ in range(3):  # there are two slots, and each would be busy for most of a minute
        stream = link.stream(endless)
        await anext(stream)
        await stream.aclose()
    async with asyncio.timeout(15):
        await answer(link)


async def test_only_who_knows_the_key_is_answered(workers: LocalWorkers) -> None:
    port = (await start(workers, llama())).info["details"]["port"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v1/models HTTP/1.0\r\n\r\n")
    assert b" 401 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_a_server_that_is_killed_is_missed_with_its_worker(workers: LocalWorkers) -> None:
    worker = await start(workers, llama())
    lost = lost_workers(workers)
    endless = asyncio.create_task(link_to(workers, worker).infer(chat(max_tokens=1900, ignore_eos=True)))
    await asyncio.wait([endless], timeout=0.5)
    server_of(worker).kill()
    with pytest.raises(MocError) as caught:
        await endless
    assert caught.value.code == "worker_lost", caught.value.message
    who, why = await asyncio.wait_for(lost.get(), 10)
    assert who.id == worker.id
    assert "was killed by SIGKILL" in why


async def test_a_server_that_stays_sick_is_missed_with_its_worker(workers: LocalWorkers, tmp_path: Path) -> None:
    worker = await start(workers, moody(tmp_path))
    server, lost = server_of(worker), lost_workers(workers)
    (tmp_path / "sick").touch()
    _, why = await asyncio.wait_for(lost.get(), 10)
    assert "was not well 3 times in a row: " in why
    assert "503" in why
    await eventually(lambda: is_dead(server))


async def test_a_server_that_answers_is_not_given_up_for_what_its_health_says(
    workers: LocalWorkers, tmp_path: Path
) -> None:
    worker = await start(workers, moody(tmp_path, health_interval_s=0.3))
    lost, asked = lost_workers(workers), tmp_path / "asked"
    (tmp_path / "sick").touch()
    before = len(asked.read_text())
    while len(asked.read_text()) < before + 5:  # three are too many for one that does not answer
        await answer(link_to(workers, worker))
    assert lost.empty()
    assert workers.link(worker.id) is not None


async def test_a_server_ends_with_its_worker_though_nobody_looks_after_them(
    here: Host, workers: LocalWorkers, tmp_path: Path
) -> None:
    worker = await start(workers, moody(tmp_path))
    server = server_of(worker)
    await workers.stop()  # it lets go of them
    os.kill(worker.pid, signal.SIGKILL)
    await eventually(lambda: is_dead(server))


async def test_a_server_is_told_to_end(workers: LocalWorkers, tmp_path: Path) -> None:
    worker = await start(workers, moody(tmp_path))
    server = server_of(worker)
    await workers.stop_worker(worker.id, reason="Test")
    assert (tmp_path / "left").exists()
    assert is_dead(server)


async def test_a_server_and_its_worker_are_adopted(here: Host, workers: LocalWorkers) -> None:
    worker = await start(workers, llama())
    await workers.stop()
    later = await here.coordinator()
    (adopted,) = await later.adopt()
    assert server_of(adopted) == server_of(worker)
    assert (await answer(link_to(later, adopted)))["choices"]


async def test_a_server_is_given_a_clean_environment_and_what_was_said(
    workers: LocalWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET_OF_THE_COORDINATOR", "x")
    (tmp_path / "token").write_text("hf_123\n")
    worker = await start(workers, moody(tmp_path, env={"TOKEN": f"{{file:{tmp_path}/token}}", "AT": "{host}:{port}"}))
    environment = (tmp_path / "environment").read_text().splitlines()
    assert "TOKEN=hf_123" in environment
    assert f"AT=127.0.0.1:{worker.info['details']['port']}" in environment
    assert "CUDA_VISIBLE_DEVICES=" in environment
    assert not any("A_SECRET" in line for line in environment)
    assert (tmp_path / "folder").read_text() == worker.folder
    assert "hf_123" not in (Path(worker.folder) / "launch.json").read_text()
    assert "hear, hear" in (Path(worker.folder) / "log").read_text()


async def test_a_server_that_ends_at_once_is_told_with_what_it_said(workers: LocalWorkers) -> None:
    command = ["sh", "-c", "echo error: no kernel image is available >&2; exit 3"]
    with pytest.raises(LoadFailed, match=r"sh ended with status 3 before it was ready: error: no kernel") as caught:
        await start(workers, running(command))
    assert caught.value.reason == "load_failed"
    assert "error: no kernel image is available" in caught.value.details["log"]
    assert workers.workers() == []


async def test_a_server_that_never_gets_ready_is_given_up(workers: LocalWorkers, tmp_path: Path) -> None:
    (tmp_path / "sick").touch()
    with pytest.raises(LoadFailed, match=r"was not ready within 1 s: .*503"):
        await start(workers, moody(tmp_path, start_timeout_s=1))
    assert not any(
        str(tmp_path) in " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])
    )


async def test_what_a_server_holds_is_measured(workers: LocalWorkers) -> None:
    worker = await start(workers, llama())
    assert server_of(worker).pid in workers.pids(worker.id)
    assert workers.memory_bytes(worker.id) > 80 * 2**20
