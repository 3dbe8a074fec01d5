"""A training, from what it is given to what is served: in this order loaded, trained, laid out, exported.

It goes on from the last checkpoint there is. Asked to stop, it saves one at the end of the step; the numbers that
follow are those it would have come to without the stop: optimizer, schedule, random numbers and the place in the data
are all in a checkpoint.
"""

import gc
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import TrainerState

from moc.kernel.errors import InvalidRequest
from moc.learning.dataset import split
from moc.learning.job import JobType
from moc.learning.rows import Row, rows
from moc.models.results import link
from moc.workers.trainers import history
from moc.workers.trainers.assignment import Assignment
from moc.workers.trainers.base_model import first_token, load_base
from moc.workers.trainers.checkpoints import MANIFEST, Checkpoints
from moc.workers.trainers.examples import Encoder, Examples
from moc.workers.trainers.export import check_export, export
from moc.workers.trainers.recipe import Recipe, Rows
from moc.workers.trainers.watcher import Watcher, last_metrics

STATE = "trainer_state.json"
SCRATCH = ".trainer"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
LEFT_OUT = frozenset({MANIFEST, STATE, "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"})
"""What of a checkpoint is no part of a model."""

BLURRED = {
    JobType.SUPERVISED: "{count} of {of} conversations are learned whole: the model's chat template does not let the "
    "turns be told apart",
    JobType.DPO: "{count} of {of} prompts end in other tokens when an answer follows, so their ends are learned with "
    "the answers",
}
PARTED = {
    "messages": "{count} of {of} conversations are learned as several examples: the model's chat template writes "
    "answers otherwise once others follow, so each is learned as the end of one",
    "text": "{count} of {of} texts are longer than max_length={length}, and learned in parts",
}
REFUSED = (
    "{count} of {of} conversations are left out: all of them would be learned, also answers that have the weight 0, "
    "which the model's chat template does not let be told apart"
)
PASSED_BY = (
    "line {line} of the {file} rows has {name}, which the model's chat template leaves out, so something else would be "
    "learned; train a model whose template knows tools, or set `chat_template` of this one to one that does"
)
ONE_PROMPT = "nothing is validated, for all rows have the same prompt and validation_split keeps such together"
NOTHING_TO_LEARN = "max_length cuts off all that there is to learn in the examples; raise it"
NOTHING_IS_LEFT = "nothing is left to learn: all conversations have answers of the weight 0 that cannot be told apart"


