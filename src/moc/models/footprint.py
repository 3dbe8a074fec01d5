"""How much memory a model will take, estimated from its files before it was ever loaded.

An estimate errs on the high side: an engine that takes more than was set aside for it ends somebody else's
process, one that takes less is corrected by what is learned; see `footprints`. The figures below were measured
as proportional set size on x86-64 Linux, and `docs/explanation/memory.md` says how.
"""

import contextlib
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moc.models.headers.gguf import Gguf, GgufTensor, Value, read_gguf
from moc.models.headers.onnx import read_onnx
from moc.models.headers.reader import BadHeader
from moc.models.headers.safetensors import read_safetensors
from moc.models.headers.transformers import TransformersConfig

MIB = 2**20
ENGINE = "engine"
ENGINE_BYTES = {
    "llama_cpp": 36 * MIB, "onnx": 80 * MIB, "python": 33 * MIB, "transformers": 484 * MIB, "command": 40 * MIB,
}  # fmt: skip
"""A worker with its engine and no model; of a command, without the server it starts.

Of transformers, with scikit-learn installed beside it, which it then imports: 70 MiB.
"""

CUDA_CONTEXT_BYTES = 600 * MIB
"""What a process takes on a CUDA device before it holds anything: the context and the libraries' kernels."""

UBATCH_TOKENS = 512
"""llama.cpp reads prompts in pieces of this many tokens, and sizes its buffers for them."""

CELLS_PER_STEP = 256
"""llama.cpp rounds the context of a slot up to a multiple of this."""

SLOT_BYTES = MIB
TERM_BYTES = 300
"""What one token or merge rule of a vocabulary takes in llama.cpp's tables."""

CACHE_ELEMENT_BYTES = 2
REPACKED = frozenset({2, 10, 12, 20, 39})
"""ggml's formats (Q4_0, Q2_K, Q4_K, IQ4_NL, MXFP4) that its CPU code lays out anew, beside the mapped file."""

REPACKED_ROWS = 8
DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
}  # fmt: skip
CAST_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
PART_BYTES_MAX = 2**58
"""A header may claim anything; what is made of it stays a number that every format can carry."""

_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes a loaded model needs on its device, or on each of several, `parts` they are made of, `how` that is known.

    `how` is `declared` (the operator's word), `learned` (measured before), `estimated` (from the file's header) or
    `file size` (when the header says nothing: then `why` tells the reason).
    """

    bytes: int
    parts: dict[str, int] = field(default_factory=dict)
    how: str = "estimated"
    why: str = ""

    def in_shards(self, shards: int) -> "Footprint":
        """What each of so many devices needs of this: the whole engine, and its share of the rest."""
        parts = {name: size if name == ENGINE else -(-size // shards) for name, size in self.parts.items()}
        return self if shards == 1 else replace(self, bytes=sum(parts.values()), parts=parts)


def estimate(path: Path, runtime: str, options: Mapping[str, Any], *, device_kind: str = "host") -> Footprint:
    """What `runtime` will need for the model at `path`, a file or folder. Reads headers only; blocks.

    Never fails: of files that are not what they should be the size is taken, and it is the engine that says what is
    wrong with them.
    """
    parts_of = _PARTS.get(runtime)
    try:
        parts = None if parts_of is None else parts_of(path, options)
        why = f"{path.name} has no header that tells what {runtime} needs"
    except BadHeader as error:
        parts, why = None, str(error)
    except OSError as error:
        parts, why = None, f"{path.name} cannot be read: {error.strerror or error}"
    if parts is not None:
        return _whole(parts, runtime, device_kind)
    return replace(_whole({"files": _size(path)}, runtime, device_kind), how="file size", why=why)


def _whole(parts: dict[str, int], runtime: str, device_kind: str) -> Footprint:
    if device_kind == "cuda":
        base = CUDA_CONTEXT_BYTES
        parts = {name: size for name, size in parts.items() if name not in ("repacked", "vocabulary", "slots")}
    else:
        base = ENGINE_BYTES.get(runtime, ENGINE_BYTES["python"])
    parts = {name: min(size, PART_BYTES_MAX) for name, size in parts.items()} | {ENGINE: base}
    return Footprint(sum(parts.values()), parts)


def _size(path: Path) -> int:
    total = 0
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            found = file.stat()
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _files(path: Path, suffix: str) -> list[Path]:
    """The file itself, or those of the folder that end in `suffix`."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.name.endswith(suffix))
    return [path]


