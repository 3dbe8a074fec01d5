"""Programs of jobs as real processes: started, found again, asked to end, killed, never left behind."""

import asyncio
import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from moc.kernel.errors import Unavailable
from moc.learning.ports import STOPPED_STATUS, Ending, Order, Started
from moc.workers.trainers.programs import TASK_FILE, LocalPrograms
from moc.workers.trainers.supervisor import CLAIM_FILE, EXIT_FILE, LAUNCH_FILE, LOG_BYTES_MAX, NEW_EXIT_FILE

TIMEOUT_S = 30.0
LOOK_S = 0.02

TELL = """
import json, os, signal, subprocess, sys, threading, time
def tell(**line):
    with open(os.environ["MOC_PROGRESS_FILE"], "a") as file:
        file.write(json.dumps(line) + "\\n")
"""
FOREVER = "tell(type='message', message=str(os.getpid()))\nthreading.Event().wait()"
OBEDIENT = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n" + FOREVER

TOLD_AT_BIRTH = """
import os, signal, sys
from moc.workers.trainers.supervisor import main
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
main(sys.argv[1])
"""
REAPS_NOTHING = """
import ctypes, subprocess, sys
ctypes.CDLL(None).prctl(36, ctypes.c_ulong(1), 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
sys.exit(subprocess.run([sys.executable, "-c", sys.argv[1], sys.argv[2]]).returncode)
"""
KILLS = """
import asyncio, pathlib, sys
SLEEP = "touch ready; exec sleep 600"
from moc.learning.ports import Order
from moc.workers.trainers.programs import LocalPrograms

async def main(folder):
    programs = LocalPrograms(orphan_grace_s=60, grace_s=5, threads=1)
    order = Order(job_id="job-1", attempt=1, folder=folder, type="script", task={}, command=("sh", "-c", SLEEP))
    process = await programs.start(order)
    while not (folder / "ready").exists():
        await asyncio.sleep(0.02)
    await programs.kill(folder / "attempts" / "1", process)

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


class Bench:
    """One job's folder, and what was started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = LocalPrograms(orphan_grace_s=60, grace_s=5, threads=2)
        self.started: list[tuple[Path, Started]] = []

    def order(self, code: str = "", attempt: int = 1, **terms: Any) -> Order:
        command = (sys.executable, "-c", TELL + textwrap.dedent(code))
        order = Order(
            job_id="job-1", attempt=attempt, folder=self.folder, type="script", task={}, device="host", command=command
        )
        return replace(order, **terms)

    async def start(self, code: str, attempt: int = 1, **terms: Any) -> tuple[Path, Started]:
        process = await self.programs.start(self.order(code, attempt, **terms))
        self.started.append((self.folder / "attempts" / str(attempt), process))
        return self.started[-1]

    async def ending(self, folder: Path, process: Started) -> Ending:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                ending = await self.programs.look(folder, process)
                if ending is not None:
                    return ending
                await asyncio.sleep(LOOK_S)

    async def told(self, folder: Path, count: int = 1) -> list[dict[str, Any]]:
        """What it told, once that are so many lines."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                lines = (await self.programs.news(folder, 0)).lines
                if len(lines) >= count:
                    return [dict(line) for line in lines]
                await asyncio.sleep(LOOK_S)

    async def pid(self, folder: Path) -> int:
        """Of a program that tells it first."""
        return int((await self.told(folder))[0]["message"])


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "job-1")
    yield bench
    for folder, process in bench.started:
        await bench.programs.kill(folder, process)
        assert not bench.programs.memory_bytes(process)


async def gone(pid: int) -> None:
    await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


async def until(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            if look():
                return
            await asyncio.sleep(LOOK_S)


async def test_a_program_is_told_what_it_is_to_do_and_is_heard(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOC_KEY", "secret")
    code = """
        names = [name for name in os.environ if name.startswith("MOC_") or name.endswith("_THREADS")]
        tell(type="result", data={"env": {name: os.environ[name] for name in names}, "cwd": os.getcwd(),
             "task": json.load(open(os.environ["MOC_TASK_FILE"])), "nice": os.nice(0), "input": sys.stdin.read()})
        print("to be seen", file=sys.stderr)
    """
    folder, process = await bench.start(
        code,
        task={"training_file": "/data/train", "validation_file": "", "hyperparameters": {"rate": 1}},
        seed=7,
        bytes=1000,
        environment={"MOC_HYPERPARAMETERS": "{}", "MOC_SEED": "is ours"},
    )
    ending = await bench.ending(folder, process)
    assert (ending.status, ending.log) == (0, "to be seen\n")
    (line,) = await bench.told(folder)
    data = line["data"]
    assert data["cwd"] == str(bench.folder)
    assert data["nice"] == 19
    assert data["input"] == ""
    assert data["env"] == {
        "MOC_JOB_ID": "job-1",
        "MOC_JOB_ATTEMPT": "1",
        "MOC_JOB_FOLDER": str(bench.folder),
        "MOC_TASK_FILE": str(folder / "task.json"),
        "MOC_CHECKPOINT_FOLDER": str(bench.folder / "checkpoints"),
        "MOC_OUTPUT_FOLDER": str(bench.folder / "output"),
        "MOC_PROGRESS_FILE": str(folder / "progress.jsonl"),
        "MOC_TRAINING_FILE": "/data/train",
        "MOC_HYPERPARAMETERS": "{}",
        "MOC_SEED": "7",
        "MOC_DEVICE": "host",
        "MOC_MEMORY_BYTES": "1000",
        "MOC_THREADS": "2",
        "OMP_NUM_THREADS": "2",
    }
    told = {"type": "script", "job": "job-1", "attempt": 1, "seed": 7, "device": "host", "bytes": 1000}
    assert data["task"] == {
        **told,
        "training_file": "/data/train",
        "validation_file": "",
        "hyperparameters": {"rate": 1},
    }
    for path in (bench.folder, folder, bench.folder / "checkpoints", bench.folder / "output"):
        assert path.is_dir()
        assert path.stat().st_mode & 0o077 == 0


async def test_how_a_program_ended_is_known_to_the_next_coordinator_too(bench: Bench) -> None:
    ends = {"sys.exit(3)": 3, "os.kill(os.getpid(), signal.SIGKILL)": -9, "raise ValueError('so it is')": 1}
    for attempt, (code, status) in enumerate(ends.items(), 1):
        folder, process = await bench.start(code, attempt)
        ending = await bench.ending(folder, process)
        later = LocalPrograms(orphan_grace_s=60, grace_s=5, threads=1)
        assert await later.look(folder, process) == ending
        assert ending.status == status
    assert ending.log.endswith("ValueError: so it is\n")


async def test_a_program_that_cannot_be_started_says_why(bench: Bench) -> None:
    wrong: list[dict[str, Any]] = [{"command": ("/no/such/program",)}, {"workdir": "/no/such/folder"}]
    for attempt, terms in enumerate(wrong, 1):
        folder, process = await bench.start("", attempt, **terms)
        ending = await bench.ending(folder, process)
        assert ending.status == 127
        assert "cannot be started in" in ending.log
        assert ending.log.endswith("No such file or directory\n")


async def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bench = Bench(tmp_path / "file" / "job-1")
    with pytest.raises(Unavailable, match="job-1"):
        await bench.start("")


@pytest.mark.parametrize("name", [TASK_FILE, LAUNCH_FILE, NEW_EXIT_FILE])
async def test_a_disk_that_is_full_at_the_start_is_told_as_such(bench: Bench, name: str) -> None:
    folder = bench.folder / "attempts" / "1"
    folder.mkdir(parents=True)
    (folder / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as full:
        await bench.start("")
    assert full.value.errno == errno.ENOSPC


async def test_sigterm_is_passed_on_and_the_program_may_save(bench: Bench) -> None:
    folder, process = await bench.start(OBEDIENT)
    await bench.pid(folder)
    await bench.programs.interrupt(folder, process)
    assert (await bench.ending(folder, process)).status == STOPPED_STATUS
    await bench.programs.interrupt(folder, process)  # no error when it is gone


async def test_one_that_is_halted_stands_still_and_hears_sigterm_all_the_same(bench: Bench) -> None:
    folder, process = await bench.start(OBEDIENT)
    program = psutil.Process(await bench.pid(folder))
    bench.programs.halt(process)
    await until(lambda: program.status() == psutil.STATUS_STOPPED)
    bench.programs.proceed(process)
    await until(lambda: program.status() != psutil.STATUS_STOPPED)
    bench.programs.proceed(process)
    bench.programs.halt(process)
    await until(lambda: program.status() == psutil.STATUS_STOPPED)
    await bench.programs.interrupt(folder, process)
    assert (await bench.ending(folder, process)).status == STOPPED_STATUS
    bench.programs.halt(process)  # no error when it is gone
    bench.programs.proceed(process)


async def test_a_program_is_found_again_by_its_folder(bench: Bench) -> None:
    folder, process = await bench.start(FOREVER)
    await bench.pid(folder)
    assert await bench.programs.find(folder) == process
    assert await bench.programs.find(bench.folder / "attempts" / "2") is None
    assert bench.programs.memory_bytes(process) > 1024**2
    await bench.programs.kill(folder, process)
    assert await bench.programs.find(folder) is None
    assert bench.programs.memory_bytes(process) == 0


async def test_another_process_with_its_number_is_not_taken_for_it(bench: Bench) -> None:
    folder, process = await bench.start(FOREVER)
    await bench.pid(folder)
    other = Started(process.pid, process.process_started_at - 60)
    await bench.programs.interrupt(folder, other)
    bench.programs.halt(other)
    assert bench.programs.memory_bytes(other) == 0
    assert await bench.programs.look(folder, process) is None


async def test_setting_the_clock_makes_no_other_process_of_it(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, process = await bench.start(FOREVER)
    await bench.pid(folder)
    proc = tmp_path / "proc"  # as the system tells it then: it moves the time it began at
    proc.mkdir()
    (proc / str(process.pid)).symlink_to(f"/proc/{process.pid}")
    booted = int(psutil.boot_time())
    (proc / "stat").write_text(f"btime {booted + 3600}\n")
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "PROCFS_PATH", str(proc))
        assert psutil.boot_time() == booted + 3600
        assert await bench.programs.look(folder, process) is None
    assert await bench.programs.look(folder, process) is None


def test_the_dead_count_as_dead_where_nobody_reaps_them(tmp_path: Path) -> None:
    """As in a container whose first process waits for nobody; here that is whoever adopts orphans."""
    ran = subprocess.run(
        [sys.executable, "-c", REAPS_NOTHING, KILLS, str(tmp_path)],
        timeout=TIMEOUT_S,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_one_that_is_asked_to_end_while_it_is_forked_ends(tmp_path: Path) -> None:
    launch = {"command": ["true"], "environment": {"PATH": os.environ["PATH"]}, "workdir": str(tmp_path)}
    (tmp_path / LAUNCH_FILE).write_text(json.dumps({**launch, "orphan_grace_s": 60, "grace_s": 5}))
    (tmp_path / CLAIM_FILE).touch()
    ran = subprocess.run([sys.executable, "-c", TOLD_AT_BIRTH, str(tmp_path)], timeout=TIMEOUT_S, check=False)
    assert ran.returncode == 0
    assert json.loads((tmp_path / EXIT_FILE).read_bytes())["status"] == -signal.SIGTERM


async def test_a_disk_that_takes_nothing_does_not_keep_the_dead_alive(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "attempt").touch()  # no folder: nothing can be written below it
    assert await bench.programs.look(tmp_path / "attempt", Started(0, 0.0)) == Ending(None)


async def test_killing_leaves_nothing_even_of_those_who_left_its_session(bench: Bench) -> None:
    daemon = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)"
    folder, process = await bench.start(f"child = {daemon}\ntell(type='message', message=str(child.pid))\n" + FOREVER)
    daemon_pid = int((await bench.told(folder, 2))[0]["message"])
    await bench.programs.kill(folder, process)
    await gone(daemon_pid)
    assert (await bench.ending(folder, process)).status is None


async def test_what_an_ended_program_left_behind_is_killed_before_it_counts_as_ended(bench: Bench) -> None:
    daemon = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)"
    folder, process = await bench.start(f"child = {daemon}\ntell(type='message', message=str(child.pid))")
    assert (await bench.ending(folder, process)).status == 0
    assert not psutil.pid_exists(await bench.pid(folder))


async def test_a_program_does_not_outlive_its_supervisor(bench: Bench) -> None:
    daemon = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)"
    folder, process = await bench.start(f"child = {daemon}\ntell(type='message', message=str(child.pid))\n" + FOREVER)
    daemon_pid, pid = (int(line["message"]) for line in await bench.told(folder, 2))
    os.kill(process.pid, signal.SIGKILL)
    await gone(pid)
    ending = await bench.ending(folder, process)
    assert ending.status is None
    await gone(daemon_pid)


async def test_a_start_that_comes_late_makes_no_second_process(bench: Bench) -> None:
    folder, process = await bench.start(FOREVER)
    await bench.programs.kill(folder, process)
    nobody = Started(0, 0.0)
    assert await bench.programs.look(folder, nobody) == Ending(None, "")
    again = await bench.programs.start(bench.order(FOREVER))
    bench.started.append((folder, again))
    assert (await bench.ending(folder, again)).status is None
    assert (await bench.programs.news(folder, 0)).lines == ()


async def test_a_program_nobody_claims_saves_and_ends(bench: Bench) -> None:
    bench.programs = LocalPrograms(orphan_grace_s=2.5, grace_s=60, threads=1)
    claimed, its_process = await bench.start(OBEDIENT)
    folder, process = await bench.start(OBEDIENT, 2)
    while await bench.programs.look(folder, process) is None:
        await bench.programs.claim(claimed)
        await asyncio.sleep(LOOK_S)
    assert (await bench.ending(folder, process)).status == STOPPED_STATUS
    assert await bench.programs.look(claimed, its_process) is None


async def test_one_that_is_halted_goes_on_when_nobody_claims_it(bench: Bench) -> None:
    folder, process = await bench.start(FOREVER)
    program = psutil.Process(await bench.pid(folder))
    bench.programs.halt(process)
    await until(lambda: program.status() == psutil.STATUS_STOPPED)
    await until(lambda: program.status() != psutil.STATUS_STOPPED)


async def test_one_that_does_not_listen_is_killed_when_nobody_claims_it(bench: Bench) -> None:
    bench.programs = LocalPrograms(orphan_grace_s=0.5, grace_s=0.5, threads=1)
    folder, process = await bench.start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER)
    assert (await bench.ending(folder, process)).status == -signal.SIGKILL


async def test_claiming_what_is_gone_is_no_error(bench: Bench) -> None:
    await bench.programs.claim(bench.folder / "attempts" / "9")


async def test_the_log_is_bounded_and_its_end_is_kept(bench: Bench) -> None:
    code = f"for _ in range({3 * LOG_BYTES_MAX // 65536}): sys.stdout.write('x' * 65535 + '\\n')\nprint('the end')"
    folder, process = await bench.start(code)
    ending = await bench.ending(folder, process)
    assert ending.log.endswith("x\nthe end\n")
    kept = sum(path.stat().st_size for path in folder.glob("program.log*"))
    assert LOG_BYTES_MAX < kept < 2 * LOG_BYTES_MAX + 2 * 65536
    assert len(bench.programs.log(folder, tail_bytes=LOG_BYTES_MAX)) == LOG_BYTES_MAX
    assert bench.programs.log(folder, tail_bytes=8) == "the end\n"


async def test_a_program_may_close_its_output_and_go_on(bench: Bench) -> None:
    folder, process = await bench.start("os.close(1); os.close(2)\n" + OBEDIENT)
    await bench.pid(folder)
    used = psutil.Process(process.pid).cpu_times().user
    assert used < 5
    await bench.programs.interrupt(folder, process)
    assert (await bench.ending(folder, process)).status == STOPPED_STATUS


async def test_what_the_exit_file_says_is_not_trusted(bench: Bench) -> None:
    folder, process = await bench.start("")
    await bench.ending(folder, process)
    for content in ("", "{", "[]", json.dumps({"status": None})):
        (folder / EXIT_FILE).write_text(content)
        ending = await bench.programs.look(folder, process)
        assert ending is not None
        assert ending.status is None


async def test_supervisors_are_small(bench: Bench) -> None:
    folder, process = await bench.start(FOREVER)
    await bench.pid(folder)
    with contextlib.suppress(psutil.AccessDenied):
        assert psutil.Process(process.pid).memory_full_info().uss < 15 * 1024**2


async def test_one_whose_folder_was_deleted_has_ended(bench: Bench) -> None:
    folder, process = await bench.start("tell(type='message', message=str(os.getpid())); time.sleep(60)")
    await bench.pid(folder)
    shutil.rmtree(bench.folder)
    await bench.programs.kill(folder, process)
    ending = await bench.ending(folder, process)
    assert (ending.status, ending.disk_full) == (None, False)
