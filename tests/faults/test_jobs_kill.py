"""kill -9 of a job's program, its supervisor or the coordinator at random moments: it goes on, and ends once."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from moc.client import Client
from tests.coordinator import MOC, Coordinator, eventually
from tests.jobs import TRUSTED, folder_of, reaches, shown, submit_counting
from tests.memory import charges, events

SEED = int(os.environ.get("MOC_TEST_SEED", "20261123"))
ROUNDS = 10
STEPS, PAUSE_S = 400, 0.02
MOST_S = 1.0


@pytest.fixture
def coordinator(home: Path) -> Iterator[Coordinator]:
    coordinator = Coordinator(home, config={"security": TRUSTED, "devices": [{"id": "host", "kind": "host"}]})
    try:
        yield coordinator.start()
    finally:
        coordinator.close()


def has_passed(coordinator: Coordinator, job: str, step: int) -> bool:
    return int(shown(coordinator, job)["progress"]["step"]) > step


def programs(coordinator: Coordinator) -> list[psutil.Process]:
    """The programs of jobs that run, without their supervisors."""
    found = []
    for pid in coordinator.supervisor_pids():
        try:
            found += [each for each in psutil.Process(pid).children() if each.status() != psutil.STATUS_ZOMBIE]
        except psutil.NoSuchProcess:
            continue
    return found


def kill_something(coordinator: Coordinator, what: str) -> None:
    if what == "coordinator":
        coordinator.kill()
        coordinator.start()
        return
    pids = coordinator.supervisor_pids() if what == "supervisor" else [each.pid for each in programs(coordinator)]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def leases_of_jobs(coordinator: Coordinator) -> list[str]:
    held = [holder for holder in charges(coordinator) if holder.startswith(("lease:", "quarantine:"))]
    open_leases = [lease["id"] for lease in coordinator.get("/api/v1/leases")["leases"]]
    return held + open_leases


def stop_between_writes(coordinator: Coordinator) -> subprocess.Popen[bytes]:
    """SIGSTOP it while it does not write: SQLite's lock stays with a stopped process, and then nobody takes over."""
    assert coordinator.process is not None
    stopped = coordinator.process

    def is_stopped() -> bool:
        stopped.send_signal(signal.SIGSTOP)
        eventually(lambda: psutil.Process(stopped.pid).status() == psutil.STATUS_STOPPED, what="it to stop")
        with closing(sqlite3.connect(coordinator.data_dir / "moc.db", timeout=0)) as database:
            try:
                database.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                stopped.send_signal(signal.SIGCONT)
                return False
            return True

    eventually(is_stopped, what="a moment between two writes")
    return stopped


def has_started(coordinator: Coordinator) -> bool:
    try:
        coordinator.start()
    except RuntimeError as error:  # somebody has the seat
        print(error)  # pytest shows it when the test fails
        return False
    return True


