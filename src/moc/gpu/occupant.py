"""The processes behind a lease: one that was named, and all it started."""

import contextlib
from collections.abc import Set

import psutil

from moc.cluster.holder import Holder, boot_id
from moc.kernel.errors import InvalidRequest


def occupant(pid: int) -> Holder:
    """The process `pid` of this host; InvalidRequest when there is none."""
    try:
        found = Holder.of(pid)
    except (psutil.Error, OSError):
        raise InvalidRequest(f"no process of this host has the pid {pid}; leave it out for one elsewhere") from None
    if found.is_dead():
        raise InvalidRequest(f"the process {pid} has ended; name one that runs")
    return found


def remembered(name: str) -> frozenset[Holder]:
    """The process a record names, as the tree it was last seen with."""
    found = Holder.parse(name)
    return frozenset() if found is None else frozenset({found})


def living(tree: Set[Holder]) -> frozenset[Holder]:
    """Those of a tree that still run, with all they started since; blocks for as long as the system takes."""
    found = {member for member in tree if not _has_ended(member)}
    for member in list(found):
        with contextlib.suppress(psutil.Error, OSError):
            for child in psutil.Process(member.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error, OSError):
                    found.add(Holder.of(child.pid))
    return frozenset(found)


def _has_ended(process: Holder) -> bool:
    here = boot_id()
    return process.is_dead() or (process.boot != here and bool(process.boot) and bool(here))
