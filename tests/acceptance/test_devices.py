"""`moc devices` on a real coordinator of this machine."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.acceptance.conftest import EXAMPLES
from tests.coordinator import Coordinator, eventually

MIB = 2**20
GIB = 2**30
CONFIG = {
    "resources": {"gpu_poll_interval_s": 0.2, "soft_limit_pct": 80},
    "models": {"calculator": {"runtime": "python", "source": "file:add_sub.py"}},
}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Coordinator]:
    running = Coordinator(tmp_path / "data", config=CONFIG)
    shutil.copy(EXAMPLES / "add_sub.py", running.data_dir)
    try:
        yield running.start()
    finally:
        running.close()


def devices(coordinator: Coordinator) -> dict[str, Any]:
    done = coordinator.cli("devices", "--json")
    assert done.returncode == 0, done.stderr
    return {device["id"]: device for device in json.loads(done.stdout)["devices"]}


def test_main_memory_is_measured_and_who_has_it_is_told(own: Coordinator) -> None:
    host = devices(own)["host"]
    seen = psutil.virtual_memory()
    assert host["state"] == "online"
    assert host["capacity_bytes"] <= seen.total
    assert host["limit_bytes"] == int(host["capacity_bytes"] * 0.8)
    if host["capacity_bytes"] == seen.total:  # not in a container with a limit of its own
        used = seen.total - seen.available
        assert used - GIB < host["measured_bytes"] < used + 2 * GIB
    assert 0 < host["unmanaged_bytes"] <= host["measured_bytes"]
    assert (host["charges"], host["charged_bytes"]) == ([], 0)

    assert own.post("/api/v1/models/calculator/load").status_code == 200
    (worker,) = own.get("/api/v1/workers")["workers"]
    resident = psutil.Process(worker["pid"]).memory_info().rss

    def charged() -> Any:
        found = own.get("/api/v1/devices/host")
        return found["charges"] and found

    (charge,) = eventually(charged, what="the model to be charged")["charges"]
    assert charge["holder"] == "model:calculator@1"
    assert resident / 4 < charge["bytes"] <= resident + 16 * MIB
    assert own.post("/api/v1/models/calculator/unload").status_code == 200
    assert own.get("/api/v1/devices/host")["charges"] == []


def test_an_outside_process_that_eats_memory_is_noticed(own: Coordinator) -> None:
    before = own.get("/api/v1/devices/host")["unmanaged_bytes"]
    eaten = bytearray(b"x") * (512 * MIB)

    def noticed() -> bool:
        return bool(own.get("/api/v1/devices/host")["unmanaged_bytes"] > before + len(eaten) // 2)

    eventually(noticed, timeout_s=10, what="the eaten memory to be unmanaged")


def test_a_cordon_survives_a_restart(own: Coordinator) -> None:
    assert own.cli("devices", "cordon", "host").returncode == 0
    assert devices(own)["host"]["state"] == "cordoned"
    own.kill()
    own.start()
    assert devices(own)["host"]["state"] == "cordoned"
    assert own.cli("devices", "uncordon", "host").returncode == 0
    assert devices(own)["host"]["state"] == "online"
    kinds = [event["kind"] for event in own.get("/api/v1/events?follow=false")["events"] if event["subject"] == "host"]
    assert kinds == ["device.online", "device.cordoned", "device.online"]
    refused = own.cli("devices", "cordon", "cuda:99")
    assert refused.returncode == 1
    assert "there is no device 'cuda:99'" in refused.stderr


def test_devices_can_be_chosen_and_declared(tmp_path: Path) -> None:
    chosen = [
        {"id": "host", "kind": "host", "memory": "256MiB"},
        {"id": "declared:0", "kind": "declared", "memory": "24GiB"},
    ]
    running = Coordinator(tmp_path / "data", config={"devices": chosen})
    try:
        running.start()
        found = devices(running)
    finally:
        running.close()
    assert {key: device["capacity_bytes"] for key, device in found.items()} == {
        "host": 256 * MIB,
        "declared:0": 24 * GIB,
    }
    assert (found["declared:0"]["measured_bytes"], found["declared:0"]["limit_bytes"]) == (0, int(24 * GIB * 0.9))
