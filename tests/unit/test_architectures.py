"""Which GGUF files can be trained, and what is said of the others."""

from typing import Any

import pytest

from moc.kernel.errors import InvalidRequest
from moc.learning.architectures import Architecture

VALUES: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
}
TENSORS = ["token_embd.weight", "blk.0.attn_q.weight", "blk.1.ffn_gate.weight", "output_norm.weight"]


def test_it_is_known_how_a_file_has_its_weights() -> None:
    found = Architecture.of(VALUES, TENSORS)
    assert (found.name, found.layers, found.heads, found.heads_kv, found.interleaved) == ("llama", 2, 4, 2, True)
    Architecture.of(VALUES, [*TENSORS, "rope_freqs.weight"])
    alone = {key: value for key, value in VALUES.items() if not key.endswith("_kv")}
    assert Architecture.of(alone, TENSORS).heads_kv == 4


@pytest.mark.parametrize(
    ("values", "tensors", "why"),
    [
        ({"general.architecture": "falcon"}, [], "'falcon'.*gemma2, gemma3, llama, phi3, qwen2, qwen3 can be"),
        ({"split.count": 3}, [], "several parts"),
        ({"llama.attention.head_count_kv": [1, 2]}, [], "layers differ"),
        ({"llama.rope.scaling.type": "yarn"}, [], r"rope\.scaling\.type"),
        ({}, ["rope_factors_long.weight"], "rope_factors_long.weight, which training would not heed"),
        ({}, ["blk.0.attn_q.bias"], r"attn_q\.bias"),
        ({}, ["blk.0.ffn_gate_exps.weight"], "ffn_gate_exps"),
    ],
)
def test_what_training_would_not_heed_is_refused(values: dict[str, Any], tensors: list[str], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        Architecture.of(VALUES | values, [*TENSORS, *tensors])
