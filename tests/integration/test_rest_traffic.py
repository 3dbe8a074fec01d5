"""What callers and operators are told over REST of targets that fail, and of circuits."""

import httpx

from moc.kernel.errors import Internal, Unavailable
from moc.models.alias import Alias
from tests.hosted import eventually
from tests.rest_stack import RestStack

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


async def chat(client: httpx.AsyncClient, model: str) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={**CHAT, "model": model})


async def alias(stack: RestStack, *references: str) -> None:
    first, *others = references
    await stack.aliases.set("helper", Alias(versions={first: 1.0}, fallback=tuple(others)), actor="test", reason="Test")


async def test_an_answer_names_the_target_it_came_from(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    failing = await rest_stack.load("first")
    await rest_stack.load("second")
    await alias(rest_stack, "first", "second")
    assert (await chat(rest_client, "helper")).headers["x-moc-model"] == "first@1"
    failing.fault = Internal("out of order")
    answer = await chat(rest_client, "helper")
    assert (answer.status_code, answer.headers["x-moc-model"]) == (200, "second@1")
    counted = 'modelops_fallbacks_total{alias="helper",code="internal",model="first"} 1.0'
    assert counted in (await rest_client.get("/metrics")).text


async def test_the_error_of_all_targets_is_the_most_telling_one(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    for name, why in (("first", "no power"), ("second", "no network")):
        (await rest_stack.load(name)).fault = Unavailable(why, retry_after_s=7)
    await alias(rest_stack, "first", "second")
    answer = await chat(rest_client, "helper")
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "no power")
    assert answer.headers["retry-after"] == "7"


async def test_a_circuit_is_told_of_and_recorded(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    link = await rest_stack.load("echo")
    path = "/api/v1/models/echo/versions/1"
    assert (await rest_client.get(path)).json()["circuit"] == "closed"
    link.fault = Internal("out of order")
    codes = [(await chat(rest_client, "echo")).json()["error"]["code"] for _ in range(5)]
    assert codes == ["internal"] * 4 + ["circuit_open"]
    model = (await rest_client.get(path)).json()
    assert model["circuit"] == "open"
    await eventually(lambda: 'circuit="open"' in rest_stack.metrics.text(lambda: None).decode())
    await rest_stack.traffic.stop()
    events = (await rest_client.get("/api/v1/events", params={"follow": "false"})).json()["events"]
    told = [(event["subject"], event["data"]) for event in events if event["kind"] == "worker.circuit_opened"]
    assert told == [(model["worker"]["id"], {"model": "echo@1"})]
