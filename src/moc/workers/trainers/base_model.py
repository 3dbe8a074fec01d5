"""What a training starts from: a network and its tokenizer, out of a GGUF file or a folder of safetensors.

A GGUF file is dequantised once and kept beside others in a cache, as a folder with full weights.
"""

import fcntl
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.tuners.lora import LoraLayer

from moc.kernel.errors import InvalidRequest
from moc.workers.trainers.checkpoints import seal

GGUF = "llama_cpp"


def load_base(base: Mapping[str, Any], cache: Path, *, dtype: torch.dtype) -> tuple[Any, Any]:
    """The network, with the adapters it is served with in its weights, and its tokenizer."""
    folder = transformers_folder(base, cache)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    template = base.get("chat_template")
    if template:
        tokenizer.chat_template = template
    adapters = base.get("adapters") or ()
    network = _network(folder, torch.float32 if adapters else dtype)
    return _merged(network, adapters).to(dtype), tokenizer


def transformers_folder(base: Mapping[str, Any], cache: Path) -> Path:
    """The folder with the weights of a base; of a GGUF file it is made if it is not there, by one process at a time."""
    if base["runtime"] != GGUF:
        return Path(base["path"])
    made = cache / str(base["sha256"])
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{made.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():
            aside = cache / f".new-{made.name}"
            shutil.rmtree(aside, ignore_errors=True)
            _dequantise(Path(base["path"]), aside)
            seal(aside)
            aside.rename(made)
    return made


def _dequantise(file: Path, folder: Path) -> None:
    """Write a GGUF file as a folder with full weights."""
    given: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(file.parent, **given)
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **given)
    # what it was quantised as would be written into its configuration, and looked for when that is read
    del network.config.quantization_config
    network.hf_quantizer = network.quantization_method = None
    network.is_quantized = False
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _network(folder: Path, dtype: torch.dtype) -> Any:
    loading: Any = transformers.AutoModelForCausalLM
    network, found = loading.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    if found["missing_keys"]:
        raise InvalidRequest(f"the base lacks weights that a language model has, such as {min(found['missing_keys'])}")
    return network


def _merged(network: Any, adapters: Sequence[Mapping[str, Any]]) -> Any:
    for adapter in adapters:
        adapted: Any = peft.PeftModel.from_pretrained(network, adapter["peft"])
        for module in adapted.modules():
            if isinstance(module, LoraLayer):
                module.scale_layer(adapter.get("scale", 1.0))
        network = adapted.merge_and_unload()
    return network
