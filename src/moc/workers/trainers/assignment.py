"""What a program of ours was started to do, and the way it ends."""

import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from moc.kernel.errors import MocError
from moc.learning.job import Reason
from moc.learning.ports import STOPPED_STATUS
from moc.workers.trainers.report import Report, Stop


class Failure(Exception):
    """A program knows why it fails."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Away(Exception):
    """What a program asks for cannot be had now: another attempt goes on, told where the coordinator is then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One attempt at a job: `folder` is the job's own, `task` what docs/reference/job-programs.md says of its type."""

    job: str
    attempt: int
    folder: Path
    checkpoints: Path
    output: Path
    task: dict[str, Any]
    seed: int
    device: str
    memory_bytes: int
    threads: int
    report: Report
    stop: Stop

    @classmethod
    def read(cls) -> Self:
        """The one in the environment; SIGTERM is heard from now on."""
        given = os.environ
        return cls(
            job=given["MOC_JOB_ID"],
            attempt=int(given["MOC_JOB_ATTEMPT"]),
            folder=Path(given["MOC_JOB_FOLDER"]),
            checkpoints=Path(given["MOC_CHECKPOINT_FOLDER"]),
            output=Path(given["MOC_OUTPUT_FOLDER"]),
            task=json.loads(Path(given["MOC_TASK_FILE"]).read_bytes()),
            seed=int(given["MOC_SEED"]),
            device=given["MOC_DEVICE"],
            memory_bytes=int(given["MOC_MEMORY_BYTES"]),
            threads=int(given["MOC_THREADS"]),
            report=Report(given["MOC_PROGRESS_FILE"]),
            stop=Stop(),
        )


Work = Callable[[Assignment], bool]
"""Does what is assigned; whether it is done, rather than stopped with a checkpoint."""


def carry_out(work: Work) -> None:
    """Do it and end this process: with status 0 when it is done, 75 when it is to go on, 1 having told the error."""
    assignment = Assignment.read()
    try:
        status = 0 if work(assignment) else STOPPED_STATUS
    except Away as error:
        print(error, file=sys.stderr)  # the end of the log is what is told of a job that got no further
        assignment.report.message(f"what it asks for cannot be had now: {error}", level="warn")
        status = STOPPED_STATUS
    except Exception as error:
        reason, message = _why(error)
        if reason is Reason.PROGRAM_FAILED:
            import traceback  # only a failing program pays for it

            traceback.print_exc()
        assignment.report.error(reason, message)
        status = 1
    sys.exit(status)


def _why(error: Exception) -> tuple[Reason, str]:
    if isinstance(error, Failure):
        return error.reason, error.message
    if isinstance(error, MocError):
        return Reason.INVALID, error.message
    if isinstance(error, MemoryError):
        return Reason.OUT_OF_MEMORY, "there was not enough main memory"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Reason.DISK_FULL, f"there was no room left on the disk: {error}"
    if isinstance(error, ModuleNotFoundError):
        return Reason.INVALID, f"{error.name} is missing: pip install 'modelops-coordinator[learning]'"
    return Reason.PROGRAM_FAILED, f"{type(error).__name__}: {error}"
