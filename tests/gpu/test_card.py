"""The trial of devices on the first NVIDIA GPU of this machine, with `nvidia-smi` as the witness."""

import subprocess
from collections.abc import Collection, Iterator

import pytest

from moc.hardware.nvml import NvmlDevices
from tests.coordinator import eventually
from tests.device_trial import GIB, MIB, TAKE_A_CARD_S_MEMORY, DeviceTrial, Figures, Ground, Take
from tests.llama import made
from tools.gpu_environment import lacking

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]


def smi(query: str) -> list[list[str]]:
    """What `nvidia-smi` answers about the first card, as rows of cells; sizes are in MiB."""
    command = ["nvidia-smi", "-i", "0", f"--query-{query}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if line]


def held(pids: Collection[int]) -> int:
    """What processes hold of the card."""
    return sum(int(size) * MIB for pid, size in smi("compute-apps=pid,used_memory") if int(pid) in pids)


def used() -> int:
    """What is in use on the card by anybody."""
    ((size,),) = smi("gpu=memory.used")
    return int(size) * MIB


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    if reason := lacking():
        pytest.skip(reason)
    llama = made(tmp_path_factory.mktemp("llama"), width=2048, layers=24, dtype="bfloat16")
    ((total, uuid),) = smi("gpu=memory.total,uuid")
    return Ground(
        device="cuda:0",
        kind="cuda",
        llama=llama,
        budget_bytes=5 * GIB,
        taken_bytes=512 * MIB,
        eaten_bytes=2 * GIB,
        take=TAKE_A_CARD_S_MEMORY,
        visible=uuid,
        total_bytes=int(total) * MIB,
        held=held,
        used=used,
        drift_bytes=64 * MIB,
        share_off=0.1,
    )


@pytest.fixture(scope="module")
def figures(ground: Ground) -> Iterator[Figures]:
    ((name, driver),) = smi("gpu=name,driver_version")
    noted = Figures(f"{name}, driver {driver}")
    yield noted
    noted.write()


class TestCard(DeviceTrial):
    def test_processes_are_those_the_driver_tells_of(self, ground: Ground, taken: Take) -> None:
        program = taken(ground.taken_bytes)
        (pid,) = program.pids()
        seen = {int(each): int(size) * MIB for each, size in smi("compute-apps=pid,used_memory")}
        assert pid in seen, f"the driver does not number processes as this machine does: {seen}"
        source = NvmlDevices()
        try:
            reading = source.read()[0]
        finally:
            source.close()
        assert abs(reading.processes[pid] - seen[pid]) <= MIB
        assert seen[pid] > ground.taken_bytes
        program.end()
        eventually(lambda: held([pid]) == 0, what="the program's memory to be free")
