"""Tiny language models in both formats: a Transformers folder, and a GGUF file with the same random weights.

The vocabulary is the beginning of SmolLM2's, with its chat template.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import torch
import transformers

from tests.models import smollm2_path

TERMS = 1024
_PLAIN = {
    "vocab_size": TERMS,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 1024}
_CONFIGS: Mapping[str, Any] = {
    "llama": lambda given: transformers.LlamaConfig(**given),
    "qwen2": lambda given: transformers.Qwen2Config(**given),
    "qwen3": lambda given: transformers.Qwen3Config(**given),
    "phi3": lambda given: transformers.Phi3Config(**given),
    "gemma2": lambda given: transformers.Gemma2Config(**{**_GEMMA, **given}),
    "gemma3": lambda given: transformers.Gemma3TextConfig(**{**_GEMMA, **given}),
}


def tiny_gguf(folder: Path, architecture: str = "llama", *, seed: int = 0, **config: Any) -> Path:
    """Make `folder`/model.gguf, and `folder`/transformers with the same; the path of the GGUF file."""
    made = _CONFIGS[architecture]({**_PLAIN, **config})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" in name:  # all ones, or zeros, would hide what is done to them
                weights.add_(torch.randn_like(weights) * 0.1)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.gguf"
    _write(path, architecture, model)
    model.save_pretrained(folder / "transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=path.name)
    tokenizer.save_pretrained(folder / "transformers")
    return path


def network_of(base: Path) -> Any:
    """The same as a network, of a GGUF file made here."""
    return transformers.AutoModelForCausalLM.from_pretrained(base.parent / "transformers", dtype=torch.float32).eval()


def adapted(network: Any, folder: Path, *, seed: int = 1, size: float = 0.05, **config: Any) -> Any:
    """`network` with a random adapter, saved in `folder`/output as a training leaves it."""
    given = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    torch.manual_seed(seed)
    made = peft.get_peft_model(network, peft.LoraConfig(**given))
    with torch.no_grad():
        for name, weights in made.named_parameters():
            if "lora_B" in name:
                weights.normal_(0, size)
    made.save_pretrained(folder / "output" / "adapter")
    return made.eval()


def task_of(base: Path, *, method: str = "lora", result: str = "adapter", **more: Any) -> Mapping[str, Any]:
    """What a training on it is told."""
    about = {"runtime": "llama_cpp", "path": str(base), **more}
    return {"base": about, "hyperparameters": {"method": method}, "result": result}


def _write(path: Path, architecture: str, model: Any) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    _describe(writer, model.config)
    _tokenizer(writer)
    layers = model.config.num_hidden_layers
    (named,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(named, layers)
    heads, heads_kv = model.config.num_attention_heads, model.config.num_key_value_heads
    for name, weights in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        told = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert told is not None, name
        array = weights.numpy()
        if architecture == "llama" and ("attn_q." in told or "attn_k." in told):
            array = interleaved(array, heads if "attn_q." in told else heads_kv)
        if architecture.startswith("gemma") and "norm" in told:
            array = array + 1
        writer.add_tensor(told, np.ascontiguousarray(array))
    if model.config.rope_parameters.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(model.config.rope_parameters, model.config.head_dim))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rope_factors(rope: Mapping[str, Any], size: int) -> np.ndarray[Any, Any]:
    """By what each frequency is divided, as llama.cpp's converter makes it of a Llama since 3.1."""
    length = rope["original_max_position_embeddings"]
    shortest, longest = length / rope["high_freq_factor"], length / rope["low_freq_factor"]
    found = []
    for place in range(0, size, 2):
        wave = 2 * np.pi * rope["rope_theta"] ** (place / size)
        share = (length / wave - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        between = 1 / ((1 - share) / rope["factor"] + share)
        found.append(1 if wave < shortest else rope["factor"] if wave > longest else between)
    return np.array(found, np.float32)


def interleaved(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Halves of each head, as Transformers rotates them, in pairs, as llama.cpp does for this architecture."""
    size = rows.shape[0] // heads
    order = [
        head * size + half * size // 2 + pair for head in range(heads) for pair in range(size // 2) for half in (0, 1)
    ]
    return rows[order]


def _describe(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(size)
    writer.add_key_length(size)
    writer.add_value_length(size)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _tokenizer(writer: gguf.GGUFWriter) -> None:
    """The first terms of SmolLM2, and the rules that make them."""
    tokens, kinds, merges, template = _vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)


@functools.cache
def _vocabulary() -> tuple[list[str], list[int], list[str], str]:
    fields = gguf.GGUFReader(smollm2_path()).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()[:TERMS]
    known = set(tokens)
    merges = [rule for rule in fields["tokenizer.ggml.merges"].contents() if rule.replace(" ", "") in known]
    kinds = fields["tokenizer.ggml.token_type"].contents()[:TERMS]
    return tokens, kinds, merges, fields["tokenizer.chat_template"].contents()
