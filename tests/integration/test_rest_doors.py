"""The APIs that are told as chats, and those for documents and speech, before engines that are fakes."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from moc.inference.request import Info, Kind, Reply, Request
from moc.kernel.errors import Internal, QueueFull
from tests.rest_stack import EchoLink, RestStack
from tests.unit.chats import chunk, named, text, usage

MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
TURNS = [{"role": "user", "content": "hi"}]
ASKED: dict[str, dict[str, Any]] = {
    MESSAGES: {"model": "echo", "max_tokens": 9, "messages": TURNS},
    RESPONSES: {"model": "echo", "max_output_tokens": 9, "input": "hi"},
}
ANSWER = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": usage(7, 3),
}
PIECES = [text(None), text("hel"), text("lo"), chunk(finish_reason="stop"), chunk(usage=usage(7, 2))]
SOUND = b"RIFF\x00\r\n--x\r\n\xff"


class Engine(EchoLink):
    """Answers with `answer`, or in `pieces`; after the last of them fails with `error` if there is one."""

    def __init__(self, *kinds: Kind) -> None:
        super().__init__(Info(kinds=kinds, engine="fake", concurrency=2))
        self.answer: Any = ANSWER
        self.pieces = PIECES

    async def infer(self, request: Request) -> Reply:
        await super().infer(request)
        return Reply(msgspec.json.encode(self.answer))

    async def stream(self, request: Request) -> AsyncIterator[list[bytes]]:
        self.given.append(request)
        self.running += 1
        try:
            for piece in self.pieces:
                yield [piece]
                await self.gate.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.running -= 1
            await self._ended()

    def asked(self) -> dict[str, Any]:
        """The newest request's body."""
        return json.loads(bytes(self.given[-1].body))


@pytest.fixture
async def engine(rest_stack: RestStack) -> Engine:
    """The engine of `echo`, which can do everything."""
    return await loaded(rest_stack, "chat", "completion", "rerank", "transcription")


async def loaded(stack: RestStack, *kinds: Kind) -> Engine:
    given = await stack.load()
    (worker,) = stack.workers.workers()
    assert stack.workers.links[worker.id] is given
    engine = stack.workers.links[worker.id] = Engine(*kinds)
    return engine


async def test_a_message_is_a_chat(rest_client: httpx.AsyncClient, engine: Engine) -> None:
    answer = await rest_client.post(MESSAGES, json=ASKED[MESSAGES])
    assert answer.status_code == 200
    assert answer.json()["content"] == [{"type": "text", "text": "hello"}]
    assert (answer.json()["model"], answer.headers["x-moc-model"]) == ("echo@1", "echo@1")
    assert engine.given[0].kind == "chat"
    assert engine.asked() == {"model": "echo", "max_tokens": 9, "messages": TURNS}


async def test_a_response_is_a_chat(rest_client: httpx.AsyncClient, engine: Engine) -> None:
    answer = await rest_client.post(RESPONSES, json=ASKED[RESPONSES])
    assert answer.status_code == 200
    assert answer.json()["output"][0]["content"][0]["text"] == "hello"
    assert (answer.json()["model"], answer.headers["x-moc-model"]) == ("echo@1", "echo@1")
    assert engine.asked() == {"model": "echo", "max_tokens": 9, "messages": TURNS}


