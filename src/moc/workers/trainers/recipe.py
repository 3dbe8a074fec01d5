"""How TRL is to train: its settings, of our hyperparameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from transformers.pytorch_utils import Conv1D
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from moc.kernel.errors import InvalidRequest
from moc.workers.trainers.examples import IGNORED
from moc.workers.trainers.watcher import Watcher

TENTH = 0.1
"""Where TRL is given a share in place of steps, it is one of all steps."""

Rows = Sequence[Mapping[str, Any]]


class Warmup:
    """What of a trainer's settings tells how long the learning rate rises: by a share of all steps, rounded down."""

    warmup_steps: float

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """The steps. The library rounds up, so that the only step of a short training would be one at the rate 0."""
        return int(num_training_steps * self.warmup_steps)


class SupervisedSettings(Warmup, SFTConfig):
    """Those of supervised training."""


class PreferenceSettings(Warmup, DPOConfig):
    """Those of DPO."""


class SupervisedTrainer(SFTTrainer):
    """Supervised training, whose loss in a validation is the mean of all tokens, not of the batches they came in."""

    def evaluation_loop(self, *about: Any, **more: Any) -> Any:
        """The mean replaces the library's, which is another one for each batch size."""
        self._losses, self._counts = list[float](), list[int]()
        found = super().evaluation_loop(*about, **more)
        found.metrics["eval_loss"] = sum(self._losses) / max(1, sum(self._counts))
        return found

    def prediction_step(self, model: Any, inputs: Any, *about: Any, **more: Any) -> Any:
        """One batch, whose loss and tokens are noted."""
        count = int((inputs["labels"][:, 1:] != IGNORED).sum())
        found = super().prediction_step(model, inputs, *about, **more)
        self._losses.append(float(found[0]) * count)
        self._counts.append(count)
        return found


class PreferenceTrainer(DPOTrainer):
    """DPO on examples that are tokens already: in a table of rows as they are, each has the keys of all others too."""

    def _prepare_dataset(self, dataset: Any, *about: Any) -> Any:
        return dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A training: its hyperparameters, its seed, where it computes (`cpu` or `cuda`), and where TRL may write."""

    hyperparameters: Mapping[str, Any]
    seed: int
    device: str
    scratch: Path

    @property
    def has_bfloat16(self) -> bool:
        """Whether the device computes with it itself: emulated, it is slower than float32."""
        return self.device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights: half as wide where they stay as they are and the device can."""
        return torch.bfloat16 if self.has_bfloat16 and self.hyperparameters["method"] == "lora" else torch.float32

    def supervised(self, network: Any, tokenizer: Any, training: Rows, validation: Rows, watcher: Watcher) -> Any:
        """A trainer for examples, as tokens with labels."""
        arguments = SupervisedSettings(**self._arguments(validate=bool(validation)))
        return SupervisedTrainer(args=arguments, **self._parts(network, tokenizer, training, validation, watcher))

    def dpo(self, network: Any, tokenizer: Any, training: Rows, validation: Rows, watcher: Watcher) -> Any:
        """A trainer for preferences, as tokens.

        What the network was before is it without its adapter, or as told beforehand.
        """
        full = self.hyperparameters["method"] == "full"
        arguments = PreferenceSettings(
            **self._arguments(validate=bool(validation)),
            beta=self.hyperparameters["beta"],
            precompute_ref_log_probs=full,
        )
        return PreferenceTrainer(args=arguments, **self._parts(network, tokenizer, training, validation, watcher))

    def _parts(
        self, network: Any, tokenizer: Any, training: Rows, validation: Rows, watcher: Watcher
    ) -> dict[str, Any]:
        return {
            "model": network,
            "processing_class": tokenizer,
            "train_dataset": datasets.Dataset.from_list(list(training)),
            "eval_dataset": datasets.Dataset.from_list(list(validation)) if validation else None,
            "peft_config": self._lora(network) if self.hyperparameters["method"] == "lora" else None,
            "callbacks": [watcher],
        }

    def _lora(self, network: Any) -> LoraConfig:
        given = self.hyperparameters
        if isinstance(given["lora_targets"], list):
            _check_targets(given["lora_targets"], network)
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=given["lora_rank"],
            lora_alpha=given["lora_alpha"],
            lora_dropout=given["lora_dropout"],
            target_modules=given["lora_targets"],
        )

    def _arguments(self, *, validate: bool) -> dict[str, Any]:
        given = self.hyperparameters
        return {
            "output_dir": str(self.scratch),
            "num_train_epochs": given["epochs"],
            "max_steps": given["max_steps"] or -1,
            "per_device_train_batch_size": given["batch_size"],
            "per_device_eval_batch_size": given["batch_size"],
            "gradient_accumulation_steps": given["gradient_accumulation"],
            "learning_rate": given["learning_rate"] * given["learning_rate_multiplier"],
            "lr_scheduler_type": "constant_with_warmup" if given["scheduler"] == "constant" else given["scheduler"],
            "warmup_steps": given["warmup_ratio"],
            "weight_decay": given["weight_decay"],
            "max_length": given["max_length"],
            "gradient_checkpointing": given["gradient_checkpointing"],
            "seed": self.seed,
            "data_seed": self.seed,
            "use_cpu": self.device == "cpu",
            "bf16": self.has_bfloat16,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "eval_strategy": "steps" if validate else "no",
            "eval_steps": given["eval_steps"] or TENTH,
            "save_strategy": "steps",
            "save_steps": given["checkpoint_steps"] or TENTH,
            "dataloader_pin_memory": False,
            "disable_tqdm": True,
            "report_to": [],
        }


def _check_targets(targets: Sequence[str], network: Any) -> None:
    """InvalidRequest unless all of them are layers of the network that an adapter can be put beside."""
    head = network.get_output_embeddings()  # the library computes with its weights, and passes an adapter by
    linear = {
        name
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise InvalidRequest(
                f"`lora_targets` has {target!r}, which no adapter can be trained for; there are {known}"
            )
