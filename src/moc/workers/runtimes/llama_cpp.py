"""GGUF language models on llama.cpp, with continuous batching over several slots.

Options:
`context`        tokens of context, shared evenly by the slots: one request has `context / slots` (default 4096)
`slots`          requests worked on at once (default 4)
`threads`        threads that generate (default: half the cores); `batch_threads` that read prompts (default: all)
`gpu_layers`     layers kept on the GPU, -1 = as many as fit (default)
`embeddings`     true: the model gives embeddings and nothing else
`pooling`        how embeddings are made of tokens: mean, cls, last, rank or none (default: as the model says);
                 rank, for a reranker: the model scores documents and does nothing else
`lora`           adapters to load: a list of {path, scale, sha256 (optional: what the file must be)}; a request sets
                 other scales with its own `lora` field
`chat_template`  a Jinja template in place of the model's own

Little is imported here, so that the engine begins to read its model at once; see `runtime`.
"""

import contextlib
import os
import secrets
from typing import TYPE_CHECKING, Any

import xllamacpp

from moc.kernel.errors import LoadFailed
from moc.workers.runtimes.options import Options
from moc.workers.runtimes.runtime import Run, file_in

if TYPE_CHECKING:
    from moc.inference.request import Kind
    from moc.workers.runtimes.llama.slots import LlamaSlots

ERRORS_ONLY = 1
POOLING = {
    "mean": xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN,
    "cls": xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_CLS,
    "last": xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST,
    "rank": xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK,
    "none": xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE,
}


def load(*, model: str, path: str, options: dict[str, Any], run: Run) -> "LlamaSlots":
    """Start the engine; see `Load`."""
    params = _params(model, file_in(path, ".gguf"), Options("llama_cpp", options))
    try:
        server = xllamacpp.Server(params)
    except (RuntimeError, ValueError):
        # the engine says why on stderr, and here only that it did not
        raise LoadFailed(f"llama.cpp cannot load {model}", reason="load_failed") from None
    from moc.workers.runtimes.llama.slots import LlamaSlots
    from moc.workers.runtimes.llama.tokens import LlamaTokens

    tokens = LlamaTokens(params.hostnames[0], params.api_keys[0])
    return LlamaSlots(server, _kinds(params), tokens, model=model, slots=params.n_parallel, context=params.n_ctx)


def _kinds(params: Any) -> "tuple[Kind, ...]":
    if params.pooling_type == POOLING["rank"]:
        return ("rerank", "tokenize")
    return ("embeddings", "tokenize") if params.embedding else ("chat", "completion", "tokenize")


def _params(model: str, path: str, given: Options) -> Any:
    cores = os.cpu_count() or 1
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {model}  # what answers name as their model, instead of a path
    params.n_ctx = given.integer("context", 4096, low=64, high=2**24)
    params.n_parallel = given.integer("slots", 4, low=1, high=256)
    params.cpuparams.n_threads = given.integer("threads", max(1, cores // 2), low=1, high=1024)
    params.cpuparams_batch.n_threads = given.integer("batch_threads", cores, low=1, high=1024)
    params.n_gpu_layers = given.integer("gpu_layers", -1, low=-1, high=1_000_000)
    params.embedding = given.flag("embeddings", False)
    pooling = given.text("pooling")
    if pooling is not None:
        params.pooling_type = given.one_of("pooling", pooling, POOLING)
        params.embedding = params.embedding or pooling == "rank"
    if not params.embedding:
        params.n_batch = params.n_ubatch  # between two of these a request can be stopped, and others get their tokens
    template = given.text("chat_template")
    if template is not None:
        params.chat_template = template
    params.lora_adapters = [_adapter(entry) for entry in given.mappings("lora")]
    given.done()
    params.warmup = False
    params.verbosity = ERRORS_ONLY
    params.ui = False
    params.cache_ram_mib = 0
    # the engine insists on an HTTP server: give it a socket in the worker's private folder, and a key nobody has
    with contextlib.suppress(FileNotFoundError):
        os.unlink("engine.sock")
    params.hostnames = ["engine.sock"]
    params.api_keys = [secrets.token_hex(32)]
    return params


def _adapter(entry: dict[str, Any]) -> Any:
    path, scale = entry.get("path"), entry.get("scale", 1.0)
    unknown = entry.keys() - {"path", "scale", "sha256"}
    if not isinstance(path, str) or isinstance(scale, bool) or not isinstance(scale, int | float) or unknown:
        raise LoadFailed(f"an entry of `lora` is {entry!r}, not {{path: …, scale: 1.0}}", reason="invalid_spec")
    if not os.path.isfile(path):
        raise LoadFailed(f"there is no adapter file {os.path.basename(path)}", reason="invalid_spec")
    return xllamacpp.CommonAdapterLoraInfo(path, float(scale))
