"""Bases kept: made anew when they are not what was made, and deleted when others are used instead."""

import fcntl
from pathlib import Path

import pytest

from moc.learning.job import Reason
from moc.workers.trainers.assignment import Failure
from moc.workers.trainers.base_cache import KEPT, check_room, held
from moc.workers.trainers.checkpoints import flaw, seal
from tests.gguf_models import network_of, tiny_gguf


def _base(path: Path, name: str = "0") -> dict[str, str]:
    return {"runtime": "llama_cpp", "path": str(path), "sha256": name}


def _names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_a_base_that_has_changed_is_made_anew(tmp_path: Path) -> None:
    base, cache = _base(tiny_gguf(tmp_path / "tiny")), tmp_path / "cache"
    with held(base, cache) as folder:
        before = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(before[:-400] + bytes(400))
    with held(base, cache) as again:
        assert (again / "model.safetensors").read_bytes() == before
    (folder / "tokenizer.json").unlink()
    with held(base, cache) as again:
        assert flaw(again) is None


def test_the_bases_used_last_stay_and_what_the_dead_began_goes(tmp_path: Path) -> None:
    path, cache = tiny_gguf(tmp_path / "tiny"), tmp_path / "cache"
    for name in ("begun", "busy"):
        (cache / f".new-{name}").mkdir(parents=True)
    for number in range(KEPT + 1):
        folder = cache / str(number)
        folder.mkdir()
        seal(folder)
    with (cache / "busy.lock").open("w") as busy, (cache / "1.lock").open("w") as read:
        fcntl.flock(busy, fcntl.LOCK_EX)
        fcntl.flock(read, fcntl.LOCK_SH)
        with held(_base(path), cache), held(_base(path, "new"), cache):
            assert _names(cache) == [".new-busy", "0", "1", "3", "4", "new"]
    with held(_base(path, "new"), cache):
        assert _names(cache) == ["0", "3", "4", "new"]


def test_a_base_that_main_memory_has_no_room_for_is_refused_before_it_is_made(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny")
    weights = network_of(path).num_parameters()
    check_room(path, 10 * weights)
    with pytest.raises(Failure, match=r"full weights of model.gguf takes .* of main memory.* are free") as refused:
        check_room(path, 4 * weights)
    assert refused.value.reason is Reason.PROGRAM_FAILED
