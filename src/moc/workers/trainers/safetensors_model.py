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


def _updated(name: str, weight: torch.Tensor, adapter: PeftAdapter) -> torch.Tensor:
    delta = torch.from_numpy(adapter.updates[name.removesuffix(".weight")].delta())
    delta = delta.T if adapter.transposed else delta
    return (weight.float() + delta).to(weight.dtype)