# python


def _python(path: Path, options: Mapping[str, Any]) -> dict[str, int]:
    """What the class loads cannot be told from its source."""
    return {}


# ONNX


def _onnx(path: Path, options: Mapping[str, Any]) -> dict[str, int] | None:
    """Weights inside the file are held twice: as they were read, and as the engine packs them for its kernels."""
    files = _files(path, ".onnx")
    if len(files) != 1:
        return None
    weights = read_onnx(files[0])
    return {"weights": weights.embedded_bytes + weights.external_bytes, "packed": weights.embedded_bytes}


# transformers


def _transformers(path: Path, options: Mapping[str, Any]) -> dict[str, int] | None:
    """Weights as stored, or as they will be when option `dtype` casts them; a cache and activations for the context."""
    files = _files(path, ".safetensors")
    shards = [file for file in files if file.name.startswith("model")] or files
    if not shards:
        return None
    cast = CAST_BYTES.get(str(options.get("dtype", "")).removeprefix("torch."))
    held: dict[str, int] = {}
    for file in shards:
        for dtype, size in read_safetensors(file).items():
            held[dtype] = held.get(dtype, 0) + size
    weights = sum(
        size if cast is None or dtype not in FLOATS else size * cast // DTYPE_BYTES[dtype]
        for dtype, size in held.items()
    )
    element = cast or DTYPE_BYTES.get(max(held, key=lambda dtype: held[dtype], default=""), 4)
    config = TransformersConfig(path)
    slots = _integer(options, "slots", 2, low=1, high=256)
    tokens = _integer(options, "context", 4096, low=64, high=2**24) // slots
    generates = options.get("task") in ("chat", "completion") or (options.get("task") is None and config.is_causal)
    if generates:  # an encoder reads several short texts at once instead
        tokens = min(tokens, config.positions or tokens)
    return {
        "weights": weights,
        "cache": slots * tokens * config.cache_elements_per_token * element if generates else 0,
        "compute": slots * tokens * (8 * config.feed_forward + 12 * config.width) * element,
    }


# llama.cpp


