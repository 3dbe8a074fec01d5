"""The bases of GGUF files: each dequantised once, and kept as a folder with full weights beside the others used last.

A base has a lock of its own: whoever makes or deletes it has it alone, whoever reads it shares it. It dies with its
process, so what nobody has locked is nobody's.
"""

import fcntl
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from moc.kernel.units import Bytes
from moc.learning.job import Reason
from moc.models.headers.gguf import read_gguf
from moc.workers.trainers.assignment import Failure
from moc.workers.trainers.checkpoints import flaw, seal
from moc.workers.trainers.rope_scale import heed_rope_factors

GGUF = "llama_cpp"
KEPT = 4
"""How many bases stay, those used last."""

ASIDE = ".new-"
WEIGHTS_HELD = 2
"""How often the weights are in memory at most, in float32, while they are made: measured is 1.65."""


@contextmanager
def held(base: Mapping[str, Any], cache: Path) -> Iterator[Path]:
    """The folder with the weights of a base, which stays there for as long as this is open.

    That of a GGUF file is made if it is not there, or is not what was made.
    """
    if base["runtime"] != GGUF:
        yield Path(base["path"])
        return
    made = cache / str(base["sha256"])
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(made).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if flaw(made) is not None:  # all of it is read: it will be, and a training takes longer
            shutil.rmtree(made, ignore_errors=True)
            check_room(Path(base["path"]), psutil.virtual_memory().available)
            aside = cache / f"{ASIDE}{made.name}"
            shutil.rmtree(aside, ignore_errors=True)
            _dequantise(Path(base["path"]), aside)
            seal(aside)
            aside.rename(made)
        os.utime(made)
        fcntl.flock(lock, fcntl.LOCK_SH)
        _tidy(cache)
        yield made


def _tidy(cache: Path) -> None:
    """Delete the bases used longest ago, and what dead processes had begun, but nothing that is in use."""
    found = [path for path in cache.iterdir() if path.is_dir()]
    begun = [path for path in found if path.name.startswith(ASIDE)]
    bases = sorted((path for path in found if path not in begun), key=lambda path: path.stat().st_mtime_ns)
    for path in (*begun, *bases[:-KEPT]):
        with _lock(path).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(path, ignore_errors=True)


def _lock(path: Path) -> Path:
    """Never deleted: somebody may wait for it."""
    return path.with_name(f"{path.name.removeprefix(ASIDE)}.lock")


def check_room(file: Path, free_bytes: int) -> None:
    """Failure unless there is the main memory it takes to make full weights of a GGUF file, wherever it is trained."""
    needed = WEIGHTS_HELD * 4 * sum(math.prod(tensor.shape) for tensor in read_gguf(file).tensors)
    if needed > free_bytes:
        raise Failure(
            Reason.PROGRAM_FAILED,
            f"making full weights of {file.name} takes {Bytes(needed)} of main memory, for a GPU too, and "
            f"{Bytes(free_bytes)} are free; unload models of main memory, or train a base of the runtime transformers",
        )


def _dequantise(file: Path, folder: Path) -> None:
    """Write a GGUF file as a folder with full weights."""
    given: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(file.parent, **given)
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **given)
    heed_rope_factors(file, network.config)
    # what it was quantised as would be written into its configuration, and looked for when that is read
    del network.config.quantization_config
    network.hf_quantizer = network.quantization_method = None
    network.is_quantized = False
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
