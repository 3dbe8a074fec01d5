"""The disk of the coordinator is full, for real and for longer than a lease lasts, while jobs run and models answer."""

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from moc.kernel.records import STORE_FULL
from moc.store.database import unavailable
from tests.coordinator import Coordinator, eventually
from tests.jobs import TRUSTED, reaches, submit_counting
from tests.memory import MIB
from tests.models import smollm2_path

DISK_BYTES = 64 * MIB
OUTAGE_S = 35
"""Longer than the lease of a job lasts unless it is renewed."""

MOUNTED = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
OF_ITS_OWN = f'mount -t tmpfs -o size={DISK_BYTES} none "$0" && exec "$@"'
PATIENT = """
import json, os, pathlib, time
home = pathlib.Path(os.environ["MOC_JOB_FOLDER"])
while not (home / "enough").exists():
    time.sleep(0.1)
with open(os.environ["MOC_PROGRESS_FILE"], "a") as file:
    file.write(json.dumps({"type": "result", "metrics": {"waited": 1}}) + "\\n")
"""
CHAT = {"model": "smollm2", "max_tokens": 4, "messages": [{"role": "user", "content": "Name three rivers."}]}


class OnItsOwnDisk(Coordinator):
    """Its data folder is a small file system that only it and its children see."""

    def __init__(self, data_dir: Path, config: Path) -> None:
        arguments = ["--config", str(config)]
        super().__init__(data_dir, arguments=arguments, prefix=[*MOUNTED, OF_ITS_OWN, str(data_dir)])

    @property
    def inside(self) -> Path:
        """The data folder as it sees it."""
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/root{self.data_dir}")

    @property
    def key(self) -> str:
        return (self.inside / "admin.key").read_text().strip()


def can_mount() -> bool:
    """Whether this machine lets us have a file system of our own."""
    if shutil.which("unshare") is None:
        return False
    command = [*MOUNTED, "mount -t tmpfs none /mnt"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not can_mount(), reason="needs a file system of its own (unshare --mount)"),
]


@pytest.fixture
def coordinator(home: Path, tmp_path: Path) -> Iterator[OnItsOwnDisk]:
    config = tmp_path / "moc.yaml"
    model = {"runtime": "llama_cpp", "source": f"file:{smollm2_path()}"}
    learning = {"max_parallel_jobs": 2}
    devices = [{"id": "host", "kind": "host"}]
    document = {"security": TRUSTED, "devices": devices, "models": {"smollm2": model}, "learning": learning}
    config.write_text(yaml.safe_dump(document))
    coordinator = OnItsOwnDisk(home, config)
    try:
        coordinator.start()
        yield coordinator
    finally:
        print(coordinator.output[-6000:])  # shown when the test fails
        coordinator.close()


def fill(disk: Path) -> Path:
    """Write until nothing more fits."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while file.write(b"x" * size):
                    continue
            except OSError:
                continue
    return path


def answers(coordinator: Coordinator) -> bool:
    return coordinator.post("/v1/chat/completions", CHAT).status_code == 200


def refuses(coordinator: Coordinator) -> bool:
    """Whether it says that it can keep nothing."""
    answer = coordinator.post("/api/v1/jobs", {"type": "script", "options": {"command": [sys.executable, "-c", ""]}})
    return answer.status_code == 503 and answer.json()["error"]["code"] == "store_unavailable"


def reason_of_failed_writing(coordinator: OnItsOwnDisk) -> str:
    """What is told when SQLite says only that a write failed, as it does where a quota is used up."""
    failed = sqlite3.OperationalError("disk I/O error")
    failed.sqlite_errorname = "SQLITE_IOERR_WRITE"
    reason: str = unavailable(coordinator.inside / "moc.db", failed).details["reason"]
    return reason


def submit_patient(coordinator: Coordinator) -> str:
    command = [sys.executable, "-c", PATIENT]
    answer = coordinator.post("/api/v1/jobs", {"type": "script", "memory": "64MiB", "options": {"command": command}})
    assert answer.status_code in {200, 201, 202}, answer.text
    job: str = answer.json()["id"]
    return job


def test_what_writes_fails_by_name_and_all_else_outlives_it(coordinator: OnItsOwnDisk) -> None:
    assert answers(coordinator)
    patient, counting = submit_patient(coordinator), submit_counting(coordinator, 1_000_000, 0.02)
    for job in (patient, counting):
        reaches(coordinator, job, "running")
    filler = fill(coordinator.inside)
    try:
        eventually(lambda: refuses(coordinator), what="the store to say that it is full")
        assert reason_of_failed_writing(coordinator) == STORE_FULL
        for _ in range(OUTAGE_S):
            assert answers(coordinator)
            threading.Event().wait(1)
    finally:
        filler.unlink()
    assert reason_of_failed_writing(coordinator) == "SQLITE_IOERR_WRITE"
    done = reaches(coordinator, counting, "failed", "succeeded", timeout_s=60)
    assert (done["status"], done["reason"]) == ("failed", "DiskFull"), done
    (coordinator.inside / "jobs" / patient / "enough").touch()
    done = reaches(coordinator, patient, "failed", "succeeded", timeout_s=60)
    assert (done["status"], done["attempt_count"]) == ("succeeded", 1), done
    assert answers(coordinator)
    reaches(coordinator, submit_counting(coordinator, 5, 0), "succeeded")
