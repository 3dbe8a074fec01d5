"""Inference over the OpenAI API and the Open Inference Protocol."""

import asyncio
import json
import struct
from typing import Any

import httpx
import pytest

from moc.kernel.errors import InvalidRequest
from tests.rest_stack import EchoLink, RestStack

INFER = "/v2/models/echo/infer"
TENSOR: dict[str, Any] = {"name": "INPUT0", "shape": [1, 4], "datatype": "FP32", "data": [[1, 2, 3, 4.5]]}
CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "héllo"}], "seed": 7}


@pytest.fixture
async def link(rest_stack: RestStack) -> EchoLink:
    """The line to the worker of `echo`."""
    return await rest_stack.load()


async def test_tensors_make_the_round_trip(rest_client: httpx.AsyncClient, link: EchoLink) -> None:
    answer = await rest_client.post(INFER, json={"inputs": [TENSOR], "id": "seven"})
    assert answer.status_code == 200
    assert answer.json() == {
        "model_name": "echo",
        "model_version": "1",
        "id": "seven",
        "outputs": [{"name": "OUTPUT0", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4.5]}],
    }
    assert answer.headers["x-moc-model"] == "echo@1"
    assert answer.headers["x-moc-digest"].startswith("sha256:")
    assert float(answer.headers["x-moc-queue-ms"]) >= 0
    assert link.given[0].inputs[0].size == 16


async def test_binary_tensors_make_the_round_trip(rest_client: httpx.AsyncClient, link: EchoLink) -> None:
    data = struct.pack("<4f", 1, 2, 3, 4.5)
    tensor = {key: value for key, value in TENSOR.items() if key != "data"} | {"parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    answer = await rest_client.post("/v2/models/echo/versions/1/infer", content=head + data, headers=headers)
    assert answer.status_code == 200
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert answer.content[length:] == data


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"inputs": []}', b"\xff", b"[" * 10**5], ids=range(7))
async def test_a_body_that_is_no_request_is_refused(
    rest_client: httpx.AsyncClient, link: EchoLink, body: bytes
) -> None:
    answer = await rest_client.post(INFER, content=body)
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)
    assert link.given == []


