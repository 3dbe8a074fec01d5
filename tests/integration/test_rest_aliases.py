"""Aliases over REST: set, changed, rolled back and removed, and used wherever a model's name is."""

import asyncio
from typing import Any

import httpx
import pytest

from moc.client import AsyncClient
from moc.kernel.errors import Conflict, InvalidRequest, NotFound, Unavailable
from moc.models.alias import Alias
from moc.models.model import ModelSpec
from moc.security.identity import Role
from moc.security.key import KeyTerms
from tests.rest_stack import EchoLink, RestStack

CHAT = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}]}
TENSORS = {"inputs": [{"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.0] * 8}]}


async def register(stack: RestStack, name: str, versions: int = 1) -> None:
    """Register models that are not loaded."""
    for number in range(versions):
        spec = ModelSpec(runtime="python", source="file:echo.py", ttl_s=0, options={"number": number})
        await stack.manager.add(name, spec, actor="test")


async def alias(stack: RestStack, name: str = "assistant", **fields: Any) -> None:
    await stack.aliases.set(name, Alias(**fields), actor="test", reason="Test")


async def holder(stack: RestStack, *models: str, role: Role = Role.INFERENCE) -> httpx.AsyncClient:
    """A client whose key is for some models only."""
    token, _ = await stack.keys.create(KeyTerms(role=role, models=models), actor="test")
    return httpx.AsyncClient(base_url=stack.rest.url, headers={"authorization": f"Bearer {token}"}, timeout=10)


async def test_an_alias_is_made_changed_rolled_back_and_removed(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    await register(rest_stack, "echo", versions=2)
    await register(rest_stack, "cloud")
    wish = {"name": "assistant", "versions": {"echo@1": 90, "echo@2": 10}, "fallback": ["cloud"], "reason": "try 2"}
    made = await rest_client.post("/api/v1/aliases", json=wish)
    assert made.status_code == 201
    view = made.json()
    assert (view["name"], view["number"], view["reason"]) == ("assistant", 1, "try 2")
    assert view["changed_by"] == rest_stack.keys.all()[0].id
    targets = [(each["model"], each["part"], each["share"], each["state"]) for each in view["targets"]]
    assert targets == [
        ("echo@1", "version", 0.9, "registered"),
        ("echo@2", "version", 0.1, "registered"),
        ("cloud@1", "fallback", 0.0, "registered"),
    ]
    assert (await rest_client.post("/api/v1/aliases", json=wish)).status_code == 409
    path = "/api/v1/aliases/assistant"
    changed = (await rest_client.patch(path, json={"sticky": "session", "expect": 1})).json()
    assert (changed["number"], changed["fallback"], changed["sticky"]) == (2, ["cloud"], "session")
    assert (await rest_client.patch(path, json={"sticky": "key", "expect": 1})).status_code == 409
    replaced = (await rest_client.put(path, json={"versions": {"echo": 1}})).json()
    assert (replaced["number"], replaced["fallback"], replaced["sticky"]) == (3, [], "")
    assert replaced["targets"][0]["model"] == "echo@2"
    assert (await rest_client.post(f"{path}/rollback")).json()["sticky"] == "session"
    assert (await rest_client.post(f"{path}/rollback", json={"to": 1})).json()["number"] == 5
    assert [each["name"] for each in (await rest_client.get("/api/v1/aliases")).json()["aliases"]] == ["assistant"]
    assert (await rest_client.delete(path)).status_code == 204
    assert (await rest_client.get(path)).status_code == 404
    history = (await rest_client.get(f"{path}/history", params={"limit": 4})).json()
    assert [change["number"] for change in history["changes"]] == [1, 2, 3, 4]
    rest = (await rest_client.get(f"{path}/history", params={"after": history["next"]})).json()
    assert [(change["number"], change["alias"] is None) for change in rest["changes"]] == [(5, False), (6, True)]
    assert rest["next"] is None
    audited = (await rest_client.get("/api/v1/audit", params={"after": 0})).json()["audit"]
    assert [entry["operation"] for entry in audited if entry["operation"].startswith("aliases")] == [
        "aliases.set",
        "aliases.set",
        "aliases.change",
        "aliases.change",
        "aliases.set",
        "aliases.rollback",
        "aliases.rollback",
        "aliases.remove",
    ]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"versions": {"echo": 1}, "fallbak": ["a"]}, 400, "did you mean 'fallback'"),
        ({"versions": {"echo": "much"}}, 400, "Expected `float`"),
        ({"versions": {"echo": 1}, "policy": "fast"}, 400, "policy is 'fast'; it is one of weighted, local_first"),
        ({"versions": {"echo": 0}}, 400, "every weight is 0"),
        ({"versions": {"gone": 1}}, 400, "there is no model 'gone'"),
        ({"versions": {"echo": 1}, "expect": "1"}, 400, "expect"),
        ({"versions": {"echo": 1}, "expect": 7}, 409, "is gone"),
        ({"versions": {"echo": 1}, "reason": "x" * 201}, 400, "201 characters"),
        ({}, 400, "versions"),
        ([], 400, "object"),
    ],
)
async def test_what_cannot_be_is_refused(
    rest_stack: RestStack, rest_client: httpx.AsyncClient, body: Any, status: int, message: str
) -> None:
    await register(rest_stack, "echo")
    answer = await rest_client.put("/api/v1/aliases/assistant", json=body)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]["message"]
    assert rest_stack.aliases.names() == []


