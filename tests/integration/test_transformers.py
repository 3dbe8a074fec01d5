"""Tiny Transformers models in real workers: what they answer, held against the library asked directly."""

import asyncio
import base64
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from moc.inference.request import Request
from moc.kernel.errors import InvalidRequest, LoadFailed, Unimplemented
from moc.models.ports import Launch
from moc.resilience.deadline import Deadline
from moc.workers.link import WorkerLink
from moc.workers.local import LocalWorkers
from moc.workers.runtimes.hugging_face.engine import is_out_of_memory
from tests import tiny
from tests.hosted import arrays, host, tensors

pytestmark = pytest.mark.asyncio(loop_scope="module")
PROMPT = "Name three rivers."
LOADING_S = 120.0
Load = Callable[..., Awaitable[WorkerLink]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The same sums in the same order as in a worker with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def workers() -> AsyncIterator[LocalWorkers]:
    with tempfile.TemporaryDirectory(prefix="moc-") as short:  # a socket's path must be
        async with host(Path(short)) as it:
            yield await it.coordinator()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("models") / "llama")


async def loaded(workers: LocalWorkers, path: Path, **options: Any) -> WorkerLink:
    """A model in a worker of its own."""
    launch = Launch(
        model="tiny@1", digest="d", runtime="transformers", path=str(path), options={"threads": 1, **options}
    )
    worker = await workers.start_worker(launch, Deadline.after(LOADING_S))
    link = workers.link(worker.id)
    assert link is not None
    return link


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def link(workers: LocalWorkers, folder: Path) -> WorkerLink:
    return await loaded(workers, folder)


@pytest_asyncio.fixture(loop_scope="module")
async def load(workers: LocalWorkers) -> AsyncIterator[Load]:
    """Loads models for one test: each takes some hundred megabytes."""
    before = {worker.id for worker in workers.workers()}
    yield partial(loaded, workers)
    for worker in workers.workers():
        if worker.id not in before:
            await workers.stop_worker(worker.id, reason="the test is over")


def chat(content: str = PROMPT, **fields: Any) -> Request:
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 24, **fields}
    return Request("chat", json.dumps(body).encode())


def completion(prompt: Any = PROMPT, **fields: Any) -> Request:
    return Request("completion", json.dumps({"prompt": prompt, "temperature": 0, "max_tokens": 24, **fields}).encode())


async def answer(link: WorkerLink, request: Request) -> dict[str, Any]:
    return json.loads(bytes((await link.infer(request)).body))


async def said(link: WorkerLink, request: Request) -> str:
    (choice,) = (await answer(link, request))["choices"]
    return choice["message"]["content"] if "message" in choice else choice["text"]


