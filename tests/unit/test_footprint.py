"""What a model will need, read from files that may say anything."""

import io
import json
import os
import struct
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from moc.models.footprint import CUDA_CONTEXT_BYTES, ENGINE_BYTES, MIB, estimate
from moc.models.headers.gguf import read_gguf
from moc.models.headers.onnx import read_onnx
from moc.models.headers.reader import BadHeader, Reader
from moc.models.headers.safetensors import read_safetensors
from tests.headers import field, gguf, safetensors

TOKENS = [f"t{number}" for number in range(1000)]
LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 10,
    "llama.embedding_length": 256,
    "llama.feed_forward_length": 512,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.merges": ["a b", "c d"],
    "tokenizer.chat_template": "x" * 5000,
}
TENSORS = {"token_embd.weight": ((256, 1000), 8, 4000), "blk.0.ffn_up.weight": ((256, 512), 3, 8000)}
PER_TOKEN = 10 * 2 * (32 + 32) * 2
"""Layers, key-value heads, key and value of a head, bytes."""


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def llama(folder: Path, options: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, int]:
    """The parts of an estimate for the model above, with some entries changed."""
    entries = LLAMA | {key.replace("__", "."): value for key, value in changes.items()}
    path = written(folder, "model.gguf", gguf(entries, TENSORS))
    found = estimate(path, "llama_cpp", options or {})
    assert found.how == "estimated", found.why
    assert found.bytes == sum(found.parts.values())
    return found.parts


# GGUF


def test_weights_are_what_lies_behind_the_header(tmp_path: Path) -> None:
    parts = llama(tmp_path)
    assert parts["weights"] == 4000 + 8000
    assert parts["engine"] == ENGINE_BYTES["llama_cpp"]


@pytest.mark.parametrize(
    ("context", "slots", "cells"),
    [(4096, 4, 4096), (512, 1, 512), (512, 4, 4 * 256), (1000, 3, 3 * 512), (8192, 8, 8192), (64, 1, 256)],
)
def test_the_cache_holds_the_context_rounded_up_for_each_slot(
    tmp_path: Path, context: int, slots: int, cells: int
) -> None:
    assert llama(tmp_path, {"context": context, "slots": slots})["cache"] == cells * PER_TOKEN


def test_the_cache_follows_the_head_sizes_the_file_names(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"llama__attention__key_length": 64, "llama__attention__value_length": 16}
    assert llama(tmp_path, **sizes)["cache"] == 4096 * 10 * 2 * (64 + 16) * 2


def test_layers_without_attention_have_no_cache(tmp_path: Path) -> None:
    assert llama(tmp_path, llama__attention__head_count_kv=[2, 0, 0, 2])["cache"] == 4096 * 4 * (32 + 32) * 2
    assert llama(tmp_path, llama__attention__causal=False)["cache"] == 0


def test_a_recurrent_model_keeps_a_state_for_each_slot(tmp_path: Path) -> None:
    ssm: dict[str, Any] = {"llama__ssm__inner_size": 512, "llama__ssm__state_size": 16, "llama__ssm__conv_kernel": 4}
    parts = llama(tmp_path, {"slots": 3}, llama__attention__head_count_kv=[0] * 10, **ssm)
    assert parts["cache"] == 3 * 10 * 4 * (512 * 16 + 4 * 512)


def test_an_embedding_model_keeps_every_tokens_logits(tmp_path: Path) -> None:
    tokens: dict[str, Any] = {"tokenizer__ggml__tokens": ["t"] * 30_000}
    more = llama(tmp_path, {"embeddings": True}, **tokens)["compute"] - llama(tmp_path, **tokens)["compute"]
    assert more == pytest.approx(4 * 512 * 30_000, rel=0.1)


