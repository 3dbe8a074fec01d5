"""Why a worker failed, as far as its log tells."""

import re
from pathlib import Path

from moc.kernel.errors import LoadFailed
from moc.models.ports import Launch
from moc.workers.folder import Folder

_TELLING = re.compile(
    r"error|fail|invalid|unable|cannot|exception|unknown|unsupported|not found|no such", re.IGNORECASE
)
_OUT_OF_MEMORY = re.compile(r"out of memory|(failed to|cannot) allocate|bad_alloc", re.IGNORECASE)
_CONSEQUENCE = re.compile(r"exiting due to|failed to load model|could not load model", re.IGNORECASE)


def explained(failure: LoadFailed, folder: Folder, launch: Launch) -> LoadFailed:
    """A failure to load with what the engine said before."""
    lines = folder.log_tail()
    message, reason, found = failure.message, failure.reason, telling(lines)
    if reason == "load_failed" and found and found not in message:
        message = f"{message}: {found.replace(launch.path, Path(launch.path).name)}"
    if reason == "load_failed" and _OUT_OF_MEMORY.search(message):
        reason = "out_of_memory"
    return LoadFailed(message, reason=reason, details={**failure.details, "log": lines})


def telling(lines: list[str]) -> str:
    """The line that most likely says what went wrong: the last that sounds like it, else the last."""
    filled = [line.strip() for line in lines if line.strip()]
    told = (line for line in reversed(filled) if _TELLING.search(line) and not _CONSEQUENCE.search(line))
    return next(told, filled[-1] if filled else "")[:500]
