"""Main memory: of this machine as it is, and of containers drawn in folders."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from moc.gpu.device import Device, DeviceReading
from moc.hardware.declared import DeclaredDevices
from moc.hardware.host import HostMemory
from moc.hardware.selected import SelectedDevices
from moc.testing.devices import FakeDevices, fake_reading

MIB = 2**20
GIB = 2**30


def machine(folder: Path, *, groups: str, mapped_kib: int = 0) -> Path:
    """A /proc of a machine with 16 GiB, 10 of them available."""
    proc = folder / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(
        f"MemTotal: {16 * 1024**2} kB\nMemFree: 1 kB\nMemAvailable: {10 * 1024**2} kB\n"
        f"Mapped: {mapped_kib} kB\nShmem: 0 kB\nHugePages_Total: 0\n"
    )
    (proc / "self" / "cgroup").write_text(groups)
    return proc


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def read(folder: Path, proc: Path, pids: Iterable[int] = ()) -> DeviceReading:
    (reading,) = HostMemory(lambda: pids, proc=proc, cgroups=folder / "cgroup").read()
    return reading


def test_this_machine() -> None:
    (reading,) = HostMemory(list).read()
    seen = psutil.virtual_memory()
    assert (reading.device.id, reading.device.kind) == ("host", "host")
    assert 0 < reading.device.capacity_bytes <= seen.total
    assert 0 < reading.used_bytes <= reading.device.capacity_bytes


def test_processes_are_measured_with_all_they_started() -> None:
    program = (
        "import subprocess, sys\n"
        "holds = 'held = bytearray(64 * 2**20); print(1, flush=True); input()'\n"
        "child = subprocess.Popen([sys.executable, '-c', holds], stdin=subprocess.PIPE)\n"
        "input()\nchild.communicate()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as root:
        assert root.stdout is not None
        root.stdout.readline()
        (reading,) = HostMemory(lambda: [root.pid, 2**22 + 1]).read()
        root.communicate(b"\n")
    assert root.pid in reading.processes
    assert len(reading.processes) == 2
    assert 64 * MIB < sum(reading.processes.values()) < 256 * MIB
    assert os.getpid() not in reading.processes


def test_a_machine_without_limits_has_all_its_memory_and_mapped_files_count(tmp_path: Path) -> None:
    proc = machine(tmp_path, groups="0::/\n", mapped_kib=1024)
    reading = read(tmp_path, proc)
    assert reading.device.capacity_bytes == 16 * GIB
    assert reading.used_bytes == 6 * GIB + MIB


@pytest.mark.parametrize("seen_as", ["/", "/docker/abc"], ids=["own namespace", "the host's path"])
def test_a_container_has_what_its_group_may_use(tmp_path: Path, seen_as: str) -> None:
    proc = machine(tmp_path, groups=f"0::{seen_as}\n")
    stat = f"anon 1\nfile_mapped {30 * MIB}\nshmem {10 * MIB}\ninactive_file {200 * MIB}\nactive_file {100 * MIB}"
    group(tmp_path / "cgroup", memory__max=2 * GIB, memory__current=GIB, memory__stat=stat)
    reading = read(tmp_path, proc)
    assert (reading.device.capacity_bytes, reading.used_bytes) == (2 * GIB, GIB - 300 * MIB + 20 * MIB)


def test_the_tightest_limit_above_counts(tmp_path: Path) -> None:
    proc = machine(tmp_path, groups="0::/outer/middle/own\n")
    top = tmp_path / "cgroup"
    group(top / "outer", memory__max=8 * GIB, memory__current=5 * GIB, memory__stat="")
    group(top / "outer" / "middle", memory__max=4 * GIB, memory__current=3 * GIB, memory__stat="")
    group(top / "outer" / "middle" / "own", memory__max="max", memory__current=GIB, memory__stat="")
    reading = read(tmp_path, proc)
    assert (reading.device.capacity_bytes, reading.used_bytes) == (4 * GIB, 3 * GIB)


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    proc = machine(tmp_path, groups="9:cpu,memory:/own\n1:name=systemd:/x\n0::/\n")
    own = tmp_path / "cgroup" / "memory" / "own"
    stat = f"inactive_file 1\ntotal_inactive_file {MIB}\ntotal_active_file 0\ntotal_mapped_file 0\ntotal_shmem 0"
    group(own, memory__limit_in_bytes=GIB, memory__usage_in_bytes=512 * MIB, memory__stat=stat)
    group(own.parent, memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=GIB, memory__stat="")
    reading = read(tmp_path, proc)
    assert (reading.device.capacity_bytes, reading.used_bytes) == (GIB, 511 * MIB)


def test_a_limit_beyond_all_memory_is_none(tmp_path: Path) -> None:
    proc = machine(tmp_path, groups="0::/\n")
    group(tmp_path / "cgroup", memory__max=64 * GIB, memory__current=GIB, memory__stat="")
    assert read(tmp_path, proc).device.capacity_bytes == 16 * GIB


def test_a_system_without_proc_is_asked_another_way(tmp_path: Path) -> None:
    reading = read(tmp_path, tmp_path / "nothing")
    assert reading.device.capacity_bytes == psutil.virtual_memory().total
    assert reading.used_bytes > 0


def test_declared_devices_are_there_and_never_in_use() -> None:
    device = Device(id="declared:0", kind="declared", name="declared", capacity_bytes=GIB)
    source = DeclaredDevices([device])
    assert source.read() == [DeviceReading(device=device, used_bytes=0)]
    source.close()


@pytest.mark.parametrize(
    ("limit", "used", "ours", "capacity", "counted"),
    [
        (None, 500, 0, 1000, 500),
        (2000, 500, 0, 1000, 500),
        (100, 500, 0, 100, 0),
        (100, 500, 60, 100, 60),
        (100, 950, 0, 100, 50),
        (100, 950, 60, 100, 60),
    ],
)
def test_a_limit_leaves_the_rest_to_others(
    limit: int | None, used: int, ours: int, capacity: int, counted: int
) -> None:
    inner = FakeDevices(
        fake_reading("host", capacity_bytes=1000, used_bytes=used, processes={1: ours}), fake_reading("other")
    )
    (reading,) = SelectedDevices(inner, {"host": limit}).read()
    assert (reading.device.capacity_bytes, reading.used_bytes) == (capacity, counted)
