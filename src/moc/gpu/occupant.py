"""The processes behind a lease: one that was named, and all it started."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set

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


def survivors(trees: Mapping[str, Set[Holder]]) -> dict[str, frozenset[Holder]]:
    """Those of each tree that still run, with all they started since; blocks for as long as the system takes."""
    started: dict[int, list[int]] = defaultdict(list)
    for process in psutil.process_iter(["ppid"]):
        started[process.info["ppid"] or 0].append(process.pid)
    return {name: frozenset(_living(tree, started)) for name, tree in trees.items()}


def _living(tree: Set[Holder], started: Mapping[int, Sequence[int]]) -> Iterator[Holder]:
    roots = [member for member in tree if not _has_ended(member)]
    yield from roots
    seen = {member.pid for member in roots}
    parents = [member.pid for member in roots]
    while parents:
        for pid in started.get(parents.pop(), ()):
            if pid in seen:
                continue
            seen.add(pid)
            with contextlib.suppress(psutil.Error, OSError):
                yield Holder.of(pid)
                parents.append(pid)


def _has_ended(process: Holder) -> bool:
    here = boot_id()
    return process.is_dead() or (process.boot != here and bool(process.boot) and bool(here))
