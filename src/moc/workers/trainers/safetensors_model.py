"""A folder of Transformers' with low-rank updates in its weights."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from moc.kernel.errors import InvalidRequest
from moc.models.results import link
from moc.workers.trainers.peft_adapter import PeftAdapter

WEIGHTS = ".safetensors"
INDEX = ".safetensors.index.json"
CONFIG = "config.json"
_PRECISIONS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def write_merged(base: Path, folder: Path, adapter: PeftAdapter) -> None:
    """Write `base` with `adapter` in its weights, in their own precision; in memory is one of its files at a time.

    InvalidRequest when a weight it belongs to is not there or does not fit.
    """
    check_fit(base, adapter)
    folder.mkdir()
    trained = {f"{module}.weight" for module in adapter.updates}
    for file in _files(base):
        with safe_open(file, framework="pt") as weights:
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 - it is no mapping
            about = weights.metadata()
        for name in trained & tensors.keys():
            tensors[name] = _updated(name, tensors[name], adapter)
        save_file(tensors, folder / file.name, metadata=about)
    for index in base.glob(f"*{INDEX}"):
        shutil.copyfile(index, folder / index.name)
    add_rest(base, folder)


def write_trained(base: Path, folder: Path, trained: Path) -> None:
    """Write the folder `trained`, all of whose weights were trained, in the precision of `base`.

    Files that are in it already are linked; in memory is one of the others at a time.
    """
    shutil.copytree(trained, folder, copy_function=link)
    precisions = _precisions(base)
    usual, _ = Counter(precisions.values()).most_common(1)[0]
    for file in _files(folder):
        with safe_open(file, framework="pt") as weights:
            names, about = list(weights.keys()), weights.metadata()
            if all(_precision(weights, name) is precisions.get(name, usual) for name in names):
                continue
            tensors = {name: weights.get_tensor(name).to(precisions.get(name, usual)) for name in names}
        file.unlink()
        save_file(tensors, file, metadata=about)
    _rewrite(folder / CONFIG, dtype=str(usual).removeprefix("torch."))
    add_rest(base, folder)


def check_fit(base: Path, adapter: PeftAdapter) -> None:
    """InvalidRequest unless each update has a weight of its shape in `base`; only the heads of the files are read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _files(base):
        with safe_open(file, framework="pt") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    for module, update in sorted(adapter.updates.items()):
        name, shape = f"{module}.weight", update.shape[::-1] if adapter.transposed else update.shape
        if name not in shapes:
            raise InvalidRequest(f"{name} was trained, and {base.name} has no such weight of its own to put it in")
        if shapes[name] != shape:
            raise InvalidRequest(f"the update of {name} is {shape}, and the weight {shapes[name]}")


def add_rest(base: Path, folder: Path) -> None:
    """Copy what `folder` lacks of `base` beside weights: the tokenizer, the configurations, the licence."""
    for file in base.iterdir():
        is_weights = file.name.endswith((WEIGHTS, INDEX, ".bin", ".gguf"))
        if file.is_file() and not is_weights and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def _files(base: Path) -> list[Path]:
    return sorted(base.glob(f"model*{WEIGHTS}")) or sorted(base.glob(f"*{WEIGHTS}"))


def _precisions(base: Path) -> dict[str, torch.dtype]:
    """That of each weight; what is stored in eight bits or less is no base of a training."""
    found: dict[str, torch.dtype] = {}
    for file in _files(base):
        with safe_open(file, framework="pt") as weights:
            found |= {name: _precision(weights, name) for name in weights.keys()}  # noqa: SIM118 - it is no mapping
    return found


def _precision(weights: Any, name: str) -> torch.dtype:
    return _PRECISIONS.get(weights.get_slice(name).get_dtype(), torch.float32)


def _rewrite(path: Path, **changes: Any) -> None:
    """Put `changes` into a file of JSON, which other names may have: those keep what is there."""
    values = {**json.loads(path.read_bytes()), **changes}
    path.unlink()
    path.write_text(f"{json.dumps(values, indent=2)}\n")


def _updated(name: str, weight: torch.Tensor, adapter: PeftAdapter) -> torch.Tensor:
    delta = torch.from_numpy(adapter.updates[name.removesuffix(".weight")].delta())
    delta = delta.T if adapter.transposed else delta
    return (weight.float() + delta).to(weight.dtype)
