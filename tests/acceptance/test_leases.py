"""`moc lease` and its clients on a real coordinator, with a declared device of a GiB."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from moc.client import AsyncClient, Client
from moc.kernel.errors import Conflict, NoCapacity
from tests.coordinator import MOC, Coordinator, eventually

MIB = 2**20
CONFIG = {
    "resources": {"gpu_poll_interval_s": 0.2, "soft_limit_pct": 100},
    "devices": [{"id": "declared:0", "kind": "declared", "memory": "1GiB"}],
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    running = Coordinator(tmp_path_factory.mktemp("leases") / "data", config=CONFIG)
    try:
        yield running.start()
    finally:
        running.close()


@pytest.fixture
def own(shared: Coordinator) -> Iterator[Coordinator]:
    yield shared
    for lease in shared.get("/api/v1/leases")["leases"]:
        assert shared.cli("lease", "release", lease["id"]).returncode == 0


@pytest.fixture
def client(own: Coordinator) -> Iterator[Client]:
    with Client(own.url, own.key) as one:
        yield one


def lease(coordinator: Coordinator, *arguments: str) -> Any:
    done = coordinator.cli("lease", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


Leased = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def leased() -> Iterator[Leased]:
    """Starts `moc lease run`; whatever still runs at the end is killed, with what it started."""
    started: list[subprocess.Popen[str]] = []

    def run(coordinator: Coordinator, *arguments: str) -> "subprocess.Popen[str]":
        command = [*MOC, "lease", "run", *arguments]
        environment = coordinator.environment()
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.communicate()


def charged(coordinator: Coordinator) -> dict[str, int]:
    charges = coordinator.get("/api/v1/devices/declared:0")["charges"]
    return {charge["holder"]: charge["bytes"] for charge in charges}


def test_a_lease_is_acquired_renewed_listed_and_released(own: Coordinator, leased: Leased) -> None:
    got = lease(own, "acquire", "--memory", "600MiB", "--priority", "2", "--ttl", "30s")
    assert (got["state"], got["device"], got["bytes"]) == ("admitted", "declared:0", 600 * MIB)
    assert charged(own) == {f"lease:{got['id']}": 600 * MIB}
    refused = own.cli("lease", "acquire", "--memory", "600MiB")
    assert refused.returncode == 1
    assert "424MiB free" in refused.stderr
    renewed = lease(own, "renew", got["id"], "--token", got["token"])
    assert renewed["expires_at"] > got["expires_at"]
    assert own.cli("lease", "renew", got["id"], "--token", "0.1").returncode == 1
    assert [each["id"] for each in lease(own, "list")["leases"]] == [got["id"]]
    assert lease(own, "release", got["id"])["state"] == "released"
    assert lease(own, "release", got["id"])["state"] == "released"
    assert lease(own, "show", got["id"])["reason"] == "Released"
    assert (lease(own, "list")["leases"], charged(own)) == ([], {})


def test_one_that_waits_is_served_when_another_is_released(own: Coordinator, client: Client, leased: Leased) -> None:
    first = client.leases.acquire("700MiB")
    waiting = leased(own, "--memory", "700MiB", "--wait", "30s", "--", sys.executable, "-c", "print('ran')")
    eventually(lambda: len(client.leases.list()["items"]) == 2, what="one to stand in line")
    (pending,) = (each["id"] for each in client.leases.list()["items"] if each["state"] == "pending")
    shown = dict(line.split("  ", 1) for line in own.cli("lease", "show", pending).stdout.splitlines())
    assert shown["position"].strip() == "1"
    client.leases.release(first["id"], first["token"] or "")
    out, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, out, err) == (0, "ran\n", "")
    assert charged(own) == {}


def test_one_that_goes_away_leaves_the_line(own: Coordinator, client: Client, leased: Leased) -> None:
    client.leases.acquire("700MiB")
    waiting = leased(own, "--memory", "700MiB", "--", "true")
    eventually(lambda: len(client.leases.list()["items"]) == 2, what="one to stand in line")
    waiting.kill()
    waiting.communicate()
    eventually(lambda: len(client.leases.list()["items"]) == 1, what="the line to be empty")


def test_run_tells_the_command_of_its_lease_and_exits_as_it_does(own: Coordinator) -> None:
    code = "import os; print(*(os.environ['MOC_LEASE_' + key] for key in ('ID', 'TOKEN', 'DEVICE', 'BYTES'))); exit(7)"
    done = own.cli("lease", "run", "--memory", "1MiB", "--", sys.executable, "-c", code)
    lease_id, token, device, size = done.stdout.split()
    assert (done.returncode, device, size) == (7, "declared:0", str(MIB)), done.stderr
    shown = lease(own, "show", lease_id)
    assert (shown["state"], shown["token"]) == ("released", token)
    assert own.cli("lease", "run", "--memory", "1MiB", "--", "no-such-command").returncode == 127
    assert charged(own) == {}


def test_run_passes_a_preemption_on_and_kills_what_ignores_it(own: Coordinator, client: Client, leased: Leased) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('told', flush=True)); print(1, flush=True)"
    )
    stubborn = f"{code}\nwhile True: time.sleep(60)"
    victim = leased(own, "--memory", "1GiB", "--priority", "8", "--grace", "1s", "--", sys.executable, "-c", stubborn)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "1\n"
    (held,) = client.leases.list()["items"]
    eventually(lambda: client.leases.show(held["id"])["pid"], what="its process to be named")
    got = client.leases.acquire("1GiB", priority=1, wait_s=30)
    out, err = victim.communicate(timeout=30)
    assert (victim.returncode, out) == (128 + signal.SIGKILL, "told\n")
    assert "preempted" in err
    assert "did not end" in err
    assert charged(own) == {f"lease:{got['id']}": 2**30}
    assert client.leases.show(held["id"])["state"] == "evicted"
    events = own.get("/api/v1/events?follow=false&limit=1000")["events"]
    ends = ("lease.preempting", "lease.evicted")
    assert [each["kind"] for each in events if each["subject"] == held["id"] and each["kind"] in ends] == [*ends]


def test_run_passes_signals_on(own: Coordinator, leased: Leased) -> None:
    running = leased(own, "--memory", "1MiB", "--", sys.executable, "-c", "print(1, flush=True); input()")
    assert running.stdout is not None
    running.stdout.readline()
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=30)
    assert running.returncode == 128 + signal.SIGTERM
    assert charged(own) == {}


def test_a_block_keeps_its_lease_and_hears_of_a_preemption(own: Coordinator, client: Client, leased: Leased) -> None:
    told = threading.Event()
    with client.lease("1GiB", priority=8, ttl_s=1, grace_s=20, on_preempt=lambda _: told.set()) as held:
        assert client.leases.show(held.id)["pid"] == os.getpid()
        other = leased(own, "--memory", "1GiB", "--priority", "1", "--wait", "30s", "--", "true")
        assert told.wait(20)
        assert held.taken
        assert held.view["state"] == "preempting"
    assert held.view["state"] == "evicted"
    other.communicate(timeout=30)
    assert other.returncode == 0


async def test_the_same_with_an_event_loop(own: Coordinator) -> None:
    async with AsyncClient(own.url, own.key) as client:
        told = asyncio.Event()
        async with client.lease("1GiB", priority=8, ttl_s=1, grace_s=20, on_preempt=lambda _: told.set()) as held:
            with pytest.raises(NoCapacity):
                await client.leases.acquire("1GiB")
            waiting = asyncio.create_task(client.leases.acquire("1GiB", priority=1, wait_s=30))
            async with asyncio.timeout(20):
                await told.wait()
            assert held.taken
        got = await waiting
        await client.leases.release(got["id"], got["token"] or "")
        with pytest.raises(Conflict):
            await client.leases.renew(held.id, held.token)


def test_what_a_leased_process_really_uses_is_charged(tmp_path: Path, leased: Leased) -> None:
    host = Coordinator(tmp_path / "data", config={"resources": {"gpu_poll_interval_s": 0.2}})
    try:
        host.start()
        code = "eaten = bytearray(b'x') * (200 * 2**20); print(1, flush=True); input()"
        running = leased(host, "--memory", "1MiB", "--device", "host", "--", sys.executable, "-c", code)
        assert running.stdout is not None
        running.stdout.readline()

        def counted() -> bool:
            charges = host.get("/api/v1/devices/host")["charges"]
            return bool(charges) and charges[0]["bytes"] > 200 * MIB

        eventually(counted, what="what the process has to be charged")
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=30)
    finally:
        host.close()


def test_leases_survive_the_death_of_the_coordinator(own: Coordinator, client: Client, leased: Leased) -> None:
    kept = client.leases.acquire("100MiB")
    running = leased(
        own,
        "--memory",
        "200MiB",
        "--ttl",
        "3s",
        "--",
        sys.executable,
        "-c",
        "import signal; print(1, flush=True); signal.pause()",
    )
    assert running.stdout is not None
    running.stdout.readline()
    (other,) = (each for each in client.leases.list()["items"] if each["id"] != kept["id"])
    pid = eventually(lambda: client.leases.show(other["id"])["pid"], what="its process to be named")
    own.kill()
    own.start()
    assert charged(own) == {f"lease:{kept['id']}": 100 * MIB, f"lease:{other['id']}": 200 * MIB}
    assert client.leases.renew(kept["id"], kept["token"] or "")["state"] == "admitted"
    later = client.leases.acquire("1MiB")
    assert _numbers(later["token"]) > _numbers(other["token"])
    running.kill()
    running.wait()
    try:
        eventually(lambda: client.leases.show(other["id"])["state"] == "expired", what="it to expire")
        assert charged(own)[f"quarantine:{other['id']}"] == 200 * MIB
    finally:
        psutil.Process(pid).kill()
    eventually(lambda: f"quarantine:{other['id']}" not in charged(own), what="its memory to be free")


def _numbers(token: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in (token or "").split("."))
