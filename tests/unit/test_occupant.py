"""The processes behind a lease."""

import subprocess
from collections.abc import Iterator

import psutil
import pytest

from moc.cluster.holder import Holder
from moc.gpu.occupant import occupant, survivors

FAMILY = "sleep 600 & echo $!; wait"


@pytest.fixture
def family() -> "Iterator[tuple[subprocess.Popen[bytes], int]]":
    """A process, and the pid of the one it started."""
    with subprocess.Popen(["sh", "-c", FAMILY], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            yield parent, child
        finally:
            parent.kill()
            psutil.Process(child).kill()


def pids(tree: frozenset[Holder]) -> set[int]:
    return {member.pid for member in tree}


def test_what_a_process_started_stays_of_its_tree_when_it_has_ended(
    family: "tuple[subprocess.Popen[bytes], int]",
) -> None:
    parent, child = family
    root = frozenset({occupant(parent.pid)})
    trees = survivors({"a": root, "b": frozenset()})
    assert (pids(trees["a"]), trees["b"]) == ({parent.pid, child}, frozenset())
    assert pids(survivors({"a": trees["a"]})["a"]) == {parent.pid, child}
    parent.kill()
    parent.wait()
    assert pids(survivors(trees)["a"]) == {child}
    assert survivors({"a": root})["a"] == frozenset()
