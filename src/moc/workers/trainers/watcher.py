"""Stands beside a training: tells how it goes, keeps its checkpoints, and ends it when it is asked to or must."""

import contextlib
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moc.learning.job import Reason
from moc.workers.trainers import history
from moc.workers.trainers.assignment import Failure
from moc.workers.trainers.checkpoints import Checkpoints
from moc.workers.trainers.report import Report, Stop

TRAINED = {
    "loss": "train_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "mean_token_accuracy": "train_mean_token_accuracy",
}
VALIDATED = {"loss": "valid_loss", "mean_token_accuracy": "valid_mean_token_accuracy"}
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


class Watcher(TrainerCallback):
    """One training. `patience` is how many validations may fail to be the best before it ends; 0 = any number."""

    def __init__(self, *, report: Report, stop: Stop, checkpoints: Checkpoints, patience: int) -> None:
        self._report = report
        self._stop = stop
        self._checkpoints = checkpoints
        self._patience = patience
        self._first_step = 0
        self._started = self._step_began = 0.0
        self._tokens = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **about: Any
    ) -> None:
        forget_peak()
        self._first_step = state.global_step
        self._started = time.monotonic()
        self._tokens = history.last(state.log_history, "num_tokens") or 0.0
        if args.eval_strategy != "no" and state.eval_steps > state.max_steps:
            self._report.message(
                f"nothing is validated: eval_steps is {state.eval_steps}, and there are {state.max_steps} steps",
                level="warn",
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **about: Any
    ) -> None:
        self._step_began = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **about: Any) -> None:
        if self._stop.asked:
            control.should_save = control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **about: Any,
    ) -> None:
        told = logs or {}
        if "eval_loss" in told:
            validated = {key.removeprefix("eval_"): value for key, value in told.items() if key.startswith("eval_")}
            self._tell(state, _named(validated, VALIDATED, "valid_"))
        elif "loss" in told:
            self._tell(state, _named(told, TRAINED, "") | self._speed(told))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **about: Any) -> None:
        if self._patience and history.best_step(state.log_history) == state.global_step:
            control.should_save = True
        if history.is_hopeless(state.log_history, self._patience):
            control.should_save = control.should_training_stop = True
            self._report.message(
                f"the validation loss was not better in the last {self._patience} validations, so the training ends"
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **about: Any) -> None:
        step = state.global_step
        written = Path(str(args.output_dir)) / f"checkpoint-{step}"
        best = history.best_step(state.log_history) if self._patience else None
        made = self._checkpoints.save(step, written.replace, best=best)
        self._report.checkpoint(made.name, step=step, metrics=last_metrics(state.log_history))

    def _tell(self, state: TrainerState, metrics: dict[str, float]) -> None:
        for name in ("train_loss", "valid_loss"):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise Failure(
                    Reason.PROGRAM_FAILED,
                    f"{name} is {metrics[name]} at step {state.global_step}: the training went astray; "
                    "try a lower learning_rate, a longer warmup_ratio, or look for odd rows in the data",
                )
        done = state.global_step - self._first_step
        pace = (time.monotonic() - self._started) / done if done else 0.0
        self._report.metrics(
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=state.epoch or 0.0,
            eta_s=round(pace * (state.max_steps - state.global_step), 1),
            metrics=metrics,
        )

    def _speed(self, told: dict[str, Any]) -> dict[str, float]:
        tokens, took_s = float(told["num_tokens"]), time.monotonic() - self._step_began
        speed = (tokens - self._tokens) / max(took_s, 1e-9)
        self._tokens = tokens
        return {"tokens_per_s": round(speed, 1), "memory_bytes": float(memory_bytes())}


def last_metrics(log: history.Log) -> dict[str, float]:
    """The last losses of a log, in the words that users know."""
    found = {"train_loss": history.last(log, "loss"), "valid_loss": history.last(log, "eval_loss")}
    return {name: value for name, value in found.items() if value is not None}


def _named(told: dict[str, Any], names: dict[str, str], prefix: str) -> dict[str, float]:
    """What users are told of a log entry, in their words."""
    found = {names[key]: float(told[key]) for key in names if key in told}
    return found | {f"{prefix}{key}": float(told[key]) for key in REWARDS if key in told}


def forget_peak() -> None:
    """Have the peak be that of what comes: to make full weights of a GGUF file takes more, once."""
    with contextlib.suppress(OSError):  # other systems have no such file
        Path("/proc/self/clear_refs").write_text("5")


def memory_bytes() -> int:
    """What this process took at most of the device that it trains on, since its peak was forgotten if it can be."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_reserved())
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
