"""How much of the disk jobs may take, and who ends when it is too much."""

from pathlib import Path

import pytest

from moc.kernel.errors import NoCapacity
from moc.learning.disk import DiskQuota

LIMIT = 2**20


def grow(folder: Path, size: int) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "data").open("ab") as file:
        file.write(b"x" * size)


def test_room_is_what_is_left(tmp_path: Path) -> None:
    quota = DiskQuota([tmp_path], limit_bytes=LIMIT)
    quota.check()
    grow(tmp_path / "a", LIMIT)
    quota.adjust(limit_bytes=LIMIT)

    assert quota.room() == 0
    with pytest.raises(NoCapacity, match=r"learning\.disk_quota allows 1MiB"):
        quota.check()


def test_the_one_that_grew_most_since_it_began_ends_and_no_other(tmp_path: Path) -> None:
    old, quick, slow = (tmp_path / name for name in ("old", "quick", "slow"))
    quota = DiskQuota([tmp_path], limit_bytes=LIMIT)
    grow(old, LIMIT // 2)
    for folder in (old, quick, slow):
        quota.begin(folder)
    assert quota.culprit() is None
    grow(slow, LIMIT // 8)
    grow(quick, LIMIT // 2)
    quota.adjust(limit_bytes=LIMIT)
    assert quota.culprit() == quick
    grow(slow, LIMIT)
    assert quota.culprit() == quick, "one at a time"

    quota.end(quick)
    assert quota.culprit() is None, "what it left is no reason to end another"
    grow(slow, LIMIT)
    assert quota.culprit() == slow


def test_nobody_ends_who_did_not_grow(tmp_path: Path) -> None:
    grow(tmp_path / "a", LIMIT)
    quota = DiskQuota([tmp_path], limit_bytes=LIMIT)
    quota.begin(tmp_path / "a")

    assert quota.culprit() is None
