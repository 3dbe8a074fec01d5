"""Rollouts and hot swaps over REST and the clients, with workers that are fakes."""

import asyncio
from typing import Any

import httpx
import pytest

from moc.client import AsyncClient
from moc.kernel.errors import Conflict, Internal, InvalidRequest, LoadFailed, NotFound
from moc.models.alias import Alias
from moc.models.model import ModelSpec
from moc.resilience.deadline import NEVER
from moc.security.identity import Role
from moc.security.key import KeyTerms
from tests.rest_stack import EchoLink, RestStack

TENSORS = {"inputs": [{"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.0] * 8}]}
ROLLOUT = {"alias": "front", "to": "echo@2", "steps": [50], "hold_s": 0, "min_requests": 1000, "max_error_rate": 0.001}


async def furnish(stack: RestStack) -> None:
    """Model `echo` in two versions, the first loaded, and the alias `front` that names it."""
    await stack.load()
    await stack.aliases.set("front", Alias(versions={"echo@1": 1}), actor="test", reason="Test")
    spec = ModelSpec(runtime="python", source="file:two.py", ttl_s=0)
    await stack.manager.add("echo", spec, actor="test")
    await stack.manager.unload("echo@2", NEVER, actor="test")


async def happened(stack: RestStack, kind: str) -> None:
    """Wait for an event."""
    async with asyncio.timeout(10):
        async for event in stack.store.follow(after=0):
            if event.kind == kind:
                return


async def test_a_rollout_from_start_to_promotion(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    await furnish(rest_stack)
    answer = await rest_client.post("/api/v1/rollouts", json=ROLLOUT)
    assert answer.status_code == 201, answer.text
    begun = answer.json()
    assert (begun["state"], begun["share_pct"], begun["before"]) == ("warming", 0.0, {"echo@1": 1.0})
    assert begun["created_by"] == rest_stack.keys.all()[0].id
    await happened(rest_stack, "rollout.progressing")
    shown = (await rest_client.get("/api/v1/rollouts/front")).json()
    assert shown["id"] == begun["id"]
    assert (shown["share_pct"], shown["waits_for"]) == (50.0, "0 of 1000 requests seen in this step")
    assert (await rest_client.get("/api/v1/aliases/front")).json()["versions"] == {"echo@1": 50.0, "echo@2": 50.0}
    assert (await rest_client.put("/api/v1/aliases/front", json={"versions": {"echo@1": 1}})).status_code == 409
    path = f"/api/v1/rollouts/{begun['id']}"
    assert (await rest_client.patch(path, json={"state": "paused"})).json()["state"] == "paused"
    refused = await rest_client.patch(path, json={"state": "promoted"})
    assert refused.status_code == 409
    assert "a verdict takes 1000" in refused.json()["error"]["message"]
    done = (await rest_client.patch(path, json={"state": "promoted", "force": True})).json()
    assert [mark["state"] for mark in done["history"]] == ["warming", "progressing", "paused", "promoted"]
    assert (await rest_client.get("/api/v1/aliases/front")).json()["versions"] == {"echo@2": 100.0}
    listed = (await rest_client.get("/api/v1/rollouts")).json()
    assert [(each["id"], each["state"]) for each in listed["rollouts"]] == [(begun["id"], "promoted")]
    assert listed["next"] is None


async def test_failing_requests_bring_the_old_version_back(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    await furnish(rest_stack)
    await rest_client.post("/api/v1/rollouts", json={**ROLLOUT, "steps": [100], "min_requests": 5})
    await happened(rest_stack, "rollout.progressing")
    resident = rest_stack.manager.find("echo@2")
    assert resident is not None
    link = rest_stack.workers.links[resident.worker_id] = EchoLink(rest_stack.workers.info)
    link.fault = Internal("the new version is broken")
    await rest_client.post("/v2/models/front/infer", json=TENSORS)
    await happened(rest_stack, "rollout.rolled_back")
    shown = (await rest_client.get("/api/v1/rollouts/front")).json()
    assert (shown["state"], shown["reason"]) == ("rolled_back", "ErrorRate")
    assert shown["history"][-1]["failures"] == 1
    assert (await rest_client.get("/api/v1/aliases/front")).json()["versions"] == {"echo@1": 1.0}
    answer = await rest_client.post("/v2/models/front/infer", json=TENSORS)
    assert answer.headers["x-moc-model"] == "echo@1"


@pytest.mark.parametrize(
    "changes",
    [{"steps": [50, 10]}, {"steps": []}, {"hold_s": -1}, {"max_error_rate": 2}, {"extra": 1}, {"to": "nonsense@x"}],
)
async def test_what_cannot_be_right_is_refused(
    rest_stack: RestStack, rest_client: httpx.AsyncClient, changes: dict[str, Any]
) -> None:
    await furnish(rest_stack)
    answer = await rest_client.post("/api/v1/rollouts", json={**ROLLOUT, **changes})
    assert answer.status_code == 400, answer.text
    assert (await rest_client.get("/api/v1/rollouts")).json()["rollouts"] == []


async def test_the_client_manages_rollouts(rest_stack: RestStack) -> None:
    await furnish(rest_stack)
    async with AsyncClient(rest_stack.rest.url, rest_stack.key) as client:
        begun = await client.rollouts.start("front", "echo@2", steps=[10], hold_s=3600)
        await happened(rest_stack, "rollout.progressing")
        assert (await client.rollouts.pause("front"))["state"] == "paused"
        assert (await client.rollouts.resume(begun["id"]))["state"] == "progressing"
        with pytest.raises(Conflict):
            await client.rollouts.promote("front")
        assert (await client.rollouts.abort("front"))["state"] == "aborted"
        assert [each["id"] for each in (await client.rollouts.list())["items"]] == [begun["id"]]
        with pytest.raises(NotFound):
            await client.rollouts.show("nobody")
        with pytest.raises(InvalidRequest):
            await client.rollouts.start("front", "echo@2", steps=[0])


async def test_a_key_for_some_models_sees_and_moves_those_alone(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    await furnish(rest_stack)
    await rest_client.post("/api/v1/rollouts", json=ROLLOUT)
    for models, status in ((("front",), 200), (("other",), 403)):
        token, _ = await rest_stack.keys.create(KeyTerms(role=Role.OPERATOR, models=models), actor="test")
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=rest_stack.rest.url, headers=headers) as operator:
            assert (await operator.get("/api/v1/rollouts/front")).status_code == status
            assert len((await operator.get("/api/v1/rollouts")).json()["rollouts"]) == (status == 200)
            wish = {**ROLLOUT, "alias": "front", "to": "echo@2"}
            assert (await operator.post("/api/v1/rollouts", json=wish)).status_code == 403


async def test_an_alias_changes_once_what_it_is_changed_to_is_loaded(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    await furnish(rest_stack)
    rest_stack.workers.gate.clear()
    change = {"versions": {"echo@2": 1}}
    changing = asyncio.create_task(rest_client.put("/api/v1/aliases/front", json=change))
    await rest_stack.workers.asked.wait()
    assert rest_stack.manager.is_held("echo@1")
    answer = await rest_client.post("/v2/models/front/infer", json=TENSORS)
    assert answer.headers["x-moc-model"] == "echo@1"
    rest_stack.workers.gate.set()
    assert (await changing).json()["versions"] == {"echo@2": 1.0}
    assert rest_stack.manager.find("echo@2") is not None
    assert not rest_stack.manager.is_held("echo@1")


async def test_an_alias_stays_when_what_it_is_changed_to_cannot_be_loaded(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    await furnish(rest_stack)
    rest_stack.workers.error = LoadFailed("no such tensor", reason="load_failed")
    change = {"versions": {"echo@2": 1}}
    refused = await rest_client.put("/api/v1/aliases/front", json=change)
    assert refused.status_code == 503
    assert "no such tensor" in refused.json()["error"]["message"]
    assert (await rest_client.get("/api/v1/aliases/front")).json()["versions"] == {"echo@1": 1.0}
    at_once = await rest_client.put("/api/v1/aliases/front", json={**change, "wait": False})
    assert at_once.json()["versions"] == {"echo@2": 1.0}


async def test_a_name_is_described_by_the_version_that_answers_for_it(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    await rest_stack.load()
    rest_stack.workers.error = LoadFailed("no such tensor", reason="load_failed")
    spec = ModelSpec(runtime="python", source="file:two.py", ttl_s=0)
    await rest_stack.manager.add("echo", spec, actor="test")
    await happened(rest_stack, "model.failed")
    assert (await rest_client.get("/v2/models/echo")).json()["versions"] == ["1", "2"]
    answer = await rest_client.post("/v2/models/echo/infer", json=TENSORS)
    assert answer.headers["x-moc-model"] == "echo@1"
    shown = (await rest_client.get("/api/v1/models/echo")).json()
    assert (shown["reference"], shown["state"], shown["message"]) == ("echo@2", "failed", "no such tensor")