def all_events(coordinator: Coordinator, job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while page := coordinator.get(f"/api/v1/jobs/{job}/events?limit=1000&after={len(found)}")["events"]:
        found += page
    return found


def nothing_is_left(coordinator: Coordinator) -> bool:
    return not (coordinator.supervisor_pids() or leases_of_jobs(coordinator))


@pytest.mark.timeout(300)
def test_a_job_survives_what_is_killed_around_it_and_ends_once(coordinator: Coordinator) -> None:
    print(f"MOC_TEST_SEED={SEED}")
    dice = random.Random(SEED)
    job = submit_counting(coordinator, STEPS, PAUSE_S)
    reaches(coordinator, job, "running")
    for number in range(ROUNDS):
        what = ("program", "supervisor", "coordinator")[number % 3]
        before = shown(coordinator, job)["progress"]["step"]
        threading.Event().wait(dice.uniform(0, MOST_S))
        kill_something(coordinator, what)
        eventually(partial(has_passed, coordinator, job, before), what=f"it to go on after the {what} was killed")
        assert shown(coordinator, job)["status"] in {"running", "queued", "succeeded"}

    done = reaches(coordinator, job, "succeeded", "failed", timeout_s=60)

    assert done["status"] == "succeeded", done
    assert done["outcome"]["metrics"] == {"count": STEPS}
    lines = (folder_of(coordinator, job) / "journal").read_text().split("\n")[:-1]
    assert "twice" not in lines
    assert lines[-1].endswith(f" {STEPS}")
    happened = all_events(coordinator, job)
    told = [event["message"] for event in happened if event["message"] in set(lines)]
    assert len(told) == len(set(told))  # whoever died in between
    assert len(lines) - len(told) <= ROUNDS  # one that was killed may have had no time to tell
    assert sum(event["message"].startswith("The job succeeded") for event in happened) == 1
    assert [event["kind"] for event in events(coordinator)].count("job.succeeded") == 1
    eventually(lambda: nothing_is_left(coordinator), what="nothing to be left")


def test_a_coordinator_that_was_stopped_for_long_starts_no_second_program(coordinator: Coordinator) -> None:
    """Its seat is taken meanwhile: what it wakes up to do is refused."""
    job = submit_counting(coordinator, STEPS, PAUSE_S)
    reaches(coordinator, job, "running")
    other = Coordinator(coordinator.data_dir, config=None)
    stopped = stop_between_writes(coordinator)
    try:
        eventually(lambda: has_started(other), timeout_s=60, what="the seat to be free")
        before = shown(other, job)["progress"]["step"]
        eventually(partial(has_passed, other, job, before), what="the new one to look after it")
        stopped.send_signal(signal.SIGCONT)
        assert stopped.wait(30) != 0
        done = reaches(other, job, "succeeded", "failed", timeout_s=60)
        assert (done["status"], done["attempt_count"]) == ("succeeded", 1), (done, all_events(other, job))
        assert "twice" not in (folder_of(other, job) / "journal").read_text()
    finally:
        other.close()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_who_follows_a_job_sees_each_event_once_whatever_becomes_of_the_coordinator(
    coordinator: Coordinator, how: str
) -> None:
    job = submit_counting(coordinator, STEPS // 2, PAUSE_S)
    reaches(coordinator, job, "running")
    command = [*MOC, "jobs", "events", job, "--follow", "--json"]
    with subprocess.Popen(command, env=coordinator.environment(), stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        seen = [json.loads(follower.stdout.readline())]
        coordinator.kill() if how == "kill" else coordinator.stop()
        coordinator.start()
        seen += [json.loads(line) for line in follower.stdout]
        assert follower.wait(60) == 0
    assert seen == all_events(coordinator, job)
    assert shown(coordinator, job)["status"] == "succeeded"


def test_who_waits_for_a_job_waits_for_its_coordinator_too(coordinator: Coordinator) -> None:
    job = submit_counting(coordinator, STEPS // 2, PAUSE_S)
    with Client(coordinator.url, coordinator.key) as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.jobs.wait, job)
        reaches(coordinator, job, "running")
        coordinator.kill()
        coordinator.start()
        assert waiting.result(60)["status"] == "succeeded"


@pytest.mark.parametrize("moment", ["running", "paused"])
def test_a_cancelled_job_leaves_nothing(coordinator: Coordinator, moment: str) -> None:
    job = submit_counting(coordinator, 100_000, PAUSE_S)
    reaches(coordinator, job, "running")
    if moment == "paused":
        assert coordinator.post(f"/api/v1/jobs/{job}/pause").status_code == 200
        reaches(coordinator, job, "paused")
        assert nothing_is_left(coordinator)
    assert coordinator.post(f"/api/v1/jobs/{job}/cancel").status_code == 200
    reaches(coordinator, job, "cancelled")
    assert nothing_is_left(coordinator)


def test_programs_outlive_a_coordinator_that_is_stopped_unless_it_ends_them(coordinator: Coordinator) -> None:
    job = submit_counting(coordinator, STEPS, PAUSE_S)
    reaches(coordinator, job, "running")
    assert coordinator.stop() == 0
    assert coordinator.supervisor_pids()
    coordinator.arguments.append("--stop-workers")
    coordinator.start()
    assert shown(coordinator, job)["attempt_count"] == 1
    assert coordinator.stop() == 0
    assert not coordinator.supervisor_pids()
    coordinator.start()
    done = reaches(coordinator, job, "succeeded", timeout_s=60)
    assert done["attempt_count"] == 2


def test_a_full_disk_fails_the_job_and_harms_nothing_else(coordinator: Coordinator) -> None:
    job = submit_counting(coordinator, 100_000, PAUSE_S)
    reaches(coordinator, job, "running")
    config = coordinator.data_dir / "moc.yaml"
    config.write_text(config.read_text() + "learning:\n  disk_quota: 1MiB\n")
    (folder_of(coordinator, job) / "output" / "big").write_bytes(b"x" * 2**21)
    assert coordinator.process is not None
    coordinator.process.send_signal(signal.SIGHUP)
    done = reaches(coordinator, job, "failed")
    assert done["reason"] == "DiskFull"
    assert "learning.disk_quota" in done["message"]
    shutil.rmtree(folder_of(coordinator, job))
    eventually(lambda: nothing_is_left(coordinator), what="nothing to be left")
    reaches(coordinator, submit_counting(coordinator, 5, 0), "succeeded")