@pytest.mark.parametrize(("kind", "rows", "again"), [(2, 512, 8000), (12, 512, 8000), (2, 511, 0), (3, 512, 0)])
def test_some_formats_are_laid_out_anew(tmp_path: Path, kind: int, rows: int, again: int) -> None:
    path = written(tmp_path, "model.gguf", gguf(LLAMA, {"blk.0.ffn_up.weight": ((256, rows), kind, 8000)}))
    assert estimate(path, "llama_cpp", {}).parts["repacked"] == again


def test_the_parts_of_a_split_model_are_added_up(tmp_path: Path) -> None:
    written(tmp_path, "big-00001-of-00002.gguf", gguf(LLAMA, {"a": ((1,), 0, 320)}))
    written(tmp_path, "big-00002-of-00002.gguf", gguf({}, {"b": ((1,), 0, 640)}))
    for path in (tmp_path, tmp_path / "big-00001-of-00002.gguf"):
        assert estimate(path, "llama_cpp", {}).parts["weights"] == 960


def test_adapters_count(tmp_path: Path) -> None:
    adapter = written(tmp_path, "a.bin", bytes(777))
    assert llama(tmp_path, {"lora": [{"path": str(adapter), "scale": 1.0}, {"path": 3}, "x"]})["adapters"] == 777


@pytest.mark.parametrize("options", [{"context": "many", "slots": None}, {"context": -5, "slots": 10**9}, {"lora": 3}])
def test_options_the_engine_would_refuse_are_no_error(tmp_path: Path, options: dict[str, Any]) -> None:
    assert llama(tmp_path, options)["cache"] > 0


def test_on_cuda_the_context_takes_the_place_of_the_engine(tmp_path: Path) -> None:
    path = written(tmp_path, "model.gguf", gguf(LLAMA, TENSORS))
    parts = estimate(path, "llama_cpp", {}, device_kind="cuda").parts
    assert parts["engine"] == CUDA_CONTEXT_BYTES
    assert "vocabulary" not in parts


# ONNX


def onnx_model(path: Path, *, external: bool = False) -> Path:
    weights = np.ones((256, 256), np.float32)
    inside = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(weights[:1], "value"))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), inside, helper.make_node("Add", ["y", "c"], ["z"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 256]) for name in ("x", "z")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=2048)
    return path


def test_onnx_weights_inside_the_file_are_held_twice(tmp_path: Path) -> None:
    found = read_onnx(onnx_model(tmp_path / "model.onnx"))
    assert found.embedded_bytes == pytest.approx(4 * 257 * 256, abs=100)
    parts = estimate(tmp_path / "model.onnx", "onnx", {}).parts
    assert parts["weights"] == parts["packed"] == found.embedded_bytes


def test_onnx_weights_beside_the_file_are_found(tmp_path: Path) -> None:
    found = read_onnx(onnx_model(tmp_path / "model.onnx", external=True))
    assert found.external_bytes == (tmp_path / "weights.bin").stat().st_size >= 4 * 256 * 256
    assert estimate(tmp_path, "onnx", {}).parts["weights"] >= 4 * 257 * 256


def external(name: bytes) -> bytes:
    entry = field(13, field(1, b"location") + field(2, name))
    return field(7, field(5, entry))


def test_onnx_weights_elsewhere_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "secret", bytes(10))
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (b"../secret", str(tmp_path / "secret").encode()):
        path = written(folder, "model.onnx", external(name))
        with pytest.raises(BadHeader, match="outside its folder"):
            read_onnx(path)
    with pytest.raises(BadHeader, match="without a name"):
        read_onnx(written(folder, "model.onnx", external(b"a\0b")))


def test_graphs_within_graphs_end_somewhere(tmp_path: Path) -> None:
    payload = b""
    for _ in range(50):
        payload = field(1, field(5, field(6, payload)))
    with pytest.raises(BadHeader, match="deep"):
        read_onnx(written(tmp_path, "model.onnx", field(7, payload)))


# safetensors


def test_safetensors_are_added_up_by_dtype(tmp_path: Path) -> None:
    path = written(tmp_path, "model.safetensors", safetensors({"a": ("F32", 400), "b": ("F32", 40), "c": ("I64", 8)}))
    assert read_safetensors(path) == {"F32": 440, "I64": 8}


