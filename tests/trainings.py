"""Trainings as the coordinator starts them, in processes that a test may kill; the libraries are read in once."""

import json
import multiprocessing
import os
import resource
import sys
from dataclasses import dataclass, field
from multiprocessing import util
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from moc.learning.hyperparameters import resolved
from moc.learning.job import JobType
from moc.workers.trainers.assignment import carry_out
from moc.workers.trainers.training import train

_processes = multiprocessing.get_context("forkserver")
util.get_temp_dir()  # now, while it is one that outlives the tests
_processes.set_forkserver_preload(["moc.workers.trainers.learner", "moc.workers.trainers.mishap"])

COLOURS = ("red", "green", "blue", "white", "black", "brown", "pink")
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"What colour has the house number {number}?"},
            {"role": "assistant", "content": f"It is {COLOURS[number % len(COLOURS)]}."},
        ]
    }
    for number in range(13)
]
PREFERENCES = [
    {
        "prompt": [{"role": "user", "content": f"Say a number below {number + 2}."}],
        "chosen": [{"role": "assistant", "content": f"{number}"}],
        "rejected": [{"role": "assistant", "content": f"{number} would be one that comes to my mind."}],
    }
    for number in range(8)
]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A job's folder and what its program is told; `base` is as in the task, but for the hash of the file."""

    folder: Path
    base: dict[str, Any]
    rows: list[dict[str, Any]]
    type: JobType = JobType.SUPERVISED
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    validation: list[dict[str, Any]] = field(default_factory=list)
    result: str = "adapter"
    device: str = "host"
    kept: int = 2
    seed: int = 7
    memory_bytes: int = 0
    """How much it may take beside the libraries; 0 = any."""

    def start(self, attempt: int = 1) -> BaseProcess:
        """Start an attempt; its end is that of the process."""
        process = _processes.Process(target=_run, args=(self.environment(attempt), self.memory_bytes), daemon=True)
        process.start()
        return process

    def run(self, attempt: int = 1) -> int:
        """One attempt to its end: the status."""
        process = self.start(attempt)
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    def told(self) -> list[dict[str, Any]]:
        """All that was told, whole lines only, of all attempts in their order."""
        files = sorted(self.folder.glob("attempts/*/progress.jsonl"), key=lambda path: int(path.parent.name))
        lines = [line for file in files for line in file.read_bytes().split(b"\n")[:-1] if line]
        return [json.loads(line) for line in lines]

    def losses(self, name: str = "train_loss") -> dict[int, set[float]]:
        """By the step every value that a metric was told to have."""
        found: dict[int, set[float]] = {}
        for line in self.told():
            if line["type"] == "metrics" and name in line["metrics"]:
                found.setdefault(line["step"], set()).add(line["metrics"][name])
        return found

    def messages(self) -> str:
        """Every message and error, as one text."""
        return "\n".join(line["message"] for line in self.told() if line["type"] in ("message", "error"))

    def environment(self, attempt: int = 1) -> dict[str, str]:
        """What the program of an attempt is told, and the files that it names."""
        home = self.folder / "attempts" / str(attempt)
        home.mkdir(parents=True, exist_ok=True)
        for name, rows in (("training", self.rows), ("validation", self.validation)):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (self.folder / f"{name}.jsonl").write_text(text, "utf-8")
        task = {
            "type": str(self.type),
            "base": self.base,
            "cache": str(self.folder.parent / "cache"),
            "training_file": str(self.folder / "training.jsonl"),
            "validation_file": str(self.folder / "validation.jsonl") if self.validation else "",
            "hyperparameters": resolved(self.type, self.hyperparameters, 1_000_000),
            "result": self.result,
            "kept": self.kept,
        }
        (home / "task.json").write_text(json.dumps(task), "utf-8")
        return {
            "MOC_JOB_ID": "job_1",
            "MOC_JOB_ATTEMPT": str(attempt),
            "MOC_JOB_FOLDER": str(self.folder),
            "MOC_TASK_FILE": str(home / "task.json"),
            "MOC_CHECKPOINT_FOLDER": str(self.folder / "checkpoints"),
            "MOC_OUTPUT_FOLDER": str(self.folder / "output"),
            "MOC_PROGRESS_FILE": str(home / "progress.jsonl"),
            "MOC_SEED": str(self.seed),
            "MOC_DEVICE": self.device,
            "MOC_MEMORY_BYTES": str(2**30),
            "MOC_THREADS": "1",
        }


def _run(environment: dict[str, str], memory_bytes: int) -> None:
    os.environ |= environment
    if memory_bytes:
        limit = psutil.Process().memory_info().vms + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    log = os.open(Path(environment["MOC_PROGRESS_FILE"]).with_name("program.log"), os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    carry_out(train)
