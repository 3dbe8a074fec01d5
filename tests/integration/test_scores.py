"""Log-probabilities of given texts: llama.cpp and Transformers with the same weights, held against torch itself."""

import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moc.inference.request import Request
from moc.kernel.errors import InvalidRequest, Unimplemented
from moc.models.ports import Launch
from moc.workers.link import WorkerLink
from tests.gguf_models import tiny_gguf
from tests.hosted import host, start

pytestmark = pytest.mark.asyncio(loop_scope="module")
TEXT = "The sea is wide.<|im_end|>\nNaïve 🙃 it is — and deep."
CLOSE = 0.01
Models = dict[str, WorkerLink]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models") / "llama"
    tiny_gguf(made)
    return made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def models(folder: Path) -> AsyncIterator[Models]:
    launches = {
        "llama_cpp": (folder / "model.gguf", {"threads": 1, "context": 2048, "slots": 2}),
        "transformers": (folder / "transformers", {"threads": 1, "context": 2048, "slots": 2}),
    }
    with tempfile.TemporaryDirectory(prefix="moc-") as short:  # a socket's path must be
        async with host(Path(short)) as it:
            workers, found = await it.coordinator(), {}
            for runtime, (path, options) in launches.items():
                launch = Launch(model="tiny@1", digest=runtime, runtime=runtime, path=str(path), options=options)
                found[runtime] = workers.link((await start(workers, launch)).id)
            yield {runtime: link for runtime, link in found.items() if link is not None}


async def asked(link: WorkerLink, prompt: Any, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": "tiny", "prompt": prompt, "echo": True, "max_tokens": 0, "logprobs": 1, **fields}
    answer = json.loads(bytes((await link.infer(Request("completion", json.dumps(body).encode()))).body))
    return list(answer["choices"])


def truth(folder: Path, text: str) -> tuple[list[int], list[float]]:
    """The tokens, and how likely all but the first are."""
    tokens = AutoTokenizer.from_pretrained(folder / "transformers")(text)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder / "transformers", dtype=torch.float32)
    with torch.inference_mode():
        rows = torch.log_softmax(model(torch.tensor([tokens])).logits[0], dim=-1)
    return tokens, [float(rows[at, token]) for at, token in enumerate(tokens[1:])]


@pytest.mark.parametrize("runtime", ["llama_cpp", "transformers"])
async def test_a_text_has_the_probabilities_torch_gives_it(models: Models, folder: Path, runtime: str) -> None:
    tokens, right = truth(folder, TEXT)
    (choice,) = await asked(models[runtime], TEXT)
    scores = choice["logprobs"]
    assert choice["text"] == TEXT
    assert len(scores["tokens"]) == len(tokens) == len(scores["text_offset"])
    assert scores["token_logprobs"][0] is None
    assert scores["top_logprobs"][0] is None
    assert scores["token_logprobs"][1:] == pytest.approx(right, abs=CLOSE)
    assert all(max(top.values()) >= own - CLOSE for top, own in zip(scores["top_logprobs"][1:], right, strict=True))
    assert scores["text_offset"] == sorted(scores["text_offset"])


@pytest.mark.parametrize("runtime", ["llama_cpp", "transformers"])
@pytest.mark.parametrize("word", ["Naïve", "🙃", "deep"])
async def test_only_what_is_behind_a_character_is_scored(models: Models, runtime: str, word: str) -> None:
    (whole,) = await asked(models[runtime], TEXT)
    begin = TEXT.index(word)
    (part,) = await asked(models[runtime], TEXT, echo_from=begin)
    starts = whole["logprobs"]["text_offset"]
    assert part["logprobs"]["text_offset"] == starts
    first = max(at for at, start in enumerate(starts) if start <= begin)
    first = starts.index(starts[first])
    assert set(part["logprobs"]["token_logprobs"][:first]) == {None}
    assert part["logprobs"]["token_logprobs"][first:] == pytest.approx(
        whole["logprobs"]["token_logprobs"][first:], abs=CLOSE
    )


@pytest.mark.parametrize("runtime", ["llama_cpp", "transformers"])
async def test_several_prompts_of_tokens_are_scored_and_one_token_is_added(
    models: Models, folder: Path, runtime: str
) -> None:
    tokens, right = truth(folder, TEXT)
    long, short = await asked(models[runtime], [tokens, tokens[:4]], max_tokens=1)
    assert (long["index"], short["index"]) == (0, 1)
    assert long["logprobs"]["token_logprobs"][1:-1] == pytest.approx(right, abs=CLOSE)
    assert short["logprobs"]["token_logprobs"][1:-1] == pytest.approx(right[:3], abs=CLOSE)
    assert len(short["logprobs"]["tokens"]) == 5


@pytest.mark.parametrize("runtime", ["llama_cpp", "transformers"])
async def test_a_token_is_added_though_it_is_a_part_of_a_character(models: Models, runtime: str) -> None:
    prompts = [f"One plus {word} is five" for word in ("one", "two", "nine", "ten", "six", "no")]
    choices = await asked(models[runtime], prompts, max_tokens=1, logprobs=0)
    plain = await asked(models[runtime], prompts, logprobs=0)
    for more, less in zip(choices, plain, strict=True):
        assert more["logprobs"]["text_offset"][:-1] == less["logprobs"]["text_offset"]
        assert more["logprobs"]["token_logprobs"][-1] < 0


@pytest.mark.parametrize("runtime", ["llama_cpp", "transformers"])
@pytest.mark.parametrize(
    ("prompt", "fields", "error"),
    [
        ("", {}, InvalidRequest),
        ("word " * 2000, {}, InvalidRequest),
        ("a", {"logprobs": 99}, InvalidRequest),
        ("a", {"logprobs": None}, Unimplemented),
        ("a", {"max_tokens": 5}, Unimplemented),
        (["a"] * 65, {}, InvalidRequest),
    ],
)
async def test_what_cannot_be_scored_is_refused(
    models: Models, runtime: str, prompt: Any, fields: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await asked(models[runtime], prompt, **fields)


async def test_a_text_longer_than_a_block_is_scored_whole(models: Models, folder: Path) -> None:
    text = "The sea is wide and deep. " * 40
    _, right = truth(folder, text)
    (choice,) = await asked(models["transformers"], text)
    assert len(right) > 256
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(right, abs=CLOSE)
