"""The management API and what operators look at."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from moc.models.model import ModelSpec
from moc.testing.devices import fake_reading
from moc.transports.rest.app import protocol_operations
from moc.transports.rest.limits import Limits
from moc.transports.rest.management import NEW_MODEL
from tests.rest_stack import RestStack, client, running

SPEC = {"runtime": "python", "source": "file:echo.py"}


async def add(asking: httpx.AsyncClient, name: str, **changes: Any) -> httpx.Response:
    return await asking.post("/api/v1/models", json={"name": name, **SPEC, **changes})


async def events_of(answer: httpx.Response) -> AsyncIterator[dict[str, str]]:
    event: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            field, _, value = line.partition(": ")
            event[field or "comment"] = value
        else:
            yield event
            event = {}


async def test_a_model_from_its_birth_to_its_end(rest_client: httpx.AsyncClient) -> None:
    created = await add(rest_client, "echo", ttl_s="10m", memory="2GiB", options={"a": 1})
    assert created.status_code == 201
    model = created.json()
    assert (model["reference"], model["state"], model["worker"]) == ("echo@1", "registered", None)
    assert (model["ttl_s"], model["memory_bytes"]) == (600.0, 2 * 2**30)
    again = await add(rest_client, "echo", ttl_s="10m", memory="2GiB", options={"a": 1})
    assert again.json()["version"] == 1
    assert (await add(rest_client, "echo")).json()["version"] == 2
    assert (await rest_client.get("/api/v1/models/echo")).json()["version"] == 2
    assert (await rest_client.get("/api/v1/models/echo@1")).json()["version"] == 1
    versions = (await rest_client.get("/api/v1/models/echo/versions")).json()["versions"]
    assert [version["version"] for version in versions] == [1, 2]
    assert (await rest_client.post("/api/v1/models/echo/pull")).json()["artifact"]["size_bytes"] == 1
    loaded = (await rest_client.post("/api/v1/models/echo/versions/1/load")).json()
    assert (loaded["reference"], loaded["state"]) == ("echo@1", "ready")
    assert loaded["worker"]["model"] == "echo@1"
    unloaded = (await rest_client.post("/api/v1/models/echo@1/unload")).json()
    assert unloaded["state"] == "registered"
    assert (await rest_client.delete("/api/v1/models/echo/versions/1")).status_code == 204
    assert (await rest_client.get("/api/v1/models/echo/versions/1")).status_code == 404
    gone = await rest_client.delete("/api/v1/models/echo")
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await rest_client.get("/api/v1/models/echo")).status_code == 404


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"[]", "not what this takes"),
        (b'{"runtime": "python", "source": "file:x"}', "name"),
        (b'{"name": "x", "runtime": "python"}', "source"),
        (b'{"name": "x", "runtime": "pythn", "source": "file:x"}', "runtime"),
        (b'{"name": "x", "runtime": "python", "sauce": "file:x"}', "did you mean 'source'"),
        (b'{"name": "../x", "runtime": "python", "source": "file:x"}', "x"),
        (b'{"name": "x", "runtime": "python", "source": "file:x", "ttl_s": NaN}', "not JSON"),
        (b'{"name": "x", "runtime": "python", "source": "file:x", "priority": 11}', "priority"),
        (b'{"options":' * 100_000, "nested"),
    ],
    ids=range(10),
)
async def test_a_bad_spec_is_refused_with_what_is_wrong(
    rest_client: httpx.AsyncClient, body: bytes, words: str
) -> None:
    answer = await rest_client.post("/api/v1/models", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert words in answer.json()["error"]["message"]
    assert (await rest_client.get("/api/v1/models")).json() == {"models": [], "next": None}


async def test_lists_come_in_pages(rest_client: httpx.AsyncClient) -> None:
    for name in "abc":
        await add(rest_client, name)
    found, after, pages = [], None, 0
    while after is not None or not pages:
        query = {"limit": "2"} | ({"after": after} if after else {})
        page = (await rest_client.get("/api/v1/models", params=query)).json()
        found += [model["name"] for model in page["models"]]
        after, pages = page["next"], pages + 1
    assert (found, pages) == (["a", "b", "c"], 2)


async def test_workers_are_listed_and_shown(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    assert (await rest_client.get("/api/v1/workers")).json() == {"workers": [], "next": None}
    await rest_stack.load()
    (worker,) = (await rest_client.get("/api/v1/workers")).json()["workers"]
    assert worker["model"] == "echo@1"
    assert {"id", "pid", "model", "state", "adopted"} <= set(worker)
    assert (await rest_client.get(f"/api/v1/workers/{worker['id']}")).json() == worker
    assert (await rest_client.get("/api/v1/workers/nobody")).status_code == 404


async def test_devices_are_listed_shown_and_cordoned(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    rest_stack.device.readings.append(fake_reading("declared:0/mig:1", capacity_bytes=1000, used_bytes=600))
    await rest_stack.devices.refresh()
    listed = (await rest_client.get("/api/v1/devices")).json()
    assert [(device["id"], device["state"]) for device in listed["devices"]] == [
        ("declared:0", "online"),
        ("declared:0/mig:1", "online"),
    ]
    page = (await rest_client.get("/api/v1/devices", params={"limit": 1})).json()
    rest = await rest_client.get("/api/v1/devices", params={"after": page["next"]})
    assert rest.json() == {"devices": listed["devices"][1:], "next": None}
    path = "/api/v1/devices/declared:0%2Fmig:1"
    shown = (await rest_client.get(path)).json()
    assert (shown["capacity_bytes"], shown["limit_bytes"], shown["measured_bytes"]) == (1000, 900, 600)
    assert (shown["unmanaged_bytes"], shown["charges"], shown["temperature_c"]) == (600, [], None)
    for state in ("cordoned", "cordoned", "online"):
        changed = await rest_client.patch(path, json={"state": state})
        assert (changed.status_code, changed.json()["state"]) == (200, state)
    assert (await rest_client.patch(path, json={"state": "lost"})).status_code == 400
    assert (await rest_client.patch("/api/v1/devices/nothing", json={"state": "online"})).status_code == 404
    assert (await rest_client.get("/api/v1/devices/nothing")).status_code == 404
    text = (await rest_client.get("/metrics")).text
    assert 'modelops_device_memory_used_bytes{device="declared:0/mig:1"} 600.0' in text
    assert 'modelops_device_state{device="declared:0",state="online"} 1.0' in text


async def test_the_system_and_its_health(rest_client: httpx.AsyncClient) -> None:
    system = (await rest_client.get("/api/v1/system")).json()
    assert (system["version"], system["state"]) == ("1.2.3", "ready")
    health = (await rest_client.get("/health")).json()
    assert (health["status"], health["version"]) == ("ok", "1.2.3")
    assert all(health["parts"].values())
    metrics = await rest_client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=")
    assert "modelops_build_info" in metrics.text


async def test_events_are_listed(rest_client: httpx.AsyncClient) -> None:
    await add(rest_client, "echo")
    query = {"follow": "false", "limit": "1"}
    first = (await rest_client.get("/api/v1/events", params=query)).json()
    (event,) = first["events"]
    assert first["next"] == event["id"]
    rest = (await rest_client.get("/api/v1/events", params={"follow": "false", "after": first["next"]})).json()
    assert [later["subject"] for later in rest["events"]] == ["declared:0", "1", "echo@1"]
    assert all(later["id"] > event["id"] for later in rest["events"])
    assert rest["next"] is None


async def test_events_are_followed_from_now_or_from_where_one_was(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    await add(rest_client, "before")
    async with rest_client.stream("GET", "/api/v1/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = events_of(answer)
        assert "comment" in await anext(events)
        await add(rest_client, "after")
        event = await anext(events)
    body = json.loads(event["data"])
    assert (event["id"], event["event"], body["subject"]) == (str(body["id"]), body["kind"], "after@1")
    for query, headers in (({"after": "0"}, {}), ({}, {"last-event-id": "0"})):
        async with rest_client.stream("GET", "/api/v1/events", params=query, headers=headers) as answer:
            events = events_of(answer)
            await anext(events)
            assert (await anext(events))["id"] == "1"
    bad = await rest_client.get("/api/v1/events", headers={"last-event-id": "x"})
    assert bad.status_code == 400


async def test_a_quiet_event_stream_says_that_it_lives(tmp_path: Any) -> None:
    async with (
        running(tmp_path, Limits(event_keep_alive_s=0.01)) as stack,
        client(stack) as asking,
        asking.stream("GET", "/api/v1/events") as answer,
    ):
        events = events_of(answer)
        async with asyncio.timeout(10):
            assert [("comment" in await anext(events)) for _ in range(3)] == [True] * 3


async def test_the_document_covers_every_route(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    document = (await rest_client.get("/openapi.json")).json()
    paths = document["paths"]
    for operation in protocol_operations(rest_stack.services):
        assert operation.method.lower() in paths[operation.path]
    for path in ("/api/v1/models", "/api/v1/events", "/api/v1/system", "/livez", "/metrics", "/docs"):
        assert "get" in paths[path]
    described = [operation for methods in paths.values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in described}) == len(described)
    assert all({"4XX", "5XX"} <= set(operation["responses"]) for operation in described)
    keyless = {path for path, methods in paths.items() for each in methods.values() if each.get("security") == []}
    assert keyless == {"/livez", "/readyz", "/startupz", "/v2/health/live", "/v2/health/ready"}
    assert document["security"] == [{"bearer": []}, {"key": []}]


async def test_every_reference_in_the_document_leads_somewhere(rest_client: httpx.AsyncClient) -> None:
    document = (await rest_client.get("/openapi.json")).json()

    def references(part: Any) -> set[str]:
        if isinstance(part, dict):
            found = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
            return found.union(*map(references, part.values()))
        return set().union(*map(references, part)) if isinstance(part, list) else set()

    for reference in references(document):
        found: Any = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]


def test_the_document_of_a_new_model_has_every_field_of_a_spec() -> None:
    expected = {*ModelSpec.__dataclass_fields__, "name", "memory"}
    assert set(NEW_MODEL["properties"]) == expected
