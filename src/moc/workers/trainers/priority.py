"""What the programs of jobs leave to those who serve: the processor first of all."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

NICENESS = 19
GPU_SHARE_PCT = 50
"""Of the GPU's multiprocessors, where a daemon of CUDA MPS divides them."""


def lower_priority() -> list[str]:
    """Run only when nobody else wants to, and so all this process starts; what the system refused of that.

    The kernel takes the disk's idle class from `SCHED_IDLE`, too.
    """
    refused = []
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    except OSError as error:
        refused.append(f"niceness {NICENESS}: {error}")
    if hasattr(os, "SCHED_IDLE"):
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        except OSError as error:
            refused.append(f"SCHED_IDLE: {error}")
    return refused


def thread_limit(configured: int | None) -> int:
    """How many threads a program computes with: as configured, else half of the cores this process may use."""
    if configured is not None:
        return configured
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


def gpu_share(gpus: Sequence[str]) -> dict[str, str]:
    """The environment that leaves part of its GPUs to others; nothing where no MPS daemon can see to it."""
    pipe = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))  # noqa: S108 - where CUDA has it
    with contextlib.suppress(OSError):
        if gpus and (pipe / "control").exists():
            return {"CUDA_MPS_PIPE_DIRECTORY": str(pipe), "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(GPU_SHARE_PCT)}
    return {}
