"""NVIDIA devices from a library that works, lies, hangs and fails."""

import importlib
import inspect
from collections import deque
from dataclasses import fields
from pathlib import Path

import pytest

from moc.gpu.device import DeviceReading, DeviceState
from moc.gpu.monitor import DeviceMonitor
from moc.hardware.nvml import Nvml, NvmlDevices
from moc.store.memory import MemoryStore
from moc.testing.clock import ManualClock
from moc.testing.nvml import GIB, FakeCard, FakeEvent, FakeMemory, FakeNvml, FakeNvmlError, FakeProcess


def only(source: NvmlDevices) -> DeviceReading:
    (reading,) = source.read()
    return reading


def test_a_card_is_read_whole() -> None:
    card = FakeCard(
        name="H200", uuid="GPU-1", total=141 * GIB, reserved=GIB, used=20 * GIB, temperature=63, utilization=87,
        compute=[FakeProcess(1, 8 * GIB), FakeProcess(2, None)],
        graphics=[FakeProcess(1, 8 * GIB), FakeProcess(3, GIB)],
    )  # fmt: skip
    source = NvmlDevices(FakeNvml(card, FakeCard()))
    first, second = source.read()
    device = first.device
    assert (device.id, device.kind, device.name, device.uuid) == ("cuda:0", "cuda", "H200", "GPU-1")
    assert (device.capacity_bytes, first.used_bytes) == (140 * GIB, 20 * GIB)
    assert (first.temperature_c, first.utilization_ratio, first.problem, first.lost) == (63.0, 0.87, "", False)
    assert first.processes == {1: 8 * GIB, 2: 0, 3: GIB}
    assert second.device.id == "cuda:1"


@pytest.mark.parametrize("code", [12, 9], ids=["no library", "no driver"])
def test_a_machine_without_the_driver_has_no_devices(code: int) -> None:
    library = FakeNvml(FakeCard(), missing=code)
    source = NvmlDevices(library)
    assert source.read() == []
    library.missing = None
    assert only(source).device.id == "cuda:0"


def test_a_driver_that_fails_says_so_and_is_opened_again() -> None:
    library = FakeNvml(FakeCard(), missing=999)
    source = NvmlDevices(library)
    with pytest.raises(FakeNvmlError, match="Unknown Error"):
        source.read()
    library.missing = None
    source.read()
    library.opened = 0  # as after the driver was replaced under it
    with pytest.raises(FakeNvmlError):
        source.read()
    assert only(source).device.id == "cuda:0"


def test_what_a_card_does_not_tell_is_left_out() -> None:
    library = FakeNvml(FakeCard(temperature=None, utilization=None, event_kinds=None, used=GIB, reserved=GIB), old=True)
    reading = only(NvmlDevices(library))
    assert (reading.temperature_c, reading.utilization_ratio) == (None, None)
    assert (reading.used_bytes, reading.device.capacity_bytes) == (2 * GIB, 80 * GIB)
    assert library.registered == []


@pytest.mark.parametrize(("generation", "has"), [(7, False), (8, True), (None, True)])
def test_a_card_of_an_old_generation_does_not_compute_in_bfloat16(generation: int | None, has: bool) -> None:
    assert only(NvmlDevices(FakeNvml(FakeCard(generation=generation)))).device.bfloat16 is has


@pytest.mark.parametrize(("used", "believed"), [(90 * GIB, 80 * GIB), (-5, 0)])
def test_numbers_that_cannot_be_are_said_to_be_and_err_on_the_safe_side(used: int, believed: int) -> None:
    reading = only(NvmlDevices(FakeNvml(FakeCard(used=used))))
    assert reading.used_bytes == believed
    assert f"claims that {used} of {80 * GIB} bytes" in reading.problem


def test_a_lost_card_does_not_hide_the_others_and_comes_back() -> None:
    broken, well = FakeCard(name="broken"), FakeCard(name="well")
    source = NvmlDevices(FakeNvml(broken, well))
    source.read()
    broken.fails = 15
    first, second = source.read()
    assert (first.device.id, first.device.name, first.lost) == ("cuda:0", "broken", True)
    assert first.problem == "the driver says: GPU is lost"
    assert not second.lost
    broken.fails = None
    assert not source.read()[0].lost


def test_a_divided_card_that_is_lost_loses_its_instances() -> None:
    card = FakeCard(mig=[FakeCard(uuid="MIG-a"), FakeCard(uuid="MIG-b")])
    source = NvmlDevices(FakeNvml(card))
    source.read()
    card.fails = 15
    lost = source.read()
    assert [(each.device.id, each.device.uuid, each.lost) for each in lost] == [
        ("cuda:0/mig:0", "MIG-a", True),
        ("cuda:0/mig:1", "MIG-b", True),
    ]


def test_a_card_that_was_never_read_is_listed_as_lost() -> None:
    reading = only(NvmlDevices(FakeNvml(FakeCard(fails=16))))
    assert (reading.device.id, reading.device.capacity_bytes, reading.lost) == ("cuda:0", 0, True)


def test_a_divided_card_is_its_instances() -> None:
    parts: list[FakeCard | None] = [
        FakeCard(name="1g", uuid="MIG-a", total=10 * GIB, used=GIB, utilization=None),
        None,
        FakeCard(name="3g", uuid="MIG-c", total=40 * GIB, compute=[FakeProcess(9, GIB)]),
    ]
    readings = NvmlDevices(FakeNvml(FakeCard(temperature=55, mig=parts))).read()
    assert [(each.device.id, each.device.uuid) for each in readings] == [
        ("cuda:0/mig:0", "MIG-a"),
        ("cuda:0/mig:2", "MIG-c"),
    ]
    assert [each.temperature_c for each in readings] == [55.0, 55.0]
    assert readings[0].utilization_ratio is None
    assert readings[1].processes == {9: GIB}


