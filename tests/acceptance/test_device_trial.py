"""The trial of devices on main memory; it is the same on a GPU (`make test-gpu`)."""

import os
from collections.abc import Collection, Iterator

import psutil
import pytest

from tests.device_trial import GIB, MIB, TAKE_MAIN_MEMORY, DeviceTrial, Figures, Ground
from tests.llama import made

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(300)]


def held(pids: Collection[int]) -> int:
    """What processes hold, pages that several share divided among them."""
    return sum(psutil.Process(pid).memory_full_info().pss for pid in pids)


def used() -> int:
    """Main memory in use by anybody."""
    memory = psutil.virtual_memory()
    return int(memory.total - memory.available)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    llama = made(tmp_path_factory.mktemp("llama"), width=512, layers=4, dtype="float32")
    return Ground(
        device="host",
        kind="host",
        llama=llama,
        budget_bytes=800 * MIB,
        taken_bytes=128 * MIB,
        eaten_bytes=min(4 * GIB, psutil.virtual_memory().available // 4),
        take=TAKE_MAIN_MEMORY,
        visible=str(os.environ.get("CUDA_VISIBLE_DEVICES")),
        total_bytes=psutil.virtual_memory().total,
        held=held,
        used=used,
        drift_bytes=2 * GIB,
        share_off=0.35,
    )


@pytest.fixture(scope="module")
def figures() -> Iterator[Figures]:
    noted = Figures("Main memory")
    yield noted
    noted.write()


class TestMainMemory(DeviceTrial):
    pass