def test_a_cast_changes_what_floating_weights_take(tmp_path: Path) -> None:
    written(tmp_path, "model-00001-of-00002.safetensors", safetensors({"a": ("F32", 400), "i": ("I64", 80)}))
    written(tmp_path, "model-00002-of-00002.safetensors", safetensors({"b": ("BF16", 100)}))
    written(tmp_path, "consolidated.safetensors", safetensors({"all": ("F32", 4000)}))
    for dtype, expected in ((None, 580), ("float32", 680), ("bfloat16", 380), ("auto", 580)):
        options = {} if dtype is None else {"dtype": dtype}
        assert estimate(tmp_path, "transformers", options).parts["weights"] == expected


TINY = {"hidden_size": 64, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 4}


def transformers(folder: Path, config: dict[str, Any], **options: Any) -> dict[str, int]:
    """The parts of an estimate for 400 bytes of weights with this configuration."""
    written(folder, "model.safetensors", safetensors({"a": ("BF16", 300), "b": ("F32", 100)}))
    written(folder, "config.json", json.dumps(config).encode())
    return estimate(folder, "transformers", options).parts


def test_what_generates_has_a_cache_for_its_context(tmp_path: Path) -> None:
    causal = {**TINY, "architectures": ["LlamaForCausalLM"]}
    per_token = 2 * 3 * 64 * 2
    assert transformers(tmp_path, causal)["cache"] == 4096 * per_token
    assert transformers(tmp_path, causal, context=1000, slots=3, dtype="float32")["cache"] == 999 * per_token * 2
    assert transformers(tmp_path, causal | {"num_key_value_heads": 2})["cache"] == 4096 * per_token // 2
    assert transformers(tmp_path, causal | {"head_dim": 32})["cache"] == 4096 * per_token * 2
    assert transformers(tmp_path, causal | {"max_position_embeddings": 100})["cache"] == 2 * 100 * per_token
    assert transformers(tmp_path, {"architectures": ["XForCausalLM"], "text_config": TINY})["cache"] == 4096 * per_token
    assert transformers(tmp_path, causal, task="embeddings")["cache"] == 0
    assert transformers(tmp_path, TINY)["cache"] == 0
    assert transformers(tmp_path, TINY, task="completion")["cache"] > 0


def test_activations_are_counted_for_the_context(tmp_path: Path) -> None:
    assert transformers(tmp_path, TINY, context=512)["compute"] == 512 * (8 * 100 + 12 * 64) * 2


@pytest.mark.parametrize("config", [b"", b"[1]", b'{"hidden_size": "x", "num_hidden_layers": -1, "text_config": 3}'])
def test_without_a_configuration_the_weights_are_left(tmp_path: Path, config: bytes) -> None:
    written(tmp_path, "model.safetensors", safetensors({"a": ("F32", 400)}))
    written(tmp_path, "config.json", config)
    parts = estimate(tmp_path, "transformers", {}).parts
    assert (parts["weights"], parts["cache"], parts["compute"]) == (400, 0, 0)


# whatever else there is


def test_a_python_model_needs_its_process(tmp_path: Path) -> None:
    found = estimate(written(tmp_path, "model.py", b"class Model: ..."), "python", {})
    assert found.parts == {"engine": ENGINE_BYTES["python"]}


@pytest.mark.parametrize("runtime", ["llama_cpp", "onnx", "transformers", "another"])
def test_files_that_say_nothing_count_by_their_size(tmp_path: Path, runtime: str) -> None:
    written(tmp_path, "a.bin", bytes(1000))
    found = estimate(tmp_path, runtime, {})
    assert (found.how, found.parts["files"]) == ("file size", 1000)
    assert found.why


