"""What libraries say when a training fails, as they say it, and what is made of that."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from moc.kernel.errors import InvalidRequest
from moc.learning.job import Reason
from moc.workers.trainers.assignment import Failure
from moc.workers.trainers.mishap import understood


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A file that never has room for another byte; through a link, lest a library puts a file in its place."""
    if not Path("/dev/full").is_char_device():
        pytest.skip("needs a device that is always full")
    link = tmp_path / "file"
    link.symlink_to("/dev/full")
    return link


def test_a_full_disk_is_known_when_torch_tells_of_it(full: Path) -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.save({"weights": torch.zeros(100_000)}, full)
    found = understood(raised.value)
    assert isinstance(found, OSError)
    assert found.errno == errno.ENOSPC


def test_a_full_disk_is_known_when_safetensors_tells_of_it() -> None:
    told = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    found = understood(told)
    assert isinstance(found, OSError)
    assert found.errno == errno.ENOSPC


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_too_little_memory_is_told_with_advice(error: Exception) -> None:
    found = understood(error)
    assert isinstance(found, Failure)
    assert found.reason is Reason.OUT_OF_MEMORY
    assert "batch_size" in found.message


def test_an_allocation_that_main_memory_refuses_is_too_little_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert isinstance(understood(raised.value), Failure)


def test_what_is_known_or_unknown_stays_as_it_is() -> None:
    for error in (InvalidRequest("no"), ValueError("what?"), OSError(errno.EIO, "broken")):
        assert understood(error) is error