def faults(reading: DeviceReading) -> list[tuple[str, bool]]:
    return [(fault.reason, fault.critical) for fault in reading.faults]


def test_errors_of_the_hardware_are_told_from_errors_of_programs() -> None:
    first, second = FakeCard(), FakeCard()
    library = FakeNvml(first, second)
    source = NvmlDevices(library)
    assert [faults(reading) for reading in source.read()] == [[], []]
    assert library.registered == [first, second]
    first.events.extend([FakeEvent(8, 31), FakeEvent(2, 0)])
    second.events.extend([FakeEvent(8, 79), FakeEvent(8, 9999)])
    for _ in range(2):
        assert [faults(reading) for reading in source.read()] == [
            [("Xid31", False), ("Xid48", True)],
            [("Xid79", True), ("Xid9999", False)],
        ]


@pytest.mark.parametrize("code", [48, 63, 64, 74, 79, 94, 95])
def test_whoever_has_to_act_is_told_what_to_do(code: int) -> None:
    (fault,) = only(NvmlDevices(FakeNvml(FakeCard(events=deque([FakeEvent(8, code)]))))).faults
    assert (fault.reason, fault.critical) == (f"Xid{code}", True)
    assert fault.problem.startswith(f"XID {code}: ")
    assert "uncordon" in fault.advice


def test_an_error_among_many_others_is_not_missed_and_one_that_comes_again_is_new() -> None:
    card = FakeCard()
    source = NvmlDevices(FakeNvml(card))
    card.events.extend([FakeEvent(8, 48), *(FakeEvent(8, 45) for _ in range(70))])
    before = only(source).faults
    assert [fault.reason for fault in before] == ["Xid48", "Xid45"]
    card.events.append(FakeEvent(8, 48))
    after = only(source).faults
    assert [fault.reason for fault in after] == ["Xid45", "Xid48"]
    assert before[1].number < after[1].number


def test_a_card_that_falls_off_the_bus_says_so_before_it_is_lost() -> None:
    broken, well = FakeCard(), FakeCard()
    source = NvmlDevices(FakeNvml(broken, well))
    source.read()
    broken.events.append(FakeEvent(8, 79))
    broken.fails = 15
    first, second = source.read()
    assert (first.lost, faults(first)) == (True, [("Xid79", True)])
    assert (second.lost, faults(second)) == (False, [])


def test_an_error_of_one_instance_is_not_that_of_another() -> None:
    parts: list[FakeCard | None] = [FakeCard(instance=7), FakeCard(instance=9), FakeCard(instance=None)]
    card = FakeCard(mig=parts)
    source = NvmlDevices(FakeNvml(card))
    card.events.extend([FakeEvent(8, 94, gpuInstanceId=7), FakeEvent(8, 74)])
    told = [[reason for reason, _ in faults(reading)] for reading in source.read()]
    assert told == [["Xid94", "Xid74"], ["Xid74"], ["Xid94", "Xid74"]]


def test_numbers_of_a_namespace_further_in_are_found_here(tmp_path: Path) -> None:
    for pid, line in {"50": "NSpid:\t50\t7", "60": "NSpid:\t60\t8", "70": "NSpid:\t70\t8", "3": "NSpid:\t3"}.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "status").write_text(f"Name:\tx\n{line}\n")
    (tmp_path / "meminfo").write_text("")
    card = FakeCard(compute=[FakeProcess(pid, GIB) for pid in (3, 7, 8, 9)])
    reading = only(NvmlDevices(FakeNvml(card), proc=tmp_path))
    assert set(reading.processes) == {3, 50, 8, 9}


async def test_a_driver_that_hangs_costs_its_devices_and_nobody_s_time() -> None:
    library = FakeNvml(FakeCard())
    monitor = DeviceMonitor(
        [NvmlDevices(library)], store=MemoryStore(), clock=ManualClock(), poll_interval_s=3600, read_timeout_s=0.2
    )
    await monitor.start()
    try:
        assert monitor.states() == {"cuda:0": DeviceState.ONLINE}
        library.gate.clear()
        await monitor.refresh()
        assert monitor.states() == {"cuda:0": DeviceState.LOST}
    finally:
        library.gate.set()
        await monitor.stop()
    assert library.opened == 0


def test_closing_gives_the_driver_back_once() -> None:
    library = FakeNvml(FakeCard())
    source = NvmlDevices(library)
    source.close()
    source.read()
    assert (library.opened, len(library.registered)) == (1, 1)
    source.close()
    source.close()
    assert (library.opened, library.registered) == (0, [])


def test_the_fake_and_the_real_library_are_called_alike() -> None:
    real = importlib.import_module("pynvml")
    used = [name for name in vars(Nvml) if name.startswith("nvml")]
    assert len(used) > 15
    for name in used:
        wanted = list(inspect.signature(getattr(real, name)).parameters.values())
        given = list(inspect.signature(getattr(FakeNvml, name)).parameters.values())[1:]
        assert len(given) == len(wanted), name
        assert [each.default for each in given] == [each.default for each in wanted], name
    for theirs, ours in (("c_nvmlEventData_t", FakeEvent), ("c_nvmlMemory_v2_t", FakeMemory)):
        there = {name for name, _ in getattr(real, theirs)._fields_}
        assert {each.name for each in fields(ours)} <= there
    assert issubclass(real.NVMLError, Exception)
    assert real.NVMLError(real.NVML_ERROR_GPU_IS_LOST).value == 15


def test_the_real_library_can_be_asked_on_any_machine() -> None:
    source = NvmlDevices()
    try:
        assert all(reading.device.kind == "cuda" for reading in source.read())
    finally:
        source.close()