def _llama_cpp(path: Path, options: Mapping[str, Any]) -> dict[str, int] | None:
    files = _shards(_files(path, ".gguf"))
    if not files:
        return None
    headers = [read_gguf(file) for file in files]
    model = GgufArchitecture(headers[0])
    tensors = [tensor for header in headers for tensor in header.tensors]
    context = _integer(options, "context", 4096, low=64, high=2**24)
    slots = _integer(options, "slots", 4, low=1, high=256)
    cells = -(-context // slots // CELLS_PER_STEP) * CELLS_PER_STEP
    return {
        "weights": sum(tensor.bytes for tensor in tensors),
        "repacked": sum(tensor.bytes for tensor in tensors if _is_repacked(tensor)),
        "adapters": _adapter_bytes(options),
        "cache": slots * (cells * model.cache_bytes_per_token + model.state_bytes),
        "compute": _compute_bytes(model, context, cells, slots, embeddings=options.get("embeddings") is True),
        "vocabulary": model.terms * TERM_BYTES,
        "slots": slots * SLOT_BYTES,
    }


def _shards(files: list[Path]) -> list[Path]:
    """The parts of one model, when that is what the first file is a part of."""
    if not files:
        return []
    first = next((file for file in files if "-00001-of-" in file.name), files[0])
    part = _PART.fullmatch(first.name)
    if part is None:
        return [first]
    names = (f"{part[1]}-{number:05d}-of-{part[2]}.gguf" for number in range(1, int(part[2]) + 1))
    return [file for file in (first.with_name(name) for name in names) if file.is_file()]


def _is_repacked(tensor: GgufTensor) -> bool:
    shape = tensor.shape
    return tensor.type in REPACKED and len(shape) > 1 and shape[1] % REPACKED_ROWS == 0


def _adapter_bytes(options: Mapping[str, Any]) -> int:
    listed = options.get("lora")
    entries = listed if isinstance(listed, list) else []
    paths = (entry.get("path") for entry in entries if isinstance(entry, dict))
    return sum(Path(path).stat().st_size for path in paths if isinstance(path, str) and Path(path).is_file())


def _compute_bytes(model: "GgufArchitecture", context: int, cells: int, slots: int, *, embeddings: bool) -> int:
    """llama.cpp's buffers for one piece of a prompt.

    At its widest a layer holds two feed-forward activations with their product and the residuals around them;
    an embedding model keeps the logits of every token instead. The attention mask (16 bit) is there all along,
    the output buffer has the logits of one token for each slot, and the CPU's own scratch area holds one quantised
    activation.
    """
    tokens = min(UBATCH_TOKENS, context)
    width, feed = model.width, model.feed_forward
    floats = tokens * max(3 * feed + 5 * width, model.vocabulary + 6 * width if embeddings else 0)
    mask = 2 * tokens * cells
    output = 4 * slots * model.vocabulary
    scratch = tokens * max(feed, width) * 9 // 8
    return 4 * floats + mask + output + scratch


class GgufArchitecture:
    """The numbers of a GGUF header that decide how much is needed beside the weights; 0 for what it does not say."""

    def __init__(self, header: Gguf) -> None:
        self._values = header.values
        self._name = header.values.get("general.architecture")
        tokens = header.lengths.get("tokenizer.ggml.tokens", 0)
        self.terms = tokens + header.lengths.get("tokenizer.ggml.merges", 0)
        self.vocabulary = tokens or self._most("vocab_size")
        self.width = self._most("embedding_length")
        experts = self._most("expert_used_count") * self._most("expert_feed_forward_length")
        self.feed_forward = max(self._most("feed_forward_length"), experts)
        self.layers = self._most("block_count")

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of one token in every layer that attends. A windowed layer counts as a full one."""
        if self._values.get(f"{self._name}.attention.causal") is False:
            return 0
        layers, heads = self.layers, self._most("attention.head_count")
        size = self.width // heads if heads else 0
        per_head = (self._most("attention.key_length") or size) + (self._most("attention.value_length") or size)
        listed = self._value("attention.head_count_kv")
        heads_kv = (
            sum(listed) if isinstance(listed, list) else layers * (self._most("attention.head_count_kv") or heads)
        )
        return max(0, heads_kv * per_head * CACHE_ELEMENT_BYTES)

    @property
    def state_bytes(self) -> int:
        """What a recurrent model keeps of one sequence, however long it is."""
        inner, state = self._most("ssm.inner_size"), self._most("ssm.state_size")
        convolved = self._most("ssm.conv_kernel") * (inner + 2 * self._most("ssm.group_count") * state)
        return 4 * self.layers * (inner * state + convolved)

    def _value(self, key: str) -> Value | None:
        return self._values.get(f"{self._name}.{key}")

    def _most(self, key: str) -> int:
        """The number at `key`, or the largest when there is one for each layer."""
        value = self._value(key)
        most = max(value, default=0) if isinstance(value, list) else value
        return most if isinstance(most, int) and most > 0 else 0


def _integer(options: Mapping[str, Any], name: str, default: int, *, low: int, high: int) -> int:
    """An option as the runtime would take it; what it would refuse does not matter, for it will not load."""
    value = options.get(name)
    return min(max(value, low), high) if isinstance(value, int) else default


_PARTS: dict[str, Callable[[Path, Mapping[str, Any]], dict[str, int] | None]] = {
    "llama_cpp": _llama_cpp,
    "onnx": _onnx,
    "python": _python,
    "transformers": _transformers,
}
