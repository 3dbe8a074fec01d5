"""The numbers of a `config.json` that decide how much a Transformers model needs beside its weights."""

from pathlib import Path
from typing import Any

import msgspec

CONFIG_BYTES_MAX = 32 * 2**20
CAUSAL = ("ForCausalLM", "LMHeadModel")


class TransformersConfig:
    """A configuration; 0 for what it does not say, and for all of it when it is none."""

    def __init__(self, folder: Path) -> None:
        given = _read(folder / "config.json")
        inner = given.get("text_config")
        self._given: dict[str, Any] = {**given, **inner} if isinstance(inner, dict) else given
        architectures = given.get("architectures")
        names = architectures if isinstance(architectures, list) else []
        self.is_causal = any(str(name).endswith(CAUSAL) for name in names)
        self.width = self._first("hidden_size", "n_embd", "d_model")
        self.feed_forward = self._first("intermediate_size", "n_inner", "ffn_dim") or 4 * self.width
        self.positions = self._first("max_position_embeddings", "n_positions")
        self.layers = self._first("num_hidden_layers", "n_layer")
        self.vocabulary = self._first("vocab_size")

    @property
    def cache_elements_per_token(self) -> int:
        """Numbers in the keys and values of one token in all layers."""
        heads = self._first("num_attention_heads", "n_head")
        size = self._first("head_dim") or (self.width // heads if heads else 0)
        return 2 * self.layers * (self._first("num_key_value_heads") or heads) * size

    def _first(self, *names: str) -> int:
        found = (self._given.get(name) for name in names)
        return next((value for value in found if type(value) is int and value > 0), 0)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            return {}
        found: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return found
