"""Process numbers that mean another number here."""

import contextlib
from collections.abc import Collection
from pathlib import Path


def pids_here(pids: Collection[int], proc: Path) -> dict[int, int]:
    """For those of `pids` that no process bears here: the process that bears it in a namespace further in.

    A driver may number processes as their container does. A number that several such processes bear is
    left out, and so is one that nobody visible bears: it belongs to a process outside this container.
    """
    strange = {pid for pid in pids if not (proc / str(pid)).exists()}
    found: dict[int, list[int]] = {}
    for folder in proc.iterdir() if strange else ():
        if folder.name.isdecimal():
            for pid in strange.intersection(_numbers(folder / "status")):
                found.setdefault(pid, []).append(int(folder.name))
    return {pid: bearers[0] for pid, bearers in found.items() if len(bearers) == 1}


def _numbers(status: Path) -> list[int]:
    """A process's numbers from the namespace of /proc inwards; none when it is gone."""
    with contextlib.suppress(OSError):
        for line in status.read_text(errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return [int(number) for number in line.split()[1:]]
    return []
