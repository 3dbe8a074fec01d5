"""An adapter as PEFT saves it, read and held against what can be said of it elsewhere: low-rank updates of weights."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors import safe_open

from moc.kernel.errors import InvalidRequest

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

_UNDERSTOOD = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "target_modules", "task_type", "use_rslora",
})  # fmt: skip
"""The settings that change nothing, or that are heeded here; any other, if it is used, makes it another method."""

_WEIGHT = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Update:
    """What is added to a weight of (outputs, inputs): `scale * b @ a`."""

    a: Array
    b: Array
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """That of the weight."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def rank(self) -> int:
        """The rows of `a`."""
        return int(self.a.shape[0])

    def delta(self) -> Array:
        """All of it, as float32."""
        update: Array = np.float32(self.scale) * (self.b @ self.a)
        return update


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """The updates by the module whose weight they belong to; `transposed`: the weights are (inputs, outputs)."""

    updates: Mapping[str, Update]
    alpha: float
    transposed: bool


def read_adapter(folder: Path) -> PeftAdapter:
    """Read a folder of PEFT's; InvalidRequest for an adapter that is more than a low-rank update of weights."""
    config: dict[str, Any] = msgspec.json.decode((folder / CONFIG).read_bytes(), type=dict[str, Any])
    _check(config)
    sides: dict[str, dict[str, Array]] = {}
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            found = _WEIGHT.fullmatch(name)
            if found is None:
                raise InvalidRequest(f"the adapter has {name}, which is no low-rank update of a weight")
            sides.setdefault(found["module"], {})[found["side"]] = file.get_tensor(name).float().numpy()
    updates = {
        module: Update(a=side["A"], b=side["B"], scale=_scale(config, module, rank=side["A"].shape[0]))
        for module, side in sides.items()
    }
    return PeftAdapter(updates, float(config["lora_alpha"]), bool(config.get("fan_in_fan_out")))


def _check(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise InvalidRequest(f"an adapter of type {config.get('peft_type')!r} is none of LoRA")
    other = sorted(key for key, value in config.items() if value and key not in _UNDERSTOOD)
    if config.get("bias", "none") != "none":
        other.append("bias")
    if config.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
        other.append("init_lora_weights")  # the others change the base too
    if other:
        raise InvalidRequest(
            f"the adapter uses {', '.join(other)}, which can be neither an adapter of llama.cpp nor merged here; "
            "train it without"
        )
    if config["lora_alpha"] <= 0:
        raise InvalidRequest("an adapter with an alpha of 0 changes nothing")


def _scale(config: Mapping[str, Any], module: str, *, rank: int) -> float:
    """What PEFT multiplies an update by."""
    pattern = config.get("alpha_pattern") or {}
    alpha = next((pattern[key] for key in pattern if re.match(rf"(.*\.)?({key})$", module)), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