async def test_the_engine_gets_the_body_as_it_came(rest_client: httpx.AsyncClient, link: EchoLink) -> None:
    body = b'{ "model": "echo",  "messages": [], "unknown": [1, {"a": null}] }'
    answer = await rest_client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 200
    assert answer.content == body
    assert (link.given[0].kind, bytes(link.given[0].body)) == ("chat", body)
    assert answer.headers["x-moc-model"] == "echo@1"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_streams_are_events_with_an_end(rest_client: httpx.AsyncClient, link: EchoLink, path: str) -> None:
    answer = await rest_client.post(path, json={**CHAT, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == (
        'data: {"choices":[{"text":"one"}]}\n\n'
        'data: {"choices": [{"text":" two"}]}\n\n'
        'data: {"choices":[{"text":" three"}]}\n\n'
        "data: [DONE]\n\n"
    )


async def test_an_error_on_the_way_is_the_last_event(rest_client: httpx.AsyncClient, link: EchoLink) -> None:
    link.error = InvalidRequest("the engine gave up")
    answer = await rest_client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.status_code == 200
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert len(events) == 3
    told = "the answer is incomplete, it broke off after 2 chunks: the engine gave up"
    assert json.loads(events[-1])["error"]["message"] == told
    assert "[DONE]" not in answer.text


async def test_a_client_that_leaves_a_stream_stops_the_engine(rest_client: httpx.AsyncClient, link: EchoLink) -> None:
    link.gate.clear()
    async with rest_client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        assert "one" in await anext(answer.aiter_text())
        assert link.running == 1
    await link.idle()


@pytest.mark.parametrize("path", ["/v1/chat/completions", INFER])
async def test_a_client_that_leaves_frees_its_place(rest_client: httpx.AsyncClient, link: EchoLink, path: str) -> None:
    link.gate.clear()
    asking = asyncio.create_task(rest_client.post(path, json={**CHAT, "inputs": [TENSOR]}))
    await link.began.wait()
    asking.cancel()
    await link.idle()
    assert link.cancelled == 1


async def test_a_deadline_ends_the_request(rest_client: httpx.AsyncClient, link: EchoLink) -> None:
    link.gate.clear()
    headers = {"x-moc-deadline-ms": "20"}
    chat = await rest_client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert (chat.status_code, chat.json()["error"]["code"]) == (504, "deadline_exceeded")
    tensors = await rest_client.post(INFER, json={"inputs": [TENSOR], "parameters": {"timeout": 20_000}})
    assert tensors.status_code == 503
    assert tensors.headers["retry-after"] == "1"
    assert link.running == 0


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "nobody", "messages": []}, 404, "model_not_found"),
        ({"model": "no body"}, 400, "invalid_request"),
        ({"messages": []}, 400, "invalid_request"),
        ({"model": 7}, 400, "invalid_request"),
        ({"model": "echo", "stream": "yes"}, 400, "invalid_request"),
        ([], 400, "invalid_request"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_openai_errors(
    rest_client: httpx.AsyncClient, link: EchoLink, body: Any, status: int, code: str, stream: bool
) -> None:
    if stream and isinstance(body, dict):
        body = {"stream": True, **body}
    answer = await rest_client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_what_the_model_cannot_do_is_not_implemented(rest_client: httpx.AsyncClient, link: EchoLink) -> None:
    answer = await rest_client.post("/v1/embeddings", json={"model": "echo", "input": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "unimplemented")


async def test_models_are_listed_and_shown(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    await rest_stack.load("first")
    await rest_stack.load("second")
    found = (await rest_client.get("/v1/models")).json()
    assert found["object"] == "list"
    assert [(card["id"], card["object"]) for card in found["data"]] == [("first", "model"), ("second", "model")]
    shown = (await rest_client.get("/v1/models/second@1")).json()
    assert shown["id"] == "second@1"
    assert shown["created"] > 1_700_000_000


async def test_health_and_metadata_bodies(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    await rest_stack.load()

    async def get(path: str) -> Any:
        return (await rest_client.get(path)).json()

    assert await get("/v2/health/live") == {"live": True}
    assert await get("/v2/health/ready") == {"ready": True, "live": True}
    assert await get("/v2/models/echo/ready") == {"ready": True, "name": "echo"}
    assert await get("/v2/models/echo/versions/1/ready") == {"ready": True, "name": "echo"}
    assert await get("/v2") == await get("/v2/")
    assert {"model_repository", "statistics", "model_configuration", "binary_tensor_data"} <= set(
        (await get("/v2"))["extensions"]
    )
    metadata = await get("/v2/models/echo")
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("echo", ["1"], "python")
    assert (await get("/v2/models/echo/config"))["name"] == "echo"


async def test_readiness_follows_the_state(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    rest_stack.replica.state = "draining"
    for path in ("/v2/health/ready", "/readyz"):
        assert (await rest_client.get(path)).status_code == 503
    assert (await rest_client.get("/v2/health/ready")).json()["ready"] is False
    for path in ("/v2/health/live", "/livez"):
        assert (await rest_client.get(path)).status_code == 200


async def test_a_model_is_loaded_and_unloaded_through_the_repository(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    async def state() -> str:
        ((_, found),) = [
            (entry["name"], entry["state"]) for entry in (await rest_client.post("/v2/repository/index")).json()
        ]
        return str(found)

    await rest_stack.load()
    assert await state() == "READY"
    assert (await rest_client.post("/v2/repository/models/echo/unload")).status_code == 200
    assert await state() == "UNAVAILABLE"
    assert (await rest_client.post("/v2/repository/index", json={"ready": True})).json() == []
    assert (await rest_client.get("/v2/models/echo/ready")).status_code == 503
    assert (await rest_client.post("/v2/repository/models/echo/load", json={"parameters": {}})).status_code == 200
    assert (await rest_client.get("/v2/models/echo/ready")).status_code == 200
    assert (await rest_client.post("/v2/repository/models/nobody/unload")).status_code == 200
    assert (await rest_client.post("/v2/repository/models/nobody/load")).status_code == 404
    refused = await rest_client.post("/v2/repository/models/echo/load", json={"parameters": {"config": "{}"}})
    assert refused.status_code == 501


async def test_statistics_count_what_was_served(rest_client: httpx.AsyncClient, link: EchoLink) -> None:
    for _ in range(3):
        await rest_client.post(INFER, json={"inputs": [TENSOR]})
    for path in ("/v2/models/stats", "/v2/models/echo/stats", "/v2/models/echo/versions/1/stats"):
        (found,) = (await rest_client.get(path)).json()["model_stats"]
        assert (found["name"], found["version"], found["inference_count"]) == ("echo", "1", 3)
        assert found["inference_stats"]["success"]["count"] == 3
        assert found["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}


async def test_generate_is_a_completion(rest_client: httpx.AsyncClient, link: EchoLink) -> None:
    asked = {"text_input": "hello", "parameters": {"max_tokens": 4}, "id": "seven"}
    answer = await rest_client.post("/v2/models/echo/generate", json=asked)
    assert answer.json() == {"id": "seven", "model_name": "echo", "model_version": "1", "text_output": ""}
    sent = json.loads(bytes(link.given[0].body))
    assert sent == {"model": "echo", "prompt": "hello", "max_tokens": 4, "stream": False}
    stream = await rest_client.post("/v2/models/echo/generate_stream", json=asked)
    events = [json.loads(line.removeprefix("data: ")) for line in stream.text.splitlines() if line]
    assert "".join(event["text_output"] for event in events) == "one two three"
    clash = await rest_client.post("/v2/models/echo/generate", json={**asked, "parameters": {"prompt": "x"}})
    assert clash.status_code == 400
