"""What the system did for want of memory."""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LOOKS_KEPT = 20
"""At how many looks before its end a process may have been killed: one that was takes some time to be seen dead."""

_COUNTS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))
"""Of this control group alone, where it has one to itself; else of the whole machine."""


def kills() -> int:
    """How many processes it killed so far, 0 where it does not tell."""
    for path in _COUNTS:
        with suppress(OSError, ValueError):
            counts = dict(line.split() for line in path.read_text().splitlines())
            return int(counts.get("oom_kill", 0))
    return 0


class Starvation:
    """Whether the system killed processes shortly before a program ended; `count` is how many it did so far.

    That somebody else was killed hours ago says nothing of it.
    """

    def __init__(self, count: Callable[[], int] = kills) -> None:
        self._count = count
        self._counts = deque([count()], maxlen=LOOKS_KEPT)

    def lives(self) -> None:
        """The program was seen alive."""
        self._counts.append(self._count())

    def struck(self) -> bool:
        """Whether it killed any since."""
        return self._count() > self._counts[0]
