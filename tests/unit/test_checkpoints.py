"""Checkpoints: whole or refused, bounded, and never the older one lost before the newer is there."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moc.workers.trainers.checkpoints import MANIFEST, Checkpoints

DIE_AT = """
import os, signal, sys
from pathlib import Path
from moc.workers.trainers.checkpoints import Checkpoints

folder, limit, seen = Path(sys.argv[1]), int(sys.argv[2]), 0

def count(event, arguments):
    global seen
    if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir", "os.listdir", "shutil.rmtree"):
        seen += 1
        if seen == limit:
            os.kill(os.getpid(), signal.SIGKILL)

def build(aside):
    (aside / "below").mkdir()
    (aside / "weights").write_bytes(b"2" * 5000)
    (aside / "below" / "state").write_bytes(b"2")

checkpoints = Checkpoints(folder, kept=1, warn=print)
sys.addaudithook(count)
checkpoints.save(2, build)
print(seen)
"""
"""Saves the second checkpoint, and is killed at the step of that which it is told."""


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def checkpoints(tmp_path: Path, warnings: list[str]) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", kept=2, warn=warnings.append)


def _save(checkpoints: Checkpoints, step: int, *, best: int | None = None) -> Path:
    def build(aside: Path) -> None:
        (aside / "below").mkdir()
        (aside / "weights").write_bytes(b"%d" % step * 1000)
        (aside / "below" / "state").write_bytes(b"%d" % step)

    return checkpoints.save(step, build, best=best)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_is_the_last_by_number(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest() is None
    made = [_save(checkpoints, step) for step in (9, 10)]
    assert checkpoints.newest() == made[1]
    assert (made[1] / "below" / "state").read_bytes() == b"10"


def test_only_so_many_are_kept_and_the_best(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        _save(checkpoints, step, best=1)
    assert _names(tmp_path / "checkpoints") == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    _save(checkpoints, 5, best=5)
    assert _names(tmp_path / "checkpoints") == ["checkpoint-4", "checkpoint-5"]


def test_a_step_saved_again_is_replaced(checkpoints: Checkpoints) -> None:
    _save(checkpoints, 3)

    def build(aside: Path) -> None:
        (aside / "weights").write_bytes(b"new")

    assert (checkpoints.save(3, build) / "weights").read_bytes() == b"new"


def test_what_could_not_be_built_is_no_checkpoint(checkpoints: Checkpoints) -> None:
    before = _save(checkpoints, 1)

    def build(aside: Path) -> None:
        (aside / "weights").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoints.save(2, build)
    assert checkpoints.newest() == before


def test_what_is_no_folder_is_cleared_too(checkpoints: Checkpoints, tmp_path: Path) -> None:
    left = tmp_path / ".new-9"
    for make in (left.touch, lambda: left.symlink_to(tmp_path)):
        make()
        assert Checkpoints(tmp_path, kept=2, warn=print).newest() is None
        assert not os.path.lexists(left)


def _truncate(folder: Path) -> None:
    with (folder / "weights").open("r+b") as file:
        file.truncate(999)


def _flip(folder: Path) -> None:
    with (folder / "weights").open("r+b") as file:
        file.seek(500)
        file.write(b"\x00")


def _lose(folder: Path) -> None:
    (folder / "below" / "state").unlink()


def _break(folder: Path) -> None:
    (folder / "weights").unlink()
    (folder / "weights").symlink_to("/proc/self/mem")  # a file that cannot be read: EIO


def _add(folder: Path) -> None:
    (folder / "extra").write_bytes(b"x")


def _forget(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def _garble(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b'{"weights": ')


def _list(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps(["weights"]))


@pytest.mark.parametrize("harm", [_truncate, _flip, _lose, _break, _add, _forget, _garble, _list])
def test_a_torn_one_is_refused_and_the_one_before_it_taken(
    harm: Callable[[Path], None], checkpoints: Checkpoints, warnings: list[str], tmp_path: Path
) -> None:
    before, torn = _save(checkpoints, 1), _save(checkpoints, 2)
    harm(torn)
    assert checkpoints.newest() == before
    assert warnings[0].startswith("checkpoint-2 ")
    assert _names(tmp_path / "checkpoints") == ["checkpoint-1"]


def test_with_all_torn_there_is_none(checkpoints: Checkpoints) -> None:
    for step in (1, 2):
        _truncate(_save(checkpoints, step))
    assert checkpoints.newest() is None


def test_killed_at_any_step_of_saving_one_good_checkpoint_is_left(tmp_path: Path) -> None:
    killed = 0
    while True:
        killed += 1
        folder = tmp_path / str(killed)
        _save(Checkpoints(folder, kept=1, warn=print), 1)
        done = subprocess.run(
            [sys.executable, "-c", DIE_AT, str(folder), str(killed)], capture_output=True, text=True, timeout=60
        )
        found = Checkpoints(folder, kept=1, warn=print).newest()
        assert found is not None, f"none is left after the kill at {killed}"
        step = (found / "below" / "state").read_bytes()
        assert (found / "weights").read_bytes() == (b"2" * 5000 if step == b"2" else b"1" * 1000)
        if done.returncode == 0:
            assert step == b"2"
            break
        assert done.returncode == -9, done.stderr
        shutil.rmtree(folder)
    assert killed > 10
