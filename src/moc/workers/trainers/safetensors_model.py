"""A folder of Transformers' with low-rank updates in its weights."""

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from moc.kernel.errors import InvalidRequest
from moc.workers.trainers.peft_adapter import PeftAdapter

WEIGHTS = ".safetensors"
INDEX = ".safetensors.index.json"


def write_merged(base: Path, folder: Path, adapter: PeftAdapter) -> None:
    """Write `base` with `adapter` in its weights, in their own precision; in memory is one of its files at a time.

    InvalidRequest when a weight it belongs to is not there or does not fit.
    """
    folder.mkdir()
    trained = {f"{module}.weight" for module in adapter.updates}
    missing = set(trained)
    for file in sorted(base.glob(f"model*{WEIGHTS}")) or sorted(base.glob(f"*{WEIGHTS}")):
        with safe_open(file, framework="pt") as weights:
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 - it is no mapping
            about = weights.metadata()
        for name in trained & tensors.keys():
            tensors[name] = _updated(name, tensors[name], adapter)
        missing -= tensors.keys()
        save_file(tensors, folder / file.name, metadata=about)
    if missing:
        raise InvalidRequest(f"{min(missing)} was trained, and {base.name} has no such weight of its own to put it in")
    for index in base.glob(f"*{INDEX}"):
        shutil.copyfile(index, folder / index.name)
    add_rest(base, folder)


def add_rest(base: Path, folder: Path) -> None:
    """Copy what `folder` lacks of `base` beside weights: the tokenizer, the configurations, the licence."""
    for file in base.iterdir():
        is_weights = file.name.endswith((WEIGHTS, INDEX, ".bin", ".gguf"))
        if file.is_file() and not is_weights and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def _updated(name: str, weight: torch.Tensor, adapter: PeftAdapter) -> torch.Tensor:
    delta = torch.from_numpy(adapter.updates[name.removesuffix(".weight")].delta())
    delta = delta.T if adapter.transposed else delta
    if weight.shape != delta.shape:
        raise InvalidRequest(f"the update of {name} is {tuple(delta.shape)}, and the weight {tuple(weight.shape)}")
    return (weight.float() + delta).to(weight.dtype)
