"""The example of a job of one's own does what its documentation says: it may be stopped or killed, and goes on."""

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

from moc.learning.ports import STOPPED_STATUS, Ending, Order
from moc.workers.trainers.programs import LocalPrograms

EXAMPLE = Path(__file__).parents[2] / "examples" / "script-job" / "train.py"
TIMEOUT_S = 60.0


class Bench:
    """The example in a job's folder, attempt after attempt."""

    def __init__(self, folder: Path, *, pause_s: float) -> None:
        self.programs = LocalPrograms(orphan_grace_s=60, grace_s=10, threads=1)
        self.folder = folder
        self.attempts = 0
        self._settings = json.dumps({"pause_s": pause_s})

    async def attempt(self, *, stop_at: int | None = None, kill: bool = False) -> tuple[Ending, list[dict[str, Any]]]:
        """One attempt, stopped or killed once it told the step `stop_at`: how it ended and what it told."""
        self.attempts += 1
        order = Order(
            job_id="job-1",
            attempt=self.attempts,
            folder=self.folder,
            type="script",
            task={},
            command=(sys.executable, str(EXAMPLE)),
            environment={"MOC_HYPERPARAMETERS": self._settings},
        )
        process = await self.programs.start(order)
        folder = self.folder / "attempts" / str(self.attempts)
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                ending = await self.programs.look(folder, process)
                told = [dict(line) for line in (await self.programs.news(folder, 0)).lines]
                if ending is not None:
                    return ending, told
                if stop_at is not None and any(line.get("step", 0) >= stop_at for line in told):
                    stop_at = None
                    await (self.programs.kill if kill else self.programs.interrupt)(folder, process)
                await asyncio.sleep(0.02)


async def test_it_fits_its_line(tmp_path: Path) -> None:
    ending, told = await Bench(tmp_path / "job", pause_s=0).attempt()
    assert ending.status == 0, ending.log
    losses = [line["metrics"]["train_loss"] for line in told if line["type"] == "metrics"]
    assert len(losses) == 200
    assert losses[-1] < losses[0] / 100
    assert told[-1]["type"] == "result"
    assert abs(told[-1]["data"]["slope"] - 3) < 0.1


async def test_stopped_and_killed_it_comes_to_the_same_end(tmp_path: Path) -> None:
    _, whole = await Bench(tmp_path / "whole", pause_s=0).attempt()
    bench = Bench(tmp_path / "pieces", pause_s=0.01)
    chance = random.Random(7)
    ending, told = await bench.attempt(stop_at=chance.randint(1, 60))
    assert ending.status == STOPPED_STATUS
    saved = told[-1]["step"]
    assert told[-1]["type"] == "checkpoint"
    ending, told = await bench.attempt(stop_at=saved + chance.randint(20, 80), kill=True)
    assert ending.status is None
    assert told[0]["step"] == saved + 1
    ending, told = await bench.attempt()
    assert ending.status == 0, ending.log
    assert told[-1] == whole[-1]
