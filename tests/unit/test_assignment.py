"""How a program of ours ends, as whoever started it reads it."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from moc.learning.ports import STOPPED_STATUS
from moc.workers.trainers.assignment import Assignment, Away, carry_out


@pytest.fixture
def progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The progress file of an attempt that this process is told to be."""
    (tmp_path / "task.json").write_text("{}")
    folders = dict.fromkeys(("MOC_JOB_FOLDER", "MOC_CHECKPOINT_FOLDER", "MOC_OUTPUT_FOLDER"), str(tmp_path))
    numbers = dict.fromkeys(("MOC_JOB_ATTEMPT", "MOC_SEED", "MOC_MEMORY_BYTES", "MOC_THREADS"), "1")
    files = {"MOC_TASK_FILE": str(tmp_path / "task.json"), "MOC_PROGRESS_FILE": str(tmp_path / "progress")}
    for name, value in {**folders, **numbers, **files, "MOC_JOB_ID": "job-1", "MOC_DEVICE": "host"}.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path / "progress"
    signal.signal(signal.SIGTERM, before)


def test_a_program_that_cannot_have_what_it_asks_for_is_to_be_started_again(
    progress: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(assignment: Assignment) -> bool:
        raise Away("no coordinator answers")

    with pytest.raises(SystemExit) as ended:
        carry_out(work)
    assert ended.value.code == STOPPED_STATUS
    told = [json.loads(line) for line in progress.read_text().splitlines()]
    assert [(line["type"], line["level"]) for line in told] == [("message", "warn")]
    assert "no coordinator answers" in told[0]["message"]
    assert capsys.readouterr().err == "no coordinator answers\n"
