"""No test leaves a worker or its folder behind."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault.
settings.register_profile("moc", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", settings.get_profile("moc"), max_examples=20)
settings.load_profile("moc")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Run in the background of a shell; what the tests start would inherit that, and not hear Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

WORKERS = frozenset({"moc.workers.child", "moc.workers.trainers.supervisor"})


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A temporary folder of its own for this run, in which nothing is to be found when it is over."""
    base = tmp_path_factory.getbasetemp()
    home = Path(tempfile.mkdtemp(prefix="moc-"))
    before, os.environ["TMPDIR"], tempfile.tempdir = tempfile.tempdir, str(home), str(home)
    yield
    tempfile.tempdir = before
    workers = [process.pid for process in psutil.process_iter(["cmdline"]) if _is_worker(process, (home, base))]
    left = [path.name for path in home.iterdir() if path.name.startswith("moc-")]
    shutil.rmtree(home, ignore_errors=True)
    assert not workers, f"workers left behind: {workers}"
    assert not left, f"folders left behind: {left}"


def _is_worker(process: psutil.Process, homes: tuple[Path, ...]) -> bool:
    command = process.info["cmdline"] or ()
    return not WORKERS.isdisjoint(command) and any(str(home) in part for part in command for home in homes)
