"""A real language model in a real worker: what it answers, and that nobody's slot is kept who left."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from moc.inference.request import Request
from moc.kernel.errors import InvalidRequest, LoadFailed, Unimplemented
from moc.models.ports import Launch
from moc.workers.link import WorkerLink
from tests.hosted import Host, host, start
from tests.models import smollm2_path


@pytest.fixture
async def here() -> AsyncIterator[Host]:
    with tempfile.TemporaryDirectory(prefix="moc-") as short:  # a socket's path must be
        async with host(Path(short)) as it:
            yield it


async def loaded(here: Host, **options: Any) -> WorkerLink:
    workers = await here.coordinator()
    path = str(smollm2_path())
    worker = await start(
        workers, Launch(model="smollm2@1", digest="d", runtime="llama_cpp", path=path, options=options)
    )
    link = workers.link(worker.id)
    assert link is not None
    return link


def chat(content: str, **fields: Any) -> Request:
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 24, **fields}
    return Request("chat", json.dumps(body).encode())


def completion(prompt: Any, **fields: Any) -> Request:
    return Request("completion", json.dumps({"prompt": prompt, "temperature": 0, "max_tokens": 8, **fields}).encode())


async def answer(link: WorkerLink, request: Request) -> dict[str, Any]:
    return json.loads(bytes((await link.infer(request)).body))


def timeless(value: dict[str, Any]) -> dict[str, Any]:
    """An answer without what differs from one time to the next."""
    return {key: entry for key, entry in value.items() if key not in ("id", "created", "timings", "usage")}


SINGLE = [
    chat("Name three rivers."),
    chat("Name three rivers.", logprobs=True, top_logprobs=2),
    chat("Name three rivers.", stop=["River"]),
    chat("Give me JSON.", response_format={"type": "json_object"}),
    completion("Once upon"),
    completion("Once upon", logprobs=1),
    completion("", max_tokens=2),
]


@pytest.mark.parametrize("request_", SINGLE, ids=range(len(SINGLE)))
async def test_an_answer_put_together_is_the_one_the_engine_gives_in_one_piece(here: Host, request_: Request) -> None:
    link = await loaded(here)
    together = await answer(link, request_)
    fields = json.loads(bytes(request_.body))
    # asked for one choice in this way the engine is not made to stream
    piece = await answer(link, Request(request_.kind, json.dumps({**fields, "n": 1.0}).encode()))
    assert timeless(together) == timeless(piece)
    assert together["usage"]["completion_tokens"] == piece["usage"]["completion_tokens"]


async def test_several_choices_and_several_prompts_are_answered(here: Host) -> None:
    link = await loaded(here)
    assert len((await answer(link, chat("Hi", n=2)))["choices"]) == 2
    assert len((await answer(link, completion(["One", "Two", "Three"])))["choices"]) == 3


async def test_a_stream_says_what_the_whole_answer_says(here: Host) -> None:
    link = await loaded(here)
    whole = await answer(link, chat("Name three rivers."))
    request = chat("Name three rivers.", stream=True, stream_options={"include_usage": True})
    chunks = [json.loads(chunk) async for some in link.stream(request) for chunk in some]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert {chunk["model"] for chunk in chunks} == {"smollm2@1"}


async def test_a_schema_is_kept_to(here: Host) -> None:
    link = await loaded(here)
    schema = {"type": "object", "properties": {"river": {"type": "string", "maxLength": 12}}, "required": ["river"]}
    request = chat(
        "Name a river.", max_tokens=60, response_format={"type": "json_schema", "json_schema": {"schema": schema}}
    )
    found = await answer(link, request)
    assert set(json.loads(found["choices"][0]["message"]["content"])) == {"river"}


@pytest.mark.parametrize("streamed", [False, True])
async def test_who_leaves_frees_the_slot_at_once(here: Host, streamed: bool) -> None:
    link = await loaded(here, slots=1, context=4096)
    endless = completion("Once upon", max_tokens=3000, ignore_eos=True, stream=streamed)
    if streamed:
        stream = link.stream(endless)
        await anext(stream)
        await stream.aclose()
    else:
        asked = asyncio.create_task(link.infer(endless))
        await asyncio.wait([asked], timeout=0.5)
        asked.cancel()
    async with asyncio.timeout(10):  # the endless one takes half a minute
        await answer(link, completion("Hello", max_tokens=1))


async def progress(link: WorkerLink, prompt: str) -> dict[str, int]:
    """How much of a prompt the engine has, out of how much, when it begins to read it; who asked leaves then."""
    stream = link.stream(completion(prompt, stream=True, return_progress=True))
    try:
        found: dict[str, int] = json.loads((await anext(stream))[0])["prompt_progress"]
        return found
    finally:
        await stream.aclose()


async def test_who_leaves_while_the_prompt_is_read_frees_the_slot(here: Host) -> None:
    """The engine keeps what it has read: of a prompt that was given up it is a part."""
    link = await loaded(here, slots=1, context=4096)
    prompt = " ".join(f"{n}" for n in range(700))
    before = await progress(link, prompt)
    after = await progress(link, prompt)
    assert (before["cache"], after["total"]) == (0, before["total"])
    assert 0 < after["cache"] < after["total"] / 2


async def test_nobody_is_told_of_progress_who_did_not_ask(here: Host) -> None:
    link = await loaded(here, slots=1)
    quiet = [chunk async for some in link.stream(completion("Once upon", stream=True)) for chunk in some]
    assert not any(b"prompt_progress" in chunk for chunk in quiet)


async def test_more_requests_than_slots_are_all_answered(here: Host) -> None:
    link = await loaded(here, slots=2)
    found = await asyncio.gather(*(answer(link, completion(f"{n}, {n + 1},", max_tokens=4)) for n in range(12)))
    assert all(one["usage"]["completion_tokens"] == 4 for one in found)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request("chat", b'{"messages":[{"role":"user","content":"\xff"}]}'), "UTF-8|utf-8"),
        (Request("chat", b"{"), "not a JSON object"),
        (Request("chat", b"[]"), "not a JSON object"),
        (Request("chat", b'{"messages":' + b"[" * 100_000), "not a JSON object"),
        (Request("chat", b"{}"), "messages"),
        (Request("chat", b'{"messages":"hello"}'), "messages"),
        (chat("Hi", temperature="hot"), "temperature"),
        (chat("word " * 5000), "context"),
        (completion(None), "prompt"),
    ],
    ids=["utf8", "torn", "list", "deep", "empty", "text", "temperature", "long", "none"],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_what_cannot_be_answered_is_refused_with_the_engines_reason(
    here: Host, request_: Request, said: str, streamed: bool
) -> None:
    link = await loaded(here)
    asked = anext(link.stream(request_)) if streamed else link.infer(request_)
    with pytest.raises(InvalidRequest, match=said):
        await asked
    assert (await answer(link, chat("Hi", max_tokens=1)))["choices"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_image_is_refused_by_a_model_that_cannot_see(here: Host, streamed: bool) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    link = await loaded(here)
    request = Request("chat", json.dumps({"messages": [{"role": "user", "content": [image]}]}).encode())
    with pytest.raises(Unimplemented, match="image input is not supported by this model"):
        await (anext(link.stream(request)) if streamed else link.infer(request))


async def test_embeddings_are_given_by_a_model_loaded_for_them_and_by_no_other(here: Host) -> None:
    request = Request("embeddings", b'{"input":["one","two"]}')
    with pytest.raises(Unimplemented, match="embeddings"):
        await (await loaded(here)).infer(request)
    link = await loaded(here, embeddings=True, pooling="mean")
    assert link.info.kinds == ("embeddings", "tokenize")
    found = await answer(link, request)
    assert [len(entry["embedding"]) for entry in found["data"]] == [576, 576]
    with pytest.raises(InvalidRequest):
        await link.infer(Request("embeddings", b'{"input":{"no":1}}'))
    with pytest.raises(Unimplemented):
        await anext(link.stream(request))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"slots": 0}, "'slots'.* is 0"),
        ({"context": "big"}, "'context'.*'big'"),
        ({"embeddings": 1}, "'embeddings'"),
        ({"pooling": "max"}, "one of mean, cls"),
        ({"lora": [{"scale": 1}]}, "lora"),
        ({"lora": [{"path": "/nowhere/adapter.gguf"}]}, "no adapter file adapter.gguf"),
    ],
)
async def test_an_option_that_cannot_be_is_refused(here: Host, options: dict[str, Any], said: str) -> None:
    with pytest.raises(LoadFailed, match=said) as caught:
        await loaded(here, **options)
    assert caught.value.reason == "invalid_spec"


async def test_a_broken_template_is_told_in_the_engines_words(here: Host) -> None:
    with pytest.raises(LoadFailed, match="chat template parsing error"):
        await loaded(here, chat_template="{{ broken")