async def test_a_model_that_an_alias_names_stays(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    await rest_stack.load()
    await register(rest_stack, "spare")
    await alias(rest_stack, versions={"echo@1": 1}, fallback=("spare",))
    for path in ("/api/v1/models/echo", "/api/v1/models/echo/versions/1", "/api/v1/models/spare"):
        refused = await rest_client.delete(path)
        assert refused.status_code == 409
        assert "alias assistant names" in refused.json()["error"]["message"]
    assert rest_stack.manager.find("echo@1") is not None
    body = {"name": "assistant", "runtime": "python", "source": "file:echo.py"}
    assert (await rest_client.post("/api/v1/models", json=body)).status_code in (400, 409)
    with pytest.raises(Conflict):
        await register(rest_stack, "assistant")


async def test_an_alias_is_used_wherever_a_model_is(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    link = await rest_stack.load()
    link.gate.set()
    await alias(rest_stack, versions={"echo@1": 1})
    answer = await rest_client.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.headers["x-moc-model"]) == (200, "echo@1")
    streamed = await rest_client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert (streamed.headers["x-moc-model"], streamed.text.count("data:")) == ("echo@1", 4)
    inferred = await rest_client.post("/v2/models/assistant/infer", json=TENSORS)
    assert (inferred.status_code, inferred.json()["model_name"]) == (200, "echo")
    assert (await rest_client.get("/v2/models/assistant/ready")).json() == {"ready": True, "name": "assistant"}
    metadata = (await rest_client.get("/v2/models/assistant")).json()
    assert (metadata["name"], metadata["platform"], metadata["versions"]) == ("assistant", "python", [])
    statistics = (await rest_client.get("/v2/models/assistant/stats")).json()["model_stats"]
    assert [(each["name"], each["inference_count"]) for each in statistics] == [("echo", 3)]
    cards = (await rest_client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in cards] == ["echo", "assistant"]
    assert (await rest_client.get("/v1/models/assistant")).json()["id"] == "assistant"
    shown = (await rest_client.get("/api/v1/aliases/assistant")).json()["targets"][0]
    assert (shown["state"], shown["requests"], shown["error_rate"]) == ("ready", 3, 0.0)
    assert shown["p95_ms"] > 0
    assert (await rest_client.get("/v2/models/assistant/versions/1")).status_code == 404


async def test_an_alias_is_ready_when_anything_answers_for_it(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    await rest_stack.load()
    await register(rest_stack, "other")
    for expected, fields in (
        (503, {"versions": {"other": 1}}),
        (200, {"versions": {"other": 1}, "fallback": ("echo",)}),
        (200, {"versions": {"other": 1, "echo": 1}}),
        (503, {"versions": {"other": 1}, "shadow": {"echo": 5}}),
    ):
        await alias(rest_stack, **fields)
        assert (await rest_client.get("/v2/models/assistant/ready")).status_code == expected


async def test_a_change_counts_for_the_next_request(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    links: list[EchoLink] = [await rest_stack.load(name) for name in ("one", "two")]
    for link in links:
        link.gate.set()
    for name in ("one", "two", "one"):
        await rest_client.put("/api/v1/aliases/assistant", json={"versions": {name: 1}})
        answer = await rest_client.post("/v1/chat/completions", json=CHAT)
        assert answer.headers["x-moc-model"] == f"{name}@1"
    await rest_client.delete("/api/v1/aliases/assistant")
    gone = await rest_client.post("/v1/chat/completions", json=CHAT)
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_key_needs_the_alias_to_use_it_and_all_it_names_to_set_it(rest_stack: RestStack) -> None:
    link = await rest_stack.load()
    link.gate.set()
    await register(rest_stack, "secret")
    await alias(rest_stack, versions={"echo": 1})
    async with await holder(rest_stack, "echo") as user:
        assert (await user.post("/v1/chat/completions", json=CHAT)).status_code == 403
        assert (await user.get("/api/v1/aliases/assistant")).status_code == 403
        assert (await user.get("/api/v1/aliases")).json()["aliases"] == []
        assert [card["id"] for card in (await user.get("/v1/models")).json()["data"]] == ["echo"]
    async with await holder(rest_stack, "assistant") as user:
        assert (await user.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await user.post("/v1/chat/completions", json={**CHAT, "model": "echo"})).status_code == 403
        assert [card["id"] for card in (await user.get("/v1/models")).json()["data"]] == ["assistant"]
    async with await holder(rest_stack, "assistant", "echo", role=Role.OPERATOR) as operator:
        path = "/api/v1/aliases/assistant"
        assert (await operator.put(path, json={"versions": {"echo": 1}})).status_code == 200
        assert (await operator.put(path, json={"versions": {"secret": 1}})).status_code == 403
        assert (await operator.patch(path, json={"fallback": ["secret"]})).status_code == 403
        assert (await operator.put("/api/v1/aliases/other", json={"versions": {"echo": 1}})).status_code == 403
        await alias(rest_stack, versions={"secret": 1})
        assert (await operator.put(path, json={"versions": {"echo": 1}})).status_code == 200
        for wish in ({}, {"to": 2}):
            assert (await operator.post(f"{path}/rollback", json=wish)).status_code == 403
        assert (await operator.post(f"{path}/rollback", json={"to": 1})).status_code == 200


async def test_the_client_manages_aliases(rest_stack: RestStack) -> None:
    await register(rest_stack, "echo", versions=2)
    async with AsyncClient(rest_stack.rest.url, rest_stack.key) as client:
        made = await client.aliases.set("a", {"echo@1": 1}, sticky="key", reason="first", expect=0)
        assert (made["number"], made["reason"]) == (1, "first")
        changed = await client.aliases.change("a", versions={"echo@2": 1})
        assert (changed["versions"], changed["sticky"]) == ({"echo@2": 1}, "key")
        assert (await client.aliases.rollback("a"))["versions"] == {"echo@1": 1}
        assert (await client.aliases.rollback("a", to=2))["versions"] == {"echo@2": 1}
        assert [alias["name"] for alias in (await client.aliases.list())["items"]] == ["a"]
        assert [change["number"] for change in (await client.aliases.history("a"))["items"]] == [1, 2, 3, 4]
        with pytest.raises(Conflict):
            await client.aliases.set("a", {"echo": 1}, expect=1)
        with pytest.raises(InvalidRequest):
            await client.aliases.set("a", {"nobody": 1})
        await client.aliases.remove("a")
        for call in (client.aliases.show("a"), client.aliases.change("a", sticky=""), client.aliases.remove("a")):
            with pytest.raises(NotFound):
                await call


async def test_many_who_change_an_alias_at_once_are_all_in_its_history(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    await register(rest_stack, "echo")
    wishes = [{"versions": {"echo": number}} for number in range(1, 21)]
    answers = await asyncio.gather(*(rest_client.put("/api/v1/aliases/a", json=wish) for wish in wishes))
    assert sorted(answer.json()["number"] for answer in answers) == [*range(1, 21)]
    changes = (await rest_client.get("/api/v1/aliases/a/history")).json()["changes"]
    assert sorted(change["alias"]["versions"]["echo"] for change in changes) == [*range(1, 21)]
    assert (await rest_client.get("/api/v1/aliases/a")).json()["versions"] == changes[-1]["alias"]["versions"]


async def test_one_session_stays_at_one_version_and_shares_are_kept(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    for name in ("one", "two"):
        (await rest_stack.load(name)).gate.set()
    await alias(rest_stack, versions={"one": 3, "two": 1}, sticky="session")

    async def version(session: int) -> str:
        headers = {"x-moc-session": f"session {session}"}
        answer = await rest_client.post("/v1/chat/completions", json=CHAT, headers=headers)
        return answer.headers["x-moc-model"]

    first = [await version(session) for session in range(100)]
    assert [await version(session) for session in range(100)] == first
    assert 10 <= first.count("two@1") <= 40  # always the same sessions: nothing here is left to chance
    await alias(rest_stack, versions={"one": 2, "two": 2}, sticky="session")
    moved = [(before, await version(session)) for session, before in enumerate(first)]
    assert {after for before, after in moved if before == "two@1"} == {"two@1"}  # its share has only grown


async def test_the_fallback_answers_for_what_cannot(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    broken, spare = [await rest_stack.load(name) for name in ("broken", "spare")]
    broken.fault = Unavailable("it is down")
    spare.gate.set()
    await alias(rest_stack, versions={"broken": 1}, fallback=("spare",))
    answer = await rest_client.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.headers["x-moc-model"]) == (200, "spare@1")
    targets = (await rest_client.get("/api/v1/aliases/assistant")).json()["targets"]
    assert [(target["model"], target["error_rate"]) for target in targets] == [("broken@1", 1.0), ("spare@1", 0.0)]