class Learner:
    """One attempt at a training."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._task = assignment.task
        self._type = JobType(self._task["type"])
        self._report = assignment.report
        self._hyperparameters: dict[str, Any] = self._task["hyperparameters"]
        self._checkpoints = Checkpoints(
            assignment.checkpoints,
            kept=self._task["kept"],
            warn=lambda message: self._report.message(message, level="warn"),
        )
        self._recipe = Recipe(
            hyperparameters=self._hyperparameters,
            seed=assignment.seed,
            device="cuda" if assignment.device.startswith("cuda") else "cpu",
            scratch=assignment.checkpoints / SCRATCH,
        )
        shutil.rmtree(self._recipe.scratch, ignore_errors=True)
        self._recipe.scratch.mkdir()
        tempfile.tempdir = str(self._recipe.scratch)  # what the libraries leave there when they are killed goes with it

    def run(self) -> bool:
        """Train, or go on with it, and make the result; whether that is done, rather than stopped."""
        self._settle()
        newest = self._checkpoints.newest()
        if newest is None or not self._is_done(newest):
            newest = self._train(newest)
        if newest is None or not self._is_done(newest):
            return False
        self._tell_result(newest)
        return True

    def _settle(self) -> None:
        """Compute the same on every run, and quietly."""
        torch.set_num_threads(self._assignment.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        warnings.simplefilter("ignore", FutureWarning)  # of the libraries, about each other
        datasets.disable_progress_bars()
        transformers.logging.set_verbosity_warning()  # type: ignore[no-untyped-call]
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    def _train(self, newest: Path | None) -> Path | None:
        """Train until the end or a stop; the checkpoint that was saved then, if it came so far."""
        trainer = self._trainer()
        if newest is None and self._hyperparameters["method"] == "lora":
            fresh = self._recipe.scratch / "fresh"
            trainer.model.save_pretrained(fresh)
            check_export(self._task, fresh)
        if self._assignment.stop.asked:
            return newest
        if newest is not None:
            step = _state(newest).global_step
            self._report.message(f"goes on after step {step}")
            # what it counts beside the library's own state
            trainer._total_train_tokens = int(history.last(_state(newest).log_history, "num_tokens") or 0)
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
        made = self._checkpoints.of(trainer.state.global_step)
        del trainer
        gc.collect()
        return made

    def _trainer(self) -> Any:
        training, validation = self._rows()
        network, tokenizer = load_base(self._task["base"], Path(self._task["cache"]), dtype=self._recipe.dtype)
        watcher = Watcher(
            report=self._report,
            stop=self._assignment.stop,
            checkpoints=self._checkpoints,
            patience=self._hyperparameters["early_stopping_patience"],
        )
        first = first_token(self._task["base"], tokenizer)
        encoder = Encoder(tokenizer, max_length=self._hyperparameters["max_length"], first=first)
        learned = self._encoded(encoder, training, "training")
        validated = self._encoded(encoder, validation, "validation" if self._task["validation_file"] else "training")
        make = self._recipe.dpo if self._type is JobType.DPO else self._recipe.supervised
        made = make(network, tokenizer, learned, validated, watcher)
        made.remove_callback(transformers.PrinterCallback)
        trained = sum(weights.numel() for weights in made.model.parameters() if weights.requires_grad)
        validates = f", validates on {len(validated):,}" if validated else ""
        self._report.message(f"trains {trained:,} weights on {len(learned):,} examples{validates}")
        return made

    def _rows(self) -> tuple[list[Row], list[Row]]:
        training = _read(self._task["training_file"])
        given = self._task["validation_file"]
        if given:
            validation = _read(given)
        else:
            share = self._hyperparameters["validation_split"]
            training, validation = split(training, share, self._assignment.seed)
            if share and not validation:
                self._report.message(ONE_PROMPT, level="warn")
        return training, validation

    def _encoded(self, encoder: Encoder, given: Sequence[Row], file: str) -> Rows:
        for row in given:
            if (name := encoder.left_out(row.value)) is not None:
                raise InvalidRequest(PASSED_BY.format(line=row.line, file=file, name=name))
        values = [row.value for row in given]
        if self._type is JobType.DPO:
            found = encoder.prefer(values)
        else:
            found = encoder.encode(values, assistant_only=self._hyperparameters["assistant_only_loss"])
        self._tell_examples(found, values)
        if given and not found.rows:
            raise InvalidRequest(NOTHING_TO_LEARN if found.empty else NOTHING_IS_LEFT)
        return found.rows

    def _tell_examples(self, found: Examples, given: Rows) -> None:
        """What became of the rows, if not all that is in them is learned, or it is learned otherwise."""
        length = self._hyperparameters["max_length"]
        parted = PARTED["messages" if any("messages" in row for row in given) else "text"]
        told = (
            (found.blurred, len(given), BLURRED[self._type]),
            (found.parted, len(given), parted),
            (found.refused, len(given), REFUSED),
            (found.cut, found.count, "{count} of {of} examples are cut to max_length={length}"),
            (found.empty, found.count, "{count} of {of} examples have nothing to learn"),
        )
        for count, of, message in told:
            if count:
                level = "info" if message is parted else "warn"
                self._report.message(message.format(count=count, of=of, length=length), level=level)

    def _is_done(self, checkpoint: Path) -> bool:
        state = _state(checkpoint)
        patience = self._hyperparameters["early_stopping_patience"]
        return state.global_step >= state.max_steps or history.is_hopeless(state.log_history, patience)

    def _tell_result(self, final: Path) -> None:
        log = _state(final).log_history
        best = history.best_step(log) if self._hyperparameters["early_stopping_patience"] else None
        chosen = final if best is None else self._checkpoints.sound(best) or final
        self._lay_out(chosen)
        step = _state(chosen).global_step
        metrics = last_metrics(history.until(log, step))
        losses = dict(history.validations(log))
        if step in losses:
            metrics["full_valid_loss"] = losses[step]
        self._report.result(
            metrics,
            trained_tokens=int(history.last(log, "num_tokens") or 0),
            data={"step": step, **export(self._task, self._assignment.folder)},
        )

    def _lay_out(self, checkpoint: Path) -> None:
        """Put what was trained into `output/adapter` or `output/model`; the files stay those of the checkpoint."""
        lora = self._hyperparameters["method"] == "lora"
        made = self._assignment.output / ("adapter" if lora else "model")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        for file in checkpoint.iterdir():
            if file.name in ADAPTER_FILES if lora else file.name not in LEFT_OUT:
                link(file, made / file.name)


def _read(path: str) -> list[Row]:
    """All rows of a file, which was checked before."""
    return [row for row in rows(Path(path)) if isinstance(row, Row)]


def _state(checkpoint: Path) -> TrainerState:
    found: TrainerState = TrainerState.load_from_json(str(checkpoint / STATE))
    return found
