"""Language models, embeddings and classifiers in safetensors, on torch with the Transformers library.

A model is a folder with `config.json`, `*.safetensors` and the files of its tokenizer. Options:
`task`           chat (completions too), completion, embeddings or classification (default: as `architectures` in
                 config.json says)
`device`         auto, cpu or cuda (default auto: the first GPU this worker may see, else the CPU)
`dtype`          auto, float32, float16 or bfloat16 (default auto: as the weights are stored)
`context`        tokens worked on at once, shared evenly by the slots: one request has `context / slots`, and never
                 more than the model was made for (default 4096)
`slots`          requests worked on at once (default 2)
`threads`        threads that compute on the CPU (default: half the cores)
`pooling`        how an embedding is made of tokens: mean, cls or last (default: as the folder says, else mean)
`chat_template`  a Jinja template in place of the model's own

Nothing that came with a model is run or unpickled: neither its Python files nor `*.bin`. Nothing is downloaded.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read by the import below

import torch
import transformers

from moc.kernel.errors import LoadFailed
from moc.workers.runtimes.hugging_face.engine import Engine, Tokens, is_out_of_memory
from moc.workers.runtimes.hugging_face.folder import POOLINGS, Folder
from moc.workers.runtimes.options import Options
from moc.workers.runtimes.runtime import Run, Runtime

AUTO_CLASSES = {
    "chat": transformers.AutoModelForCausalLM,
    "completion": transformers.AutoModelForCausalLM,
    "embeddings": transformers.AutoModel,
    "classification": transformers.AutoModelForSequenceClassification,
}
DEVICES = {"auto": "", "cpu": "cpu", "cuda": "cuda"}
DTYPES = {"auto": "auto", "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
REASON_CHARACTERS_MAX = 500
NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """The options as they were read; `task` and `pooling` are None where the folder is to say."""

    task: str | None
    device: str
    dtype: Any
    context: int
    slots: int
    threads: int
    pooling: str | None
    chat_template: str | None


def load(*, model: str, path: str, options: dict[str, Any], run: Run) -> Runtime:
    """Read the weights; see `Load`."""
    folder = Folder(Path(path))
    plan = _plan(options)
    task = plan.task or folder.task
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(plan.threads)
    try:
        return _runtime(model, folder, task, plan)
    except LoadFailed:
        raise
    except Exception as error:  # the library raises what it likes about a file it does not like
        reason = "out_of_memory" if is_out_of_memory(error) else "load_failed"
        said = " ".join(str(error).replace(path, "the model's folder").split())[:REASON_CHARACTERS_MAX]
        raise LoadFailed(f"Transformers cannot load {model}: {said or type(error).__name__}", reason=reason) from None


def _plan(options: dict[str, Any]) -> _Plan:
    given = Options("transformers", options)
    task, pooling = given.text("task"), given.text("pooling")
    plan = _Plan(
        task=None if task is None else given.one_of("task", task, {name: name for name in AUTO_CLASSES}),
        device=given.one_of("device", given.text("device") or "auto", DEVICES),
        dtype=given.one_of("dtype", given.text("dtype") or "auto", DTYPES),
        context=given.integer("context", 4096, low=64, high=2**24),
        slots=given.integer("slots", 2, low=1, high=256),
        threads=given.integer("threads", max(1, (os.cpu_count() or 1) // 2), low=1, high=1024),
        pooling=None if pooling is None else given.one_of("pooling", pooling, {name: name for name in POOLINGS}),
        chat_template=given.text("chat_template"),
    )
    given.done()
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise LoadFailed(
            "option 'device' of the runtime transformers is 'cuda', and this worker sees no GPU; "
            "give the model `devices: cuda`, and ask `moc doctor` for what there is",
            reason="invalid_spec",
        )
    return plan


def _runtime(model: str, folder: Folder, task: str, plan: _Plan) -> Runtime:
    device = plan.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokens = Tokens(folder.path, plan.chat_template)
    network = _network(model, folder, task, plan.dtype).to(device)
    engine = Engine(model, network, tokens, context=plan.context, slots=plan.slots)
    match task:
        case "embeddings":
            from moc.workers.runtimes.hugging_face.encoder import Embedder

            return Embedder(engine, folder.pooling(plan.pooling))
        case "classification":
            from moc.workers.runtimes.hugging_face.encoder import Classifier

            return Classifier(engine)
    from moc.workers.runtimes.hugging_face.generator import Generator

    if plan.task == "chat" and not tokens.can_chat:
        raise LoadFailed(
            f"{model} has no chat template; give one as option 'chat_template', or 'completion' as 'task'",
            reason="invalid_spec",
        )
    return Generator(engine, chats=task == "chat" and tokens.can_chat)


def _network(model: str, folder: Folder, task: str, dtype: Any) -> Any:
    network, found = AUTO_CLASSES[task].from_pretrained(
        folder.path,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    # an encoder's pooler is a head of its own, which neither pooling nor a classifier that lacks it uses
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing:
        shown = ", ".join(missing[:NAMES_SHOWN]) + (", …" if len(missing) > NAMES_SHOWN else "")
        raise LoadFailed(
            f"{model} lacks weights that {task} takes ({shown}); they would be random: choose another 'task'",
            reason="invalid_spec",
        )
    if network.config.is_encoder_decoder:
        raise LoadFailed(f"{model} is an encoder with a decoder, which is not served", reason="invalid_spec")
    network.config.use_cache = task in ("chat", "completion")
    return network.eval()
