"""What a training starts from: a network and its tokenizer, out of a GGUF file or a folder of safetensors."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.tuners.lora import LoraLayer

from moc.kernel.errors import InvalidRequest
from moc.models.headers.gguf import read_gguf
from moc.workers.trainers.base_cache import GGUF, held


def load_base(base: Mapping[str, Any], cache: Path, *, dtype: torch.dtype) -> tuple[Any, Any]:
    """The network, with the adapters it is served with in its weights, and its tokenizer."""
    with held(base, cache) as folder:
        return _load(base, folder, dtype)


def first_token(base: Mapping[str, Any], tokenizer: Any) -> int | None:
    """What the engine puts in front of all that is said to the base; None where it leaves that to the tokenizer."""
    if base["runtime"] != GGUF:
        return None
    values = read_gguf(Path(base["path"])).values
    is_sentencepiece = values.get("tokenizer.ggml.model") == "llama"
    adds = values.get("tokenizer.ggml.add_bos_token", is_sentencepiece)
    return tokenizer.bos_token_id if adds else None


def _load(base: Mapping[str, Any], folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    packed = json.loads((folder / "config.json").read_bytes()).get("quantization_config")
    if packed:
        how = packed.get("quant_method", "quantised")
        raise InvalidRequest(
            f"the base has packed weights ({how}), which cannot be trained; take the model it was made of"
        )
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    template = base.get("chat_template")
    if template:
        tokenizer.chat_template = template
    adapters = base.get("adapters") or ()
    network = _network(folder, torch.float32 if adapters else dtype)
    return _merged(network, adapters).to(dtype), tokenizer


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
