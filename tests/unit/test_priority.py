"""What programs of jobs leave to others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moc.workers.trainers.priority import GPU_SHARE_PCT, gpu_share, thread_limit

SHOW = """
import os, subprocess, sys
from moc.workers.trainers.priority import lower_priority
refused = lower_priority()
shown = "import os; print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0) == os.SCHED_IDLE)"
print(refused, subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True).stdout.strip())
"""


def test_a_program_and_all_it_starts_run_when_nobody_else_wants_to() -> None:
    said = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[] 19 True"


def test_half_of_the_cores_unless_somebody_says_so() -> None:
    assert thread_limit(7) == 7
    assert thread_limit(None) == max(1, len(os.sched_getaffinity(0)) // 2)


def test_a_gpu_is_shared_where_a_daemon_sees_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert gpu_share(["GPU-1"]) == {}
    (tmp_path / "control").touch()
    assert gpu_share([]) == {}
    assert gpu_share(["GPU-1"])["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == str(GPU_SHARE_PCT)
