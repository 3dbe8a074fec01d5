"""The architectures of GGUF files that can be trained: those of which it is known how their weights are laid out."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moc.kernel.errors import InvalidRequest

ROPE_FACTORS = "rope_freqs.weight"
_WHOLE = frozenset({"token_embd.weight", "output.weight", "output_norm.weight"})
_LAYER = ("attn_norm", "attn_output", "ffn_norm", "ffn_down", "ffn_up")
_SPLIT = ("attn_q", "attn_k", "attn_v", "ffn_gate")
_NORMS = ("attn_q_norm", "attn_k_norm")
_POST = ("post_attention_norm", "post_ffw_norm")
_LAYER_OF = re.compile(r"blk\.\d+\.(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """`layer` are the weights of a layer, `biases` those of them that have one, too; `whole` what it has besides."""

    layer: tuple[str, ...]
    biases: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    interleaved: bool = False
    norm_offset: float = 0.0

    def has(self, tensor: str) -> bool:
        """Whether a file of this layout has such a tensor."""
        of_layer = _LAYER_OF.fullmatch(tensor)
        if of_layer is None:
            return tensor in _WHOLE or tensor in self.whole
        name, _, kind = of_layer[1].rpartition(".")
        return name in {"weight": self.layer, "bias": self.biases}.get(kind, ())


_LAYOUTS = {
    "gemma2": _Layout(layer=(*_LAYER, *_SPLIT, *_POST), norm_offset=1.0),
    "gemma3": _Layout(layer=(*_LAYER, *_SPLIT, *_POST, *_NORMS), norm_offset=1.0),
    "llama": _Layout(layer=(*_LAYER, *_SPLIT), interleaved=True, whole=(ROPE_FACTORS,)),
    "phi3": _Layout(layer=(*_LAYER, "attn_qkv")),
    "qwen2": _Layout(layer=(*_LAYER, *_SPLIT), biases=("attn_q", "attn_k", "attn_v")),
    "qwen3": _Layout(layer=(*_LAYER, *_SPLIT, *_NORMS)),
}
"""Each is held against Transformers and llama.cpp by its log-probabilities; add none without that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How the file has what Transformers has.

    `interleaved`: the two halves of a head's queries and keys, which are rotated together, alternate row by row.
    `norm_offset` is added to the weights of norms.
    """

    name: str
    layers: int
    heads: int
    heads_kv: int
    interleaved: bool
    norm_offset: float

    @classmethod
    def of(cls, values: Mapping[str, Any], tensors: Iterable[str]) -> "Architecture":
        """That of a file with these entries in its header, and these tensors; InvalidRequest if it cannot be trained.

        What Transformers would not read of it, such as a scale of its positions, would be missing in training.
        """
        name = values.get("general.architecture")
        layout = _LAYOUTS.get(str(name))
        if layout is None:
            raise InvalidRequest(
                f"how {str(name)[:100]!r} lays out its weights is not known, and guessing would make a wrong model: "
                f"GGUF files of {', '.join(sorted(_LAYOUTS))} can be trained; of others take the safetensors, "
                "with the runtime transformers"
            )
        if values.get("split.count", 0) > 1:
            raise InvalidRequest(
                "a GGUF file in several parts cannot be trained; join them with llama-gguf-split first"
            )
        strange = next((tensor for tensor in tensors if not layout.has(tensor)), None)
        if strange is None and values.get(f"{name}.rope.scaling.type", "none") != "none":
            strange = f"{name}.rope.scaling.type"
        if strange is not None:
            raise InvalidRequest(
                f"the GGUF file has {strange[:100]}, which training would not heed; take its safetensors, with the "
                "runtime transformers"
            )
        heads = values.get(f"{name}.attention.head_count")
        heads_kv = values.get(f"{name}.attention.head_count_kv", heads)
        layers = values.get(f"{name}.block_count")
        if not (isinstance(layers, int) and isinstance(heads, int) and isinstance(heads_kv, int)):
            raise InvalidRequest(
                "a GGUF file whose layers differ in their heads cannot be trained; take its safetensors"
            )
        return cls(
            name=str(name),
            layers=layers,
            heads=heads,
            heads_kv=heads_kv,
            interleaved=layout.interleaved,
            norm_offset=layout.norm_offset,
        )
