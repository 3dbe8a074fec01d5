"""What the system did for want of memory."""

from contextlib import suppress
from pathlib import Path

_COUNTS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))
"""Of this control group alone, where it has one to itself; else of the whole machine."""


def kills() -> int:
    """How many processes it killed so far, 0 where it does not tell."""
    for path in _COUNTS:
        with suppress(OSError, ValueError):
            counts = dict(line.split() for line in path.read_text().splitlines())
            return int(counts.get("oom_kill", 0))
    return 0
