"""A script job for tests with a real coordinator: it counts, and never twice at once."""

import sys
import textwrap
from pathlib import Path
from typing import Any

from tests.coordinator import Coordinator, eventually

COUNTING = textwrap.dedent(
    """
    import fcntl, json, os, pathlib, signal, sys, time

    total, pause_s = int(sys.argv[1]), float(sys.argv[2])
    checkpoints = pathlib.Path(os.environ["MOC_CHECKPOINT_FOLDER"])
    attempt = os.environ["MOC_JOB_ATTEMPT"]
    journal = open(os.path.join(os.environ["MOC_JOB_FOLDER"], "journal"), "a", buffering=1)
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))


    def tell(**line):
        with open(os.environ["MOC_PROGRESS_FILE"], "ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\\n")


    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        journal.write("twice\\n")
        sys.exit(1)
    saved = checkpoints / "count"
    step = int(saved.read_text()) if saved.exists() else 0
    while step < total:
        if stopping:
            sys.exit(75)
        step += 1
        aside = checkpoints / ".new"
        aside.write_text(str(step))
        aside.rename(saved)
        journal.write(f"{attempt} {step}\\n")
        if step % 5 == 0:
            tell(type="metrics", step=step, total_steps=total, metrics={"train_loss": 1 / step})
        tell(type="message", message=f"{attempt} {step}")
        if step % 10 == 0:
            tell(type="checkpoint", name="count", step=step)
        time.sleep(pause_s)
    tell(type="result", metrics={"count": step})
    """
)
"""`counting.py STEPS PAUSE_S`: saves every step, goes on from the last, and ends with 75 when it is told to.

Within eight seconds it tells of 50 steps a second no more than all of which is heard.
"""

TRUSTED = {"trusted_commands": [sys.executable]}


def submit_counting(coordinator: Coordinator, steps: int, pause_s: float, **wish: Any) -> str:
    """A job that counts to `steps`; its id."""
    program = coordinator.data_dir.parent / "counting.py"
    program.write_text(COUNTING)
    command = [sys.executable, str(program), str(steps), str(pause_s)]
    body = {"type": "script", "memory": "64MiB", "options": {"command": command}, **wish}
    answer = coordinator.post("/api/v1/jobs", body)
    assert answer.status_code in {200, 201, 202}, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def shown(coordinator: Coordinator, job_id: str) -> dict[str, Any]:
    """The job as it is now."""
    job: dict[str, Any] = coordinator.get(f"/api/v1/jobs/{job_id}")
    return job


def reaches(coordinator: Coordinator, job_id: str, *states: str, timeout_s: float = 30) -> dict[str, Any]:
    """The job once it is in one of these states."""

    def look() -> dict[str, Any]:
        job = shown(coordinator, job_id)
        assert job["status"] in states, job
        return job

    return eventually(look, timeout_s=timeout_s, what=f"{job_id} to be {' or '.join(states)}")


def folder_of(coordinator: Coordinator, job_id: str) -> Path:
    """Where its files are."""
    return coordinator.data_dir / "jobs" / job_id
