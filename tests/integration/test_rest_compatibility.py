"""The paths of the first generation of this system."""

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from moc.inference.request import Reply, Request
from tests.rest_stack import INFO, EchoLink, RestStack

ASKED: dict[str, Any] = {"model_name": "echo", "prompt": "Once", "max_tokens": 3, "parameters": {"seed": 7}}


class Writer(EchoLink):
    """Always writes the same."""

    async def infer(self, request: Request) -> Reply:
        await super().infer(request)
        return Reply(b'{"choices": [{"text": " upon a time"}], "usage": {"completion_tokens": 3}}')


@pytest.fixture
async def writer(rest_stack: RestStack) -> Writer:
    """The engine of `echo`."""
    await rest_stack.load()
    (worker,) = rest_stack.workers.workers()
    link = rest_stack.workers.links[worker.id] = Writer(INFO)
    return link


async def test_a_prompt_is_continued(rest_client: httpx.AsyncClient, writer: Writer) -> None:
    answer = await rest_client.post("/inference", json=ASKED)
    told = answer.json()
    assert told.pop("inference_time_ms") >= 0
    assert told == {"response_text": " upon a time", "tokens_generated": 3, "status": "success", "error_message": ""}
    assert answer.headers["x-moc-model"] == "echo@1"
    given = writer.given[0]
    assert (given.kind, msgspec.json.decode(given.body)) == (
        "completion",
        {"model": "echo", "prompt": "Once", "max_tokens": 3, "seed": 7, "stream": False},
    )


async def test_the_newer_name_of_the_model_will_do(rest_client: httpx.AsyncClient, writer: Writer) -> None:
    answer = await rest_client.post("/inference", json={"model": "echo", "prompt": "Once", "temperature": 0})
    assert answer.status_code == 200
    assert msgspec.json.decode(writer.given[0].body)["temperature"] == 0


@pytest.mark.parametrize(
    ("wrong", "status", "code"),
    [
        ({"model_name": ""}, 400, "invalid_request"),
        ({"prompt": None}, 400, "invalid_request"),
        ({"max_tokens": 0}, 400, "invalid_request"),
        ({"parameters": {"stream": True}}, 400, "invalid_request"),
        ({"model_name": "nobody"}, 404, "not_found"),
    ],
)
async def test_a_failure_is_told_as_on_every_path(
    rest_client: httpx.AsyncClient, writer: Writer, wrong: dict[str, Any], status: int, code: str
) -> None:
    answer = await rest_client.post("/inference", json={**ASKED, **wrong})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert writer.given == []


async def test_a_client_that_leaves_frees_its_place(rest_client: httpx.AsyncClient, writer: Writer) -> None:
    writer.gate.clear()
    asking = asyncio.create_task(rest_client.post("/inference", json=ASKED))
    await writer.began.wait()
    asking.cancel()
    await writer.idle()
    assert writer.cancelled == 1


async def test_a_model_is_added_loaded_listed_and_unloaded(rest_client: httpx.AsyncClient) -> None:
    body = {"model_name": "tale", "model_path": "/models/tale.gguf", "load_params": {"priority": 2}, "shards": 1}
    loaded = await rest_client.post("/models", json=body)
    assert loaded.status_code == 200, loaded.text
    told = loaded.json()
    assert (told["reference"], told["state"]) == ("tale@1", "ready")
    assert (told["runtime"], told["source"]) == ("llama_cpp", "file:/models/tale.gguf")
    assert told["priority"] == 2
    listed = (await rest_client.get("/models")).json()
    assert [model["reference"] for model in listed["models"]] == ["tale@1"]
    unloaded = await rest_client.delete("/models/tale")
    assert (unloaded.status_code, unloaded.json()["state"]) == (200, "registered")
    again = await rest_client.post("/models", json={"model_name": "tale"})
    assert (again.status_code, again.json()["reference"], again.json()["state"]) == (200, "tale@1", "ready")


async def test_a_model_that_nobody_knows_is_not_loaded(rest_client: httpx.AsyncClient) -> None:
    answer = await rest_client.post("/models", json={"model_name": "nobody"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_a_job_in_the_older_words(rest_client: httpx.AsyncClient) -> None:
    wish = {"job_type": "sft", "model_name": "tale", "name": "fable", "training_file": "file-1"}
    job = (await rest_client.post("/learning/jobs", json=wish)).json()
    assert (job["type"], job["model"], job["name"]) == ("supervised", "tale", "fable")
    assert [each["id"] for each in (await rest_client.get("/learning/jobs")).json()["jobs"]] == [job["id"]]


async def test_what_there_is_not_yet_says_so(rest_client: httpx.AsyncClient) -> None:
    for answer in (await rest_client.get("/goals"), await rest_client.post("/goals", json={})):
        assert (answer.status_code, answer.json()["error"]["code"]) == (501, "unimplemented")


async def test_the_document_tells_of_them_as_old(rest_client: httpx.AsyncClient) -> None:
    paths = (await rest_client.get("/openapi.json")).json()["paths"]
    old = {
        f"{method} {path}"
        for path, methods in paths.items()
        for method, described in methods.items()
        if described.get("deprecated")
    }
    assert old == {
        "post /inference",
        "get /models",
        "post /models",
        "delete /models/{name}",
        "get /learning/jobs",
        "post /learning/jobs",
        "get /goals",
        "post /goals",
    }
    for door in old:
        method, _, path = door.partition(" ")
        assert paths[path][method]["tags"] == ["compatibility"]
