"""What was trained, as an engine can serve it; the last step of a training.

A training leaves `output/adapter` as PEFT saves it, or `output/model` as Transformers does. Made of it is one of
`output/adapter.gguf`, `output/model.gguf` and `output/merged`, as the runtime of the base takes it.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from moc.kernel.errors import InvalidRequest
from moc.workers.trainers.gguf_adapter import tensors_of, write_gguf_adapter
from moc.workers.trainers.gguf_layout import Layout
from moc.workers.trainers.gguf_model import Array, Change, write_gguf_model
from moc.workers.trainers.peft_adapter import Update, read_adapter
from moc.workers.trainers.safetensors_model import WEIGHTS, check_fit, write_merged, write_trained

LLAMA_CPP = "llama_cpp"
FULL = "full"


def export(task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Make what is to be served in `folder`/output, whole or not at all: what it is, where (in `folder`), and its size.

    `kind` is `adapter` or `merged`; the runtime transformers has no adapters, so there it is always `merged`. May be
    done again. InvalidRequest when what was trained cannot be served.
    """
    base, output = task["base"], folder / "output"
    full = task["hyperparameters"]["method"] == FULL
    start, adapters = Path(base["path"]), [*base.get("adapters", ())]
    if base["runtime"] != LLAMA_CPP:
        kind, made = "merged", output / "merged"
        _whole(made, partial(_full_folder, start, output) if full else partial(_merged_folder, start, output))
    elif full:
        kind, made = "merged", output / "model.gguf"
        _whole(made, partial(_full_gguf, start, output))
    elif task["result"] == "merged":
        kind, made = "merged", output / "model.gguf"
        _whole(made, partial(_merged_gguf, start, output, adapters))
    else:
        kind, made = "adapter", output / "adapter.gguf"
        _whole(made, partial(write_gguf_adapter, read_adapter(output / "adapter"), start))
    return {"kind": kind, "path": str(made.relative_to(folder)), "size_bytes": _size(made)}


def check_export(task: Mapping[str, Any], adapter: Path) -> None:
    """InvalidRequest when an adapter such as the one in that folder could not be exported, whatever it learns."""
    base = Path(task["base"]["path"])
    try:
        if task["base"]["runtime"] == LLAMA_CPP:
            tensors_of(read_adapter(adapter), Layout(base))
        else:
            check_fit(base, read_adapter(adapter))
    except InvalidRequest as error:
        targets = task["hyperparameters"]["lora_targets"]
        raise InvalidRequest(
            f"what `lora_targets` ({targets}) has trained could not be served: {error.message}"
        ) from None


def _full_folder(base: Path, output: Path, path: Path) -> None:
    write_trained(base, path, output / "model")


def _merged_folder(base: Path, output: Path, path: Path) -> None:
    write_merged(base, path, read_adapter(output / "adapter"))


def _merged_gguf(base: Path, output: Path, earlier: list[Mapping[str, Any]], path: Path) -> None:
    """With the adapters that the base was served with already."""
    layout, updates = Layout(base), dict[str, list[Update]]()
    adapters = [(read_adapter(Path(one["peft"])), float(one["scale"])) for one in earlier]
    for adapter, scale in [*adapters, (read_adapter(output / "adapter"), 1.0)]:
        for tensor, update in tensors_of(adapter, layout).items():
            updates.setdefault(tensor, []).append(Update(update.a, update.b, update.scale * scale))
    write_gguf_model(base, path, {tensor: partial(_added, of_it) for tensor, of_it in updates.items()})


def _added(updates: list[Update], weight: Array) -> Array:
    for update in updates:
        weight = weight + update.delta()
    return weight


def _full_gguf(base: Path, output: Path, path: Path) -> None:
    layout, changes = Layout(base), dict[str, Change]()
    for file in sorted((output / "model").glob(f"*{WEIGHTS}")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no mapping
                tensor = layout.name_of(name)
                changes[tensor] = partial(_trained, layout, tensor, file, name)
    write_gguf_model(base, path, changes)


def _trained(layout: Layout, tensor: str, file: Path, name: str, before: Array) -> Array:
    with safe_open(file, framework="pt") as weights:
        trained: Array = weights.get_tensor(name).float().numpy()
    if trained.shape != before.shape:
        raise InvalidRequest(f"{name} became {trained.shape} where {tensor} is {before.shape}")
    return np.asarray(layout.weight_of(tensor, trained), np.float32)


def _whole(path: Path, write: Callable[[Path], None]) -> None:
    """Have `path` written aside, and put it in place when all of it is on disk."""
    aside = path.with_name(f".new-{path.name}")
    _delete(aside)
    try:
        write(aside)
        for file in _files(aside):
            _sync(file)
        _sync(aside)
        _delete(path)
        aside.replace(path)
        _sync(path.parent)
    except BaseException:
        _delete(aside)
        raise


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
