"""What was trained as llama.cpp serves it, held against PEFT by log-probabilities: texts are the same either way."""

import json
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from moc.inference.request import Request
from moc.kernel.errors import InvalidRequest
from moc.models.ports import Launch
from moc.workers.link import WorkerLink
from moc.workers.trainers.base_cache import held
from moc.workers.trainers.export import export
from moc.workers.trainers.gguf_model import write_gguf_model
from tests.gguf_models import adapted, interleaved, network_of, task_of, tiny_gguf
from tests.hosted import host, start
from tests.models import smollm2_folder, smollm2_path

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # in PEFT
ARCHITECTURES = ("gemma2", "gemma3", "llama", "phi3", "qwen2", "qwen3")
CLOSE = 0.03
"""What half precision in the engine's cache and kernels makes of them, twice over; a wrong weight makes whole units."""

FAR = 0.5
OTHER_DISK = Path("/dev/shm")
"""A file system of its own."""

PROMPTS = [[40 + 3 * place % 200 for place in range(length)] for length in (3, 17, 40)]
PLAIN = 300
"""A token that is text of its own, so that there is an answer to tell probabilities of."""


@asynccontextmanager
async def served(path: Path, *adapters: tuple[Path, float]) -> AsyncIterator[WorkerLink]:
    lora = [{"path": str(adapter), "scale": scale} for adapter, scale in adapters]
    options = {"context": 512, "slots": 1, "threads": 1, "batch_threads": 1, "lora": lora}
    launch = Launch(model="tiny@1", digest="d", runtime="llama_cpp", path=str(path), options=options)
    with tempfile.TemporaryDirectory(prefix="moc-") as short:
        async with host(Path(short)) as here:
            workers = await here.coordinator()
            link = workers.link((await start(workers, launch)).id)
            assert link is not None
            yield link


async def difference(link: WorkerLink, network: Any, prompts: Sequence[list[int]] = PROMPTS) -> float:
    """The largest difference of log-probabilities of the tokens that the engine thinks likeliest."""
    worst = 0.0
    for prompt in prompts:
        body = {"prompt": prompt, "max_tokens": 1, "logprobs": 20, "logit_bias": [[PLAIN, 1000]]}
        answer = json.loads(bytes((await link.infer(Request("completion", json.dumps(body).encode()))).body))
        top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        assert len(top) >= 10
        with torch.no_grad():
            logits = network(torch.tensor([prompt])).logits[0, -1]
        expected = torch.log_softmax(logits.float(), -1)
        worst = max(worst, *(abs(float(expected[entry["id"]]) - entry["logprob"]) for entry in top))
    return worst


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_an_adapter_and_a_full_model_say_what_they_said_in_training(tmp_path: Path, architecture: str) -> None:
    base, job = tiny_gguf(tmp_path / "base", architecture), tmp_path / "job"
    trained = adapted(network_of(base), job)
    made = export(task_of(base), job)
    path = job / "output" / "adapter.gguf"
    assert made == {"kind": "adapter", "path": "output/adapter.gguf", "size_bytes": path.stat().st_size}
    async with served(base, (path, 1.0)) as link:
        assert await difference(link, trained) < CLOSE
        assert await difference(link, network_of(base)) > FAR
    full = trained.merge_and_unload()
    full.save_pretrained(job / "output" / "model")
    assert export(task_of(base, method="full"), job)["path"] == "output/model.gguf"
    async with served(model(job)) as link:
        assert await difference(link, full) < CLOSE