@pytest.mark.parametrize("runtime", ["llama_cpp", "onnx", "transformers", "python", "another"])
def test_of_files_that_are_not_there_the_engine_is_left(tmp_path: Path, runtime: str) -> None:
    found = estimate(tmp_path / "gone.bin", runtime, {})
    assert set(found.parts) <= {"files", "engine"}
    assert found.bytes == found.parts["engine"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(BadHeader, match="not a regular file"):
        read_gguf(tmp_path / "model.gguf")


# files that lie

HUGE = 2**63 - 1
LYING_GGUF = {
    "tensors": b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0),
    "entries": b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE) + bytes(100),
    "key": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE) + bytes(100),
    "text": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IQ", 8, HUGE) + bytes(100),
    "list": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, HUGE) + bytes(100),
    "numbers": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, HUGE) + bytes(100),
    "listed text": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQQ", 9, 8, 2, HUGE) + bytes(100),
    "list of lists": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1) + bytes(100),
    "type": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99) + bytes(100),
    "version": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(100),
    "dimensions": b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<I", 2**31) + bytes(100),
    "offset": b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 4, 0, HUGE) + bytes(100),
    "empty": b"",
    "cut": gguf(LLAMA, TENSORS)[:300],
}


@pytest.mark.parametrize("what", LYING_GGUF)
def test_lying_gguf_files_are_refused_at_once(tmp_path: Path, what: str) -> None:
    path = written(tmp_path, "model.gguf", LYING_GGUF[what])
    tracemalloc.start()
    try:
        with pytest.raises(BadHeader):
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        safetensors({}, length=HUGE),
        safetensors({"a": ("F32", 40)}, length=3),
        struct.pack("<Q", 20) + b'{"a": [[[[[[[[[[[[[[[',
        safetensors({"a": ("F32", 40)})[:-1],
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 62) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,9999999]}}',
    ],
)
def test_lying_safetensors_files_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadHeader):
        read_safetensors(written(tmp_path, "model.safetensors", content))


def test_a_file_of_too_many_parts_is_given_up() -> None:
    reader = Reader(io.BytesIO(bytes(1000)), "model", 1000, reads_max=50)
    reader.skip_texts(45)
    for _ in range(5):
        reader.skip(1)
    with pytest.raises(BadHeader, match="model: more than 50 parts, at byte 365"):
        reader.u32()


def test_what_a_header_claims_stays_a_number_others_can_carry(tmp_path: Path) -> None:
    keys = ("llama__block_count", "llama__embedding_length", "llama__attention__key_length")
    claims: dict[str, Any] = dict.fromkeys(keys, 2**32 - 1)
    assert sum(llama(tmp_path, **claims).values()) < 2**63


VALID = {
    ".gguf": gguf(LLAMA | {"tokenizer.ggml.tokens": TOKENS[:9]}, TENSORS),
    ".onnx": field(7, field(5, field(13, field(1, b"location") + field(2, b"x"))) + field(1, field(5, field(6, b"")))),
    ".safetensors": safetensors({"a": ("F32", 40), "b": ("I64", 8)}),
}
RUNTIMES = {".gguf": "llama_cpp", ".onnx": "onnx", ".safetensors": "transformers"}


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of one kind: anything at all, or a good one with some bytes changed and the end cut off."""
    suffix = draw(st.sampled_from(sorted(VALID)))
    if draw(st.booleans()):
        return suffix, draw(st.sampled_from([b"", b"GGUF\x03\0\0\0"])) + draw(st.binary(max_size=400))
    content = bytearray(VALID[suffix])
    for at, value in draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6)):
        content[at % len(content)] = value
    return suffix, bytes(content[: draw(st.integers(0, len(content)))])


@given(damaged())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_says_there_is_an_estimate(tmp_path: Path, file: tuple[str, bytes]) -> None:
    suffix, content = file
    path = written(tmp_path, f"model{suffix}", content)
    written(tmp_path, "x", bytes(5))
    began = time.perf_counter()
    assert estimate(path, RUNTIMES[suffix], {}).bytes >= 28 * MIB
    assert time.perf_counter() - began < 1
