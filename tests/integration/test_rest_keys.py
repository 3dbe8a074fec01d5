"""Keys, their limits and the audit over REST."""

import asyncio
from typing import Any

import httpx
import pytest

from moc.client import AsyncClient
from moc.security.identity import Role
from moc.security.key import KeyTerms
from moc.security.quota import Rate
from tests.rest_stack import RestStack

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}


def holder(stack: RestStack, token: str) -> httpx.AsyncClient:
    """A client that has some key."""
    return httpx.AsyncClient(base_url=stack.rest.url, headers={"authorization": f"Bearer {token}"}, timeout=10)


async def make(stack: RestStack, role: Role = Role.INFERENCE, **terms: Any) -> str:
    token, _ = await stack.keys.create(KeyTerms(role=role, **terms), actor="test")
    return token


async def test_a_key_is_made_used_rotated_and_revoked(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    wish = {
        "role": "viewer",
        "name": "ci",
        "models": ["a-*"],
        "expires_in_s": 60,
        "rate": "9/min",
        "max_concurrency": 2,
        "weight": 2.5,
    }
    made = await rest_client.post("/api/v1/keys", json=wish)
    assert made.status_code == 201
    key = made.json()
    assert (key["name"], key["state"], key["models"], key["rate"]) == ("ci", "active", ["a-*"], "9/min")
    path = f"/api/v1/keys/{key['id']}"
    async with holder(rest_stack, key["token"]) as owner:
        assert (await owner.get("/v1/models")).status_code == 200
        shown = (await rest_client.get(path)).json()
        assert "token" not in shown
        assert (shown["weight"], shown["last_used_at"] is not None) == (2.5, True)
        rotated = (await rest_client.post(f"{path}/rotate", json={"overlap_s": 60})).json()
        assert (await owner.get("/v1/models")).status_code == 200
        assert (await rest_client.post(f"{path}/rotate")).json()["overlap_until"] is None
        assert (await owner.get("/v1/models")).status_code == 401
    listed = (await rest_client.get("/api/v1/keys")).json()["keys"]
    assert sorted(each["name"] for each in listed) == ["admin", "ci"]
    revoked = await rest_client.delete(path)
    assert (revoked.status_code, revoked.json()["state"]) == (200, "revoked")
    assert (await rest_client.delete(path)).json() == revoked.json()
    async with holder(rest_stack, rotated["token"]) as owner:
        assert (await owner.get("/v1/models")).status_code == 401
    assert (await rest_client.get("/api/v1/keys/nobody")).status_code == 404
    assert (await rest_client.delete("/api/v1/keys/nobody")).status_code == 404


async def test_the_client_manages_keys_and_reads_the_audit(rest_stack: RestStack) -> None:
    async with AsyncClient(rest_stack.rest.url, rest_stack.key) as client:
        made = await client.keys.create("operator", name="bot", models=["a"], rate="5/min", expires_in_s=60)
        assert (made["name"], made["models"], made["rate"]) == ("bot", ["a"], "5/min")
        rotated = await client.keys.rotate(made["id"], overlap_s=5)
        assert rotated["token"] != made["token"]
        assert {key["id"] for key in (await client.keys.list())["items"]} > {made["id"]}
        assert (await client.keys.revoke(made["id"]))["state"] == "revoked"
        assert (await client.keys.show(made["id"]))["state"] == "revoked"
        page = await client.audit.list(limit=2)
        assert [entry["operation"] for entry in page["items"]] == ["keys.rotate", "keys.revoke"]
        assert (await client.audit.list(after=1, limit=1))["next"] == 2
        assert (await client.audit.verify())["whole"]


async def test_keys_are_listed_by_pages(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    for _ in range(4):
        await make(rest_stack)
    found: list[str] = []
    after: dict[str, Any] = {}
    while True:
        page = (await rest_client.get("/api/v1/keys", params={"limit": 2, **after})).json()
        found += [key["id"] for key in page["keys"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert found == sorted(key.id for key in rest_stack.keys.all())


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"role": "root"},
        {"role": "viewer", "rate": "often"},
        {"role": "viewer", "models": "a"},
        {"role": "viewer", "token": "moc_mine"},
        {"role": "admin", "models": ["a"]},
        {"role": "viewer", "expires_in_s": -1},
    ],
)
async def test_a_bad_wish_makes_no_key(rest_stack: RestStack, rest_client: httpx.AsyncClient, body: Any) -> None:
    answer = await rest_client.post("/api/v1/keys", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert len(rest_stack.keys.all()) == 1


async def test_the_last_admin_key_cannot_be_revoked(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    (admin,) = rest_stack.keys.all()
    answer = await rest_client.delete(f"/api/v1/keys/{admin.id}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")


async def test_a_key_for_some_models_sees_no_others(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    for name in ("echo", "other"):
        await rest_stack.load(name)
    async with holder(rest_stack, await make(rest_stack, models=("ech*",))) as owner:
        assert (await owner.post("/v1/chat/completions", json=CHAT)).status_code == 200
        refused = await owner.post("/v1/chat/completions", json={**CHAT, "model": "other"})
        assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
        assert [card["id"] for card in (await owner.get("/v1/models")).json()["data"]] == ["echo"]
        assert [each["name"] for each in (await owner.post("/v2/repository/index")).json()] == ["echo"]
        stats = (await owner.get("/v2/models/stats")).json()["model_stats"]
        assert [each["name"] for each in stats] == ["echo"]
        page = (await owner.get("/api/v1/models?limit=1")).json()
        assert ([each["name"] for each in page["models"]], page["next"]) == (["echo"], None)
        assert (await owner.get("/v2/models/other/ready")).status_code == 403
    assert len((await rest_client.get("/v1/models")).json()["data"]) == 2


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", CHAT), ("/v2/models/echo/generate", {"text_input": "x"}), ("/api/v1/models", None)],
)
async def test_a_key_asks_no_more_often_than_it_may(rest_stack: RestStack, path: str, body: Any) -> None:
    await rest_stack.load()
    async with holder(rest_stack, await make(rest_stack, rate=Rate(2, 86_400))) as owner:
        answers = [await owner.request("POST" if body else "GET", path, json=body) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 86_000 < int(answers[-1].headers["retry-after"]) <= 86_400
    assert "2/d" in answers[-1].text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_key_has_no_more_at_work_than_it_may(rest_stack: RestStack, stream: bool) -> None:
    link = await rest_stack.load()
    link.gate.clear()
    wish = {**CHAT, "stream": stream}
    async with holder(rest_stack, await make(rest_stack, max_concurrency=1)) as owner:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(owner.post("/v1/chat/completions", json=wish))
            await link.began.wait()
            second = await owner.post("/v1/chat/completions", json=CHAT)
            assert (second.status_code, second.json()["error"]["code"]) == (429, "rate_limited")
            assert second.headers["retry-after"] == "1"
            async with holder(rest_stack, await make(rest_stack, max_concurrency=1)) as other:
                own = group.create_task(other.post("/v1/chat/completions", json=CHAT))
                link.gate.set()
                assert (await own).status_code == 200
        assert first.result().status_code == 200
        assert (await owner.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_a_stream_that_its_client_leaves_is_at_work_no_longer(rest_stack: RestStack) -> None:
    link = await rest_stack.load()
    link.gate.clear()
    token = await make(rest_stack, max_concurrency=1)
    async with holder(rest_stack, token) as owner:
        async with owner.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
            assert answer.status_code == 200
        await link.idle()
        link.gate.set()
        assert (await owner.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_an_event_stream_tells_nothing_more_to_a_key_that_ended(rest_stack: RestStack) -> None:
    token, key = await rest_stack.keys.create(KeyTerms(role=Role.VIEWER), actor="test")
    path = "/api/v1/events"
    async with holder(rest_stack, token) as owner, owner.stream("GET", path, timeout=10) as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == ": connected"
        await make(rest_stack)
        async with asyncio.timeout(10):
            while not (await anext(lines)).startswith("data"):
                pass
            await rest_stack.keys.revoke(key.id, actor="test")
            rest = [line async for line in lines]
    assert not any("revoked" in line for line in rest)


async def test_wrong_keys_are_answered_with_429_after_a_while_and_right_ones_never(rest_stack: RestStack) -> None:
    async with holder(rest_stack, "moc_0_wrong") as stranger:
        answers = [await stranger.get("/v1/models") for _ in range(21)]
    assert [answer.status_code for answer in answers] == [401] * 20 + [429]
    assert int(answers[-1].headers["retry-after"]) <= 60
    async with holder(rest_stack, rest_stack.key) as owner:
        assert (await owner.get("/v1/models")).status_code == 200
    async with httpx.AsyncClient(base_url=rest_stack.rest.url) as nobody:
        assert (await nobody.get("/v1/models")).status_code == 401


async def test_changes_are_in_the_audit_before_they_are_answered(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    async with holder(rest_stack, "moc_0_wrong") as stranger:
        await stranger.get("/v1/models")
    key = (await rest_client.post("/api/v1/keys", json={"role": "viewer", "name": "eve"})).json()
    async with holder(rest_stack, key["token"]) as eve:
        await eve.post("/api/v1/models/echo/load", headers={"x-moc-request-id": "eve-1"})
        assert (await eve.get("/api/v1/audit")).status_code == 403
    await rest_client.post("/api/v1/models/nobody/load")
    await rest_client.patch("/api/v1/devices/declared:0", json={"state": "cordoned"})
    await rest_client.post("/v2/repository/models/nobody/unload")
    await rest_client.delete(f"/api/v1/keys/{key['id']}")
    entries = (await rest_client.get("/api/v1/audit")).json()["audit"]
    (admin,) = [each for each in rest_stack.keys.all() if each.role is Role.ADMIN]
    assert [(entry["actor"], entry["operation"], entry["subject"], entry["outcome"]) for entry in entries] == [
        ("", "login", "", "unauthenticated"),
        (admin.id, "keys.create", key["id"], "ok"),
        (key["id"], "models.load", "echo", "forbidden"),
        (admin.id, "models.load", "nobody", "not_found"),
        (admin.id, "devices.change", "declared:0", "ok"),
        (admin.id, "models.unload", "nobody", "not_found"),
        (admin.id, "keys.revoke", key["id"], "ok"),
    ]
    assert {entry["address"] for entry in entries} == {"127.0.0.1"}
    assert entries[2]["request_id"] == "eve-1"
    page = (await rest_client.get("/api/v1/audit?after=2&limit=2")).json()
    assert ([entry["seq"] for entry in page["audit"]], page["next"]) == ([3, 4], 4)
    verdict = (await rest_client.get("/api/v1/audit/verify")).json()
    assert (verdict["whole"], verdict["checked"], verdict["head_hash"]) == (True, 7, entries[-1]["hash"])


async def test_nothing_is_written_down_for_inference(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    await rest_stack.load()
    await rest_client.post("/v1/chat/completions", json=CHAT)
    assert (await rest_client.get("/api/v1/audit")).json() == {"audit": [], "next": None}