@pytest.mark.parametrize(
    ("path", "delta", "last"),
    [
        (MESSAGES, "content_block_delta", "message_stop"),
        (RESPONSES, "response.output_text.delta", "response.completed"),
    ],
)
async def test_streams_are_named_events(
    rest_client: httpx.AsyncClient, engine: Engine, path: str, delta: str, last: str
) -> None:
    answer = await rest_client.post(path, json={**ASKED[path], "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = named([answer.content])
    assert [event["type"] for event in events].count(delta) == 2
    assert events[-1]["type"] == last
    assert engine.asked()["stream"] is True
    assert engine.asked()["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(("path", "last"), [(MESSAGES, "error"), (RESPONSES, "response.failed")])
async def test_an_error_on_the_way_is_the_last_event(
    rest_client: httpx.AsyncClient, engine: Engine, path: str, last: str
) -> None:
    engine.pieces, engine.error = PIECES[:2], Internal("the engine gave up")
    answer = await rest_client.post(path, json={**ASKED[path], "stream": True})
    events = named([answer.content])
    assert (answer.status_code, events[-1]["type"]) == (200, last)
    assert "the engine gave up" in json.dumps(events[-1])


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
async def test_a_piece_that_is_no_chat_ends_the_stream(
    rest_client: httpx.AsyncClient, engine: Engine, path: str
) -> None:
    engine.pieces = [PIECES[1], b'{"choices": "none"}', PIECES[2]]
    answer = await rest_client.post(path, json={**ASKED[path], "stream": True})
    assert "something else than a chat answer" in json.dumps(named([answer.content])[-1])
    await engine.idle()


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
async def test_a_client_that_leaves_frees_its_place(rest_client: httpx.AsyncClient, engine: Engine, path: str) -> None:
    engine.pieces = PIECES[1:]
    engine.gate.clear()
    asking = asyncio.create_task(rest_client.post(path, json=ASKED[path]))
    await engine.began.wait()
    asking.cancel()
    await engine.idle()
    async with rest_client.stream("POST", path, json={**ASKED[path], "stream": True}) as answer:
        await anext(answer.aiter_text())
        assert engine.running == 1
    await engine.idle()


async def test_an_error_is_told_as_anthropic_tells_it(rest_client: httpx.AsyncClient, engine: Engine) -> None:
    answer = await rest_client.post(MESSAGES, json={"model": "echo", "messages": TURNS})
    told = answer.json()
    assert (answer.status_code, told["type"], told["error"]["type"]) == (400, "error", "invalid_request_error")
    assert "max_tokens" in told["error"]["message"]
    assert told["request_id"] == answer.headers["x-moc-request-id"]
    nobody = await rest_client.post(MESSAGES, json={**ASKED[MESSAGES], "model": "nobody"})
    assert (nobody.status_code, nobody.json()["error"]["type"]) == (404, "not_found_error")
    engine.error = QueueFull("full")
    full = await rest_client.post(MESSAGES, json=ASKED[MESSAGES])
    assert (full.status_code, full.json()["error"]["type"]) == (429, "overloaded_error")


async def test_an_unknown_model_is_told_as_openai_tells_it(rest_client: httpx.AsyncClient, engine: Engine) -> None:
    for more in ({}, {"stream": True}):
        answer = await rest_client.post(RESPONSES, json={**ASKED[RESPONSES], "model": "nobody", **more})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    "path", [MESSAGES, RESPONSES, "/v1/rerank", "/v1/audio/transcriptions", "/inference", "/models", "/goals"]
)
async def test_nobody_enters_without_a_key(rest_stack: RestStack, path: str) -> None:
    async with httpx.AsyncClient(base_url=rest_stack.rest.url) as stranger:
        answer = await stranger.post(path, json={})
    assert answer.status_code == 401
    assert answer.json()["error"]


async def test_the_key_of_an_anthropic_client_opens(rest_stack: RestStack, engine: Engine) -> None:
    headers = {"x-api-key": rest_stack.key, "anthropic-version": "2023-06-01"}
    async with httpx.AsyncClient(base_url=rest_stack.rest.url, headers=headers) as client:
        assert (await client.post(MESSAGES, json=ASKED[MESSAGES])).status_code == 200


RANK: dict[str, Any] = {"model": "echo", "query": "a river", "documents": ["cat", {"text": "Rhine"}, "sea"]}


async def test_documents_are_ordered(rest_client: httpx.AsyncClient, engine: Engine) -> None:
    scores = [0.1, 0.9, 0.5]
    results = [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]
    engine.answer = {"results": results, "usage": {"total_tokens": 7}}
    answer = await rest_client.post("/v1/rerank", json=RANK)
    assert answer.json() == {
        "object": "list",
        "model": "echo@1",
        "results": [results[1], results[2], results[0]],
        "usage": {"total_tokens": 7},
    }
    assert engine.asked() == {"model": "echo", "query": "a river", "documents": ["cat", "Rhine", "sea"]}
    best = await rest_client.post("/v1/rerank", json={**RANK, "top_n": 1, "return_documents": True})
    assert best.json()["results"] == [{**results[1], "document": {"text": "Rhine"}}]


@pytest.mark.parametrize(
    "wrong", [{"documents": []}, {"documents": [7]}, {"query": None}, {"top_n": 0}, {"model": None}]
)
async def test_what_cannot_be_ordered_is_refused(
    rest_client: httpx.AsyncClient, engine: Engine, wrong: dict[str, Any]
) -> None:
    assert (await rest_client.post("/v1/rerank", json={**RANK, **wrong})).status_code == 400
    assert engine.given == []


@pytest.mark.parametrize("results", [[{"index": 3, "relevance_score": 1}], [{"index": 0}], 7])
async def test_scores_that_are_none_are_the_models_fault(
    rest_client: httpx.AsyncClient, engine: Engine, results: Any
) -> None:
    engine.answer = {"results": results}
    assert (await rest_client.post("/v1/rerank", json=RANK)).status_code == 500


async def transcribed(client: httpx.AsyncClient, **fields: str) -> httpx.Response:
    files = {"file": ("said.wav", SOUND, "audio/wav")}
    return await client.post("/v1/audio/transcriptions", data={"model": "echo", **fields}, files=files)


async def test_speech_reaches_the_engine_as_it_came(rest_client: httpx.AsyncClient, engine: Engine) -> None:
    engine.answer = {"text": "hello", "language": "en", "duration": 1.5, "segments": [{"id": 0}]}
    answer = await transcribed(rest_client, language="en", prompt="hello", temperature="0.5")
    assert answer.json() == {"text": "hello"}
    assert answer.headers["x-moc-model"] == "echo@1"
    given = engine.given[0]
    assert (given.kind, bytes(given.body)) == ("transcription", SOUND)
    assert given.parameters == {"language": "en", "prompt": "hello", "temperature": 0.5}
    plain = await transcribed(rest_client, response_format="text")
    assert (plain.headers["content-type"], plain.text) == ("text/plain; charset=utf-8", "hello\n")
    told = await transcribed(rest_client, response_format="verbose_json")
    assert told.json() == {**engine.answer, "task": "transcribe"}


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"model": ""}, 400),
        ({"model": "nobody"}, 404),
        ({"response_format": "srt"}, 400),
        ({"temperature": "hot"}, 400),
        ({"temperature": "nan"}, 400),
        ({"temperature": "2"}, 400),
        ({"stream": "true"}, 501),
        ({"prompt": "x" * 100_000}, 400),
        ({f"field{number}": "x" for number in range(30)}, 400),
    ],
)
async def test_a_form_that_is_wrong_is_refused(
    rest_client: httpx.AsyncClient, engine: Engine, fields: dict[str, str], status: int
) -> None:
    answer = await transcribed(rest_client, **fields)
    assert (answer.status_code, bool(answer.json()["error"]["message"])) == (status, True)
    assert engine.given == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b'{"model": "echo"}'),
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"nothing"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n--x--"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nhi\r\n--x--'),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhi',
        ),
    ],
    ids=range(7),
)
async def test_a_body_that_is_no_form_is_refused(
    rest_client: httpx.AsyncClient, engine: Engine, kind: str, body: bytes
) -> None:
    answer = await rest_client.post("/v1/audio/transcriptions", content=body, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


async def test_two_files_are_one_too_many(rest_client: httpx.AsyncClient, engine: Engine) -> None:
    files = [("file", ("a", SOUND)), ("more", ("b", SOUND))]
    answer = await rest_client.post("/v1/audio/transcriptions", data={"model": "echo"}, files=files)
    assert answer.status_code == 400


async def test_an_engine_that_cannot_says_so(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    await loaded(rest_stack, "tensors")
    for answer in (
        await rest_client.post(MESSAGES, json=ASKED[MESSAGES]),
        await rest_client.post(RESPONSES, json={**ASKED[RESPONSES], "stream": True}),
        await rest_client.post("/v1/rerank", json=RANK),
        await transcribed(rest_client),
    ):
        assert answer.status_code == 501
        assert "it can do tensors" in answer.json()["error"]["message"]