def likeliest(folder: Path, prompt: str, count: int) -> tuple[str, int]:
    """What the library itself says to a prompt, and how many tokens of it."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)[0]
    new = made[ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True), len(new)


async def test_a_chat_is_answered_as_the_library_would(link: WorkerLink, folder: Path) -> None:
    expected, count = likeliest(folder, f"<s>user: {PROMPT}</s><s>assistant: ", 24)
    found = await answer(link, chat())
    assert expected
    assert found["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": expected},
            "logprobs": None,
            "finish_reason": "length" if count == 24 else "stop",
        }
    ]
    assert (found["object"], found["model"]) == ("chat.completion", "tiny@1")
    prompt_tokens = len(AutoTokenizer.from_pretrained(folder).encode(f"<s>user: {PROMPT}</s><s>assistant: "))
    assert found["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": count,
        "total_tokens": prompt_tokens + count,
    }


async def test_a_completion_of_text_or_tokens_is_the_same(link: WorkerLink, folder: Path) -> None:
    expected, _ = likeliest(folder, PROMPT, 24)
    tokens = AutoTokenizer.from_pretrained(folder).encode(PROMPT)
    assert [await said(link, completion()), await said(link, completion([tokens]))] == [expected] * 2
    assert (await answer(link, completion()))["object"] == "text_completion"


@pytest.mark.parametrize("request_", [chat(), completion(), chat(seed=3, temperature=1)], ids=["chat", "text", "drawn"])
async def test_a_stream_says_what_the_whole_answer_says(link: WorkerLink, request_: Request) -> None:
    whole = await answer(link, request_)
    fields = {**json.loads(bytes(request_.body)), "stream": True, "stream_options": {"include_usage": True}}
    streamed = link.stream(Request(request_.kind, json.dumps(fields).encode()))
    *chunks, ended, last = [json.loads(chunk) async for some in streamed for chunk in some]
    assert len(chunks) > 2
    if request_.kind == "chat":
        assert whole["choices"][0]["message"] == {
            "role": chunks[0]["choices"][0]["delta"]["role"],
            "content": "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks),
        }
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    else:
        assert whole["choices"][0]["text"] == "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert ended["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (last["choices"], last["usage"]) == ([], whole["usage"])


async def test_a_stop_ends_the_answer_before_it(link: WorkerLink) -> None:
    whole = await answer(link, completion())
    text = whole["choices"][0]["text"]
    stop = text[8:11]
    found = await answer(link, completion(stop=[stop, "not there"]))
    assert found["choices"][0] == {
        "index": 0,
        "text": text[: text.find(stop)],
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert found["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]


async def test_a_seed_says_it_again_whatever_else_is_asked(link: WorkerLink) -> None:
    alone = await said(link, completion(seed=7, temperature=1))
    together = await asyncio.gather(*(said(link, completion(seed=seed, temperature=1)) for seed in (7, 8, 9, 7)))
    assert together[0] == together[3] == alone
    assert len(set(together)) == 3


async def test_the_likeliest_few_are_drawn_from(link: WorkerLink) -> None:
    greedy = await said(link, completion())
    assert await said(link, completion(temperature=1.5, top_k=1, seed=1)) == greedy
    assert await said(link, completion(temperature=1.5, top_p=1e-6, seed=1)) == greedy
    assert await said(link, completion(temperature=1.5, seed=1)) != greedy


async def test_tokens_are_drawn_by_their_probability(link: WorkerLink, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    with torch.inference_mode():
        probabilities = (model(ids).logits[0, -1] / 0.5).softmax(-1)
    likeliest = int(probabilities.argmax())
    share = float(probabilities[likeliest])
    assert 0.05 < share < 0.95
    text = tokenizer.decode([likeliest])
    wishes = [completion(max_tokens=1, temperature=0.5, seed=seed) for seed in range(200)]
    count = [await said(link, wish) for wish in wishes].count(text)
    # the seeds are fixed, so this is the same every time: within four standard deviations
    assert abs(count - 200 * share) < 4 * (200 * share * (1 - share)) ** 0.5 + 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_who_leaves_frees_the_slot_at_the_next_token(load: Load, folder: Path, streamed: bool) -> None:
    link = await load(folder, slots=1, context=2048)
    endless = completion(max_tokens=2000, seed=1, temperature=2, stream=streamed)
    if streamed:
        stream = link.stream(endless)
        await anext(stream)
        await stream.aclose()
    else:
        asked = [asyncio.create_task(link.infer(endless)) for _ in range(20)]
        await asyncio.wait(asked, timeout=0.5)
        for task in asked:
            task.cancel()
        await asyncio.wait(asked)
    async with asyncio.timeout(20):  # all the endless ones take minutes
        await answer(link, completion("Hello", max_tokens=1))


async def test_an_answer_ends_where_the_context_does(load: Load, folder: Path) -> None:
    link = await load(folder, slots=2, context=128)
    assert link.info.details["context_per_request"] == 64
    found = await answer(link, completion([5] * 60, max_tokens=50))
    assert (found["usage"]["completion_tokens"], found["choices"][0]["finish_reason"]) == (4, "length")
    full = await answer(link, completion([5] * 64))
    assert (full["usage"]["completion_tokens"], full["choices"][0]["finish_reason"]) == (0, "length")
    with pytest.raises(InvalidRequest, match="65 tokens; one request has a context of 64"):
        await link.infer(completion([5] * 65))


@pytest.mark.parametrize(
    ("request_", "error", "said"),
    [
        (Request("chat", b"{"), InvalidRequest, "not a JSON object"),
        (chat(messages=[{"role": "wizard", "content": "Hi"}]), InvalidRequest, "no such role"),
        (chat("word " * 3000), InvalidRequest, "context of 2048"),
        (chat(tools=[{"type": "function"}]), Unimplemented, "tools"),
        (completion(""), InvalidRequest, "empty"),
        (completion([300]), InvalidRequest, "not from 0 to 299"),
        (completion([-1]), InvalidRequest, "not from 0 to 299"),
    ],
    ids=["torn", "template", "long", "tools", "empty", "token", "negative"],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_what_cannot_be_answered_is_refused_before_anything_is_said(
    link: WorkerLink, request_: Request, error: type[Exception], said: str, streamed: bool
) -> None:
    asked = anext(link.stream(request_)) if streamed else link.infer(request_)
    with pytest.raises(error, match=said):
        await asked
    assert (await answer(link, chat("Hi", max_tokens=1)))["choices"]


async def test_without_a_template_there_is_no_chat(load: Load, tmp_path: Path) -> None:
    bare = tiny.llama(tmp_path / "bare", template=None)
    assert (await load(bare)).info.kinds == ("completion", "tokenize")
    with pytest.raises(LoadFailed, match="no chat template; give one as option 'chat_template'"):
        await load(bare, task="chat")
    given = await load(bare, chat_template=tiny.TEMPLATE)
    assert given.info.kinds == ("chat", "completion", "tokenize")


async def test_a_cast_is_kept_to(load: Load, folder: Path) -> None:
    link = await load(folder, dtype="bfloat16", task="completion")
    assert (link.info.details["dtype"], link.info.details["device"]) == ("bfloat16", "cpu")
    assert link.info.kinds == ("completion", "tokenize")
    assert (await answer(link, completion(max_tokens=2)))["usage"]["completion_tokens"] == 2


# encoders


async def test_embeddings_do_not_depend_on_what_they_are_asked_with(load: Load, tmp_path: Path) -> None:
    link = await load(tiny.encoder(tmp_path / "encoder"), context=256, slots=1)
    texts = ["a", "The sea is wide", "three rivers " * 6, "Où est-elle?"] * 5

    async def embed(given: Any, **fields: Any) -> list[Any]:
        found = await answer(link, Request("embeddings", json.dumps({"input": given, **fields}).encode()))
        assert [entry["index"] for entry in found["data"]] == list(range(len(found["data"])))
        return [entry["embedding"] for entry in found["data"]]

    together = np.array(await embed(texts))
    alone = np.array([(await embed(text))[0] for text in texts[:4]])
    np.testing.assert_allclose(together, np.tile(alone, (5, 1)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    packed = [np.frombuffer(base64.b64decode(one), "<f4") for one in await embed(texts[:4], encoding_format="base64")]
    np.testing.assert_allclose(packed, alone, atol=1e-5)
    for fields, error in (({"encoding_format": "hex"}, InvalidRequest), ({"dimensions": 3}, Unimplemented)):
        with pytest.raises(error):
            await embed("a", **fields)
    with pytest.raises(InvalidRequest, match=r"input 1 has .* tokens; one request has a context of 128"):
        await embed(["a", "b" * 500])


async def test_a_classifier_says_what_the_library_says(load: Load, tmp_path: Path) -> None:
    path = tiny.classifier(tmp_path / "classifier")
    link = await load(path)
    texts = ["The sea is wide", "three rivers", "Où est-elle?", ""]
    found = arrays(await link.infer(tensors(text=np.array([text.encode() for text in texts], object))))
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    with torch.inference_mode():
        scores = [model(torch.tensor([tokenizer.encode(text)])).logits[0].softmax(-1) for text in texts]
    assert [label.decode() for label in found["label"]] == [tiny.LABELS[int(score.argmax())] for score in scores]
    np.testing.assert_allclose(found["score"], [float(score.max()) for score in scores], rtol=1e-4)
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        await link.infer(tensors(text=np.array([b"\xff"], object)))
    with pytest.raises(InvalidRequest, match="text 0 has"):
        await link.infer(tensors(text=np.array([b"b" * 500], object)))


async def test_an_allocation_that_fails_is_known_as_one() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("the sizes of tensors must match"))


# what is not loaded


async def refused(load: Load, path: Path, said: str, reason: str = "invalid_spec", **options: Any) -> None:
    with pytest.raises(LoadFailed, match=said) as caught:
        await load(path, **options)
    assert caught.value.reason == reason, caught.value.message
    assert str(path) not in caught.value.message


async def test_nothing_that_came_with_a_model_is_run(load: Load, folder: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    tiny.tokenizer(pickled)
    (pickled / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    await refused(load, pickled, r"pytorch_model\.bin is a pickle")
    own = tiny.llama(tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    code = {"AutoConfig": "code.MyConfig", "AutoModelForCausalLM": "code.MyModel"}
    (own / "config.json").write_text(json.dumps({**config, "model_type": "mine", "auto_map": code}))
    (own / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    await refused(load, own, "Transformers cannot load", "load_failed")
    assert not (tmp_path / "ran").exists()


async def test_weights_that_are_missing_are_not_made_up(load: Load, tmp_path: Path) -> None:
    path = tiny.encoder(tmp_path / "headless")
    await refused(load, path, "lacks weights that classification takes .*classifier.bias", task="classification")


async def test_weights_that_are_torn_are_told_of(load: Load, tmp_path: Path) -> None:
    path = tiny.llama(tmp_path / "torn")
    weights = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    await refused(load, path, "Transformers cannot load tiny@1", "load_failed")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "poetry"}, "'task'.*one of chat, completion"),
        ({"device": "cuda"}, "sees no GPU"),
        ({"pooling": "max"}, "one of mean"),
    ],
)
async def test_an_option_that_cannot_be_is_refused(
    load: Load, folder: Path, options: dict[str, Any], said: str
) -> None:
    if options == {"device": "cuda"} and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    await refused(load, folder, said, **options)