async def test_the_stretched_positions_of_a_llama_3_are_those_of_its_training(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    base = tiny_gguf(tmp_path / "base", rope_parameters=rope, max_position_embeddings=16384)
    with held({**task_of(base)["base"], "sha256": "0"}, tmp_path / "cache") as folder:
        trained = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain = network_of(tiny_gguf(tmp_path / "plain"))
    far = [[40 + 3 * place % 200 for place in range(500)]]
    async with served(base) as link:
        assert await difference(link, trained, far) < CLOSE
        assert await difference(link, plain, far) > FAR


def test_stretched_positions_that_are_none_of_llama_3_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 32.0, "low_freq_factor": 2.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    base = tiny_gguf(tmp_path / "base", rope_parameters=rope, max_position_embeddings=16384)
    with (
        pytest.raises(InvalidRequest, match="take its safetensors"),
        held({**task_of(base)["base"], "sha256": "0"}, tmp_path / "cache"),
    ):
        pass


async def test_rows_in_the_order_of_transformers_would_be_noticed(tmp_path: Path) -> None:
    base, job = tiny_gguf(tmp_path / "base"), tmp_path / "job"
    trained = adapted(network_of(base), job)
    export(task_of(base), job)
    with torch.no_grad():
        for name, weights in trained.named_parameters():
            heads = 4 if ".q_proj.lora_B" in name else 2 if ".k_proj.lora_B" in name else 0
            if heads:
                weights.copy_(torch.from_numpy(interleaved(weights.numpy(), heads)))
    async with served(base, (job / "output" / "adapter.gguf", 1.0)) as link:
        assert await difference(link, trained) > 3 * CLOSE


SHAPES: Sequence[dict[str, Any]] = (
    {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj"]},
    {"r": 8, "lora_alpha": 4, "use_rslora": True},
    {"r": 4, "rank_pattern": {"v_proj": 16}, "alpha_pattern": {"layers.1.mlp.up_proj": 64, "q_proj": 2}},
)


@pytest.mark.parametrize("config", SHAPES, ids=range(len(SHAPES)))
async def test_every_rank_and_alpha_is_heeded(tmp_path: Path, config: dict[str, Any]) -> None:
    base, job = tiny_gguf(tmp_path / "base"), tmp_path / "job"
    trained = adapted(network_of(base), job, size=0.1, **config)
    export(task_of(base), job)
    async with served(base, (job / "output" / "adapter.gguf", 1.0)) as link:
        assert await difference(link, trained) < CLOSE
        assert await difference(link, network_of(base)) > CLOSE * 3


async def test_an_adapter_on_an_adapter_is_served_with_it_and_merged_with_it(tmp_path: Path) -> None:
    base, first, second = tiny_gguf(tmp_path / "base"), tmp_path / "first", tmp_path / "second"
    before = adapted(network_of(base), first)
    export(task_of(base), first)
    for module in before.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(0.5)
    trained = adapted(before.merge_and_unload(), second, seed=2, r=4)
    export(task_of(base), second)
    adapters = [(first / "output" / "adapter.gguf", 0.5), (second / "output" / "adapter.gguf", 1.0)]
    async with served(base, *adapters) as link:
        assert await difference(link, trained) < CLOSE
    earlier = {"path": str(adapters[0][0]), "scale": 0.5, "peft": str(first / "output" / "adapter")}
    assert export(task_of(base, result="merged", adapters=[earlier]), second)["kind"] == "merged"
    async with served(second / "output" / "model.gguf") as link:
        assert await difference(link, trained) < CLOSE


async def test_a_merged_model_is_quantised_where_it_was_and_keeps_all_else(tmp_path: Path) -> None:
    plain, job = tiny_gguf(tmp_path / "base"), tmp_path / "job"
    base = rewritten(plain, plain.with_name("q4.gguf"), projections(gguf.GGMLQuantizationType.Q4_0))
    adapted(network_of(plain), job, target_modules=["q_proj", "v_proj"], size=0.2)
    export(task_of(base, result="merged"), job)
    before, after = gguf.GGUFReader(base), gguf.GGUFReader(model(job))
    changing = {"general.file_type", "GGUF.kv_count"}
    assert before.fields.keys() | changing == after.fields.keys() | changing
    for name in before.fields.keys() - changing:
        assert before.fields[name].contents() == after.fields[name].contents()
    for old, new in zip(before.tensors, after.tensors, strict=True):
        changed = ".attn_q." in old.name or ".attn_v." in old.name
        assert old.name == new.name
        assert new.tensor_type.name == ("Q8_0" if changed else old.tensor_type.name)
        assert changed or np.array_equal(old.data, new.data)
    async with served(base, (adapter_of(base, job), 1.0)) as link, served(model(job)) as merged:
        assert await apart(link, merged) < FAR
    async with served(base) as link, served(model(job)) as merged:
        assert await apart(link, merged) > 2 * FAR


async def test_smollm2_says_what_it_said_in_training(tmp_path: Path) -> None:
    # in few bits the engine is off by 0.1 on average, whatever is loaded with it
    base = rewritten(smollm2_path(), tmp_path / "base.gguf", lambda tensor: gguf.GGMLQuantizationType.F32)
    network = transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.float32).eval()
    trained = adapted(network, tmp_path, size=0.02)
    async with served(base, (adapter_of(smollm2_path(), tmp_path), 1.0)) as link:
        assert await difference(link, trained) < CLOSE
        with trained.disable_adapter():
            assert await difference(link, trained) > 10 * CLOSE


def adapter_of(base: Path, job: Path) -> Path:
    return job / str(export(task_of(base), job)["path"])


async def apart(left: WorkerLink, right: WorkerLink) -> float:
    """The largest difference of log-probabilities between two engines, of tokens both think likely."""
    worst = 0.0
    for prompt in PROMPTS:
        told = []
        for link in (left, right):
            body = {"prompt": prompt, "max_tokens": 1, "logprobs": 20, "logit_bias": [[PLAIN, 1000]]}
            answer = json.loads(bytes((await link.infer(Request("completion", json.dumps(body).encode()))).body))
            top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            told.append({entry["id"]: entry["logprob"] for entry in top})
        both = told[0].keys() & told[1].keys()
        assert both
        worst = max(worst, *(abs(told[0][token] - told[1][token]) for token in both))
    return worst


def rewritten(base: Path, path: Path, kind: Callable[[Any], Any]) -> Path:
    """The same model, each tensor of the kind that `kind` says."""
    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, gguf.quants.quantize(weights, kind(tensor)), raw_dtype=kind(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def projections(kind: Any) -> Callable[[Any], Any]:
    """Those of attention of a kind, all else as full numbers."""
    return lambda tensor: kind if ".attn_" in tensor.name and tensor.data.ndim > 1 else gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize("kind", ["F16", "BF16"])
async def test_a_merged_model_stays_as_precise_as_it_was(tmp_path: Path, kind: str) -> None:
    plain, job = tiny_gguf(tmp_path / "base"), tmp_path / "job"
    base = rewritten(plain, plain.with_name("half.gguf"), projections(gguf.GGMLQuantizationType[kind]))
    trained = adapted(network_of(plain), job)
    export(task_of(base, result="merged"), job)
    kinds = [
        {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors} for path in (base, model(job))
    ]
    assert kinds[0] == kinds[1]
    async with served(model(job)) as link:
        assert await difference(link, trained) < 3 * CLOSE


def model(job: Path) -> Path:
    return job / "output" / "model.gguf"


def test_a_file_without_changes_is_the_same_file(tmp_path: Path) -> None:
    base = tiny_gguf(tmp_path / "base", "qwen3")
    write_gguf_model(base, tmp_path / "same.gguf", {})
    old, new = gguf.GGUFReader(base), gguf.GGUFReader(tmp_path / "same.gguf")
    assert {name: field.contents() for name, field in old.fields.items()} == {
        name: field.contents() for name, field in new.fields.items()
    }
    assert all(np.array_equal(a.data, b.data) for a, b in zip(old.tensors, new.tensors, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_of_transformers_is_merged_in_its_own_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    base, job = tiny_gguf(tmp_path / "base").parent / "transformers", tmp_path / "job"
    network = network_of(base).to(dtype)
    (base / "model.safetensors").unlink()
    network.save_pretrained(base, max_shard_size="400KB")
    assert len([*base.glob("*.safetensors")]) > 1
    (base / "README.md").write_text("about it")
    trained = adapted(network_of(base), job).merge_and_unload()
    about = task_of(base, runtime="transformers")
    assert export(about, job)["path"] == "output/merged"
    assert export(about, job)["kind"] == "merged"  # again
    merged = job / "output" / "merged"
    found = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype="auto")
    assert found.dtype is dtype
    for name, weights in found.state_dict().items():
        assert torch.equal(weights, trained.state_dict()[name].to(dtype)), name
    assert (merged / "README.md").read_text() == "about it"
    assert transformers.AutoTokenizer.from_pretrained(merged).chat_template


def test_a_full_model_of_transformers_is_served_with_the_tokenizer_of_its_base(tmp_path: Path) -> None:
    base, job = tiny_gguf(tmp_path / "base").parent / "transformers", tmp_path / "job"
    network_of(base).save_pretrained(job / "output" / "model")
    assert export(task_of(base, runtime="transformers", method="full"), job)["kind"] == "merged"
    assert (job / "output" / "merged" / "tokenizer.json").is_file()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_full_model_of_transformers_keeps_the_precision_of_its_base(tmp_path: Path, dtype: torch.dtype) -> None:
    base, job = tiny_gguf(tmp_path / "base").parent / "transformers", tmp_path / "job"
    trained = network_of(base)
    network_of(base).to(dtype).save_pretrained(base)
    trained.save_pretrained(job / "output" / "model", max_shard_size="400KB")
    before = {path: path.read_bytes() for path in (job / "output" / "model").iterdir()}
    export(task_of(base, runtime="transformers", method="full"), job)
    merged = job / "output" / "merged"
    assert json.loads((merged / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    found = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype="auto")
    assert found.dtype is dtype
    for name, weights in found.state_dict().items():
        assert torch.equal(weights, trained.state_dict()[name].to(dtype)), name
    assert {path: path.read_bytes() for path in before} == before, "what was trained is as it was"


@pytest.mark.skipif(not OTHER_DISK.is_dir(), reason="there is no other file system")
def test_a_full_model_is_made_where_files_cannot_be_linked(tmp_path: Path) -> None:
    base, job = tiny_gguf(tmp_path / "base").parent / "transformers", tmp_path / "job"
    with tempfile.TemporaryDirectory(prefix="moc-", dir=OTHER_DISK) as other:
        network_of(base).save_pretrained(other)
        (job / "output").mkdir(parents=True)
        (job / "output" / "model").symlink_to(other)
        with pytest.raises(OSError, match="cross-device"):
            (tmp_path / "link").hardlink_to(Path(other) / "config.json")
        assert export(task_of(base, runtime="transformers", method="full"), job)["kind"] == "merged"
    merged = job / "output" / "merged"
    assert transformers.AutoModelForCausalLM.from_pretrained(merged, dtype="auto").dtype is torch.float32


REFUSED: Sequence[tuple[dict[str, Any], str]] = (
    ({"use_dora": True}, "use_dora"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"bias": "lora_only"}, "bias"),
    ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
    ({"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ({"target_modules": ["lm_head"]}, "lm_head"),
)


@pytest.mark.parametrize(("config", "named"), REFUSED, ids=[named for _, named in REFUSED])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_what_is_no_adapter_of_llama_cpp_is_refused(tmp_path: Path, config: dict[str, Any], named: str) -> None:
    base, job = tiny_gguf(tmp_path / "base", tie_word_embeddings=True), tmp_path / "job"
    adapted(network_of(base), job, **config)
    with pytest.raises(InvalidRequest, match=named):
        export(task_of(base), job)
    assert [path.name for path in (job / "output").iterdir()] == ["adapter"]


def test_an_architecture_nobody_vouched_for_is_refused(tmp_path: Path) -> None:
    base, job = tiny_gguf(tmp_path / "base"), tmp_path / "job"
    adapted(network_of(base), job)
    content = base.read_bytes()
    base.write_bytes(content.replace(b"llama", b"lxama"))
    with pytest.raises(InvalidRequest, match=r"'lxama'.*safetensors.*runtime transformers"):
        export(task_of(base), job)
