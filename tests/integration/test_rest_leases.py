"""Leases over REST."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.rest_stack import RestStack


async def test_a_lease_is_acquired_renewed_and_released(rest_client: httpx.AsyncClient) -> None:
    wish = {"memory": "600MiB", "priority": 3, "ttl_s": 30}
    got = await rest_client.post("/api/v1/leases", json=wish)
    assert got.status_code == 201
    lease = got.json()
    assert (lease["state"], lease["device"], lease["bytes"]) == ("admitted", "declared:0", 600 * 2**20)
    refused = await rest_client.post("/api/v1/leases", json={"bytes": 600 * 2**20})
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "no_capacity")
    path = f"/api/v1/leases/{lease['id']}"
    assert (await rest_client.post(f"{path}/renew", json={"token": lease["token"]})).json()["state"] == "admitted"
    assert (await rest_client.post(f"{path}/renew", json={"token": "9.9"})).status_code == 409
    assert (await rest_client.delete(path)).status_code == 400
    assert (await rest_client.delete(path, params={"token": lease["token"]})).json()["state"] == "released"
    assert (await rest_client.post(f"{path}/renew", json={"token": lease["token"]})).status_code == 409
    assert (await rest_client.get("/api/v1/leases")).json() == {"leases": [], "next": None}
    (ended,) = (await rest_client.get("/api/v1/leases?ended=true")).json()["leases"]
    assert ended == (await rest_client.get(path)).json()
    assert (await rest_client.get("/api/v1/leases/lse-none")).status_code == 404


async def test_metrics_tell_of_leases(rest_client: httpx.AsyncClient) -> None:
    assert (await rest_client.post("/api/v1/leases", json={"memory": "600MiB"})).status_code == 201
    assert (await rest_client.post("/api/v1/leases", json={"memory": "600MiB"})).status_code == 507
    lines = (await rest_client.get("/metrics")).text.splitlines()
    for line in (
        'modelops_leases{state="admitted"} 1.0',
        'modelops_leases{state="pending"} 0.0',
        'modelops_gpu_memory_reserved_bytes{device="declared:0",holder_kind="lease"} 6.291456e+08',
        'modelops_gpu_lease_wait_seconds_count{outcome="granted"} 1.0',
        'modelops_gpu_lease_wait_seconds_count{outcome="refused"} 1.0',
    ):
        assert line in lines


async def test_a_client_that_leaves_waits_for_no_lease(rest_stack: RestStack, rest_client: httpx.AsyncClient) -> None:
    lease = (await rest_client.post("/api/v1/leases", json={"memory": "600MiB"})).json()
    with pytest.raises(httpx.ReadTimeout):
        await rest_client.post("/api/v1/leases", json={"memory": "600MiB", "wait_s": 60}, timeout=0.2)
    async with asyncio.timeout(10):
        while len(rest_stack.leases.standings()) > 1:
            await rest_stack.leases.look()
            await asyncio.sleep(0.01)
    await rest_client.delete(f"/api/v1/leases/{lease['id']}", params={"token": lease["token"]})
    assert rest_stack.leases.standings() == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "memory"),
        ({"memory": "1GiB", "bytes": 1}, "memory"),
        ({"bytes": 0}, "bytes"),
        ({"memory": "lots"}, "not a size"),
        ({"bytes": 1, "priority": 11}, "priority"),
        ({"bytes": 1, "ttl_s": 0}, "ttl_s"),
        ({"bytes": 1, "wait_s": -1}, "wait_s"),
        ({"bytes": 1, "grace_s": 1e9}, "grace_s"),
        ({"bytes": 1, "pid": 0}, "pid"),
        ({"bytes": 1, "pid": 2**31 - 1}, "no process"),
        ({"bytes": 1, "device": ""}, "device"),
        ({"bytes": 1, "vram": 2}, "vram"),
    ],
    ids=range(12),
)
async def test_a_bad_lease_is_refused_with_what_is_wrong(
    rest_client: httpx.AsyncClient, body: dict[str, Any], words: str
) -> None:
    answer = await rest_client.post("/api/v1/leases", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert words in answer.json()["error"]["message"]


async def test_who_waits_is_sent_away_when_the_server_stops(
    rest_stack: RestStack, rest_client: httpx.AsyncClient
) -> None:
    await rest_client.post("/api/v1/leases", json={"memory": "600MiB"})
    waiting = asyncio.create_task(rest_client.post("/api/v1/leases", json={"memory": "600MiB", "wait_s": 60}))
    async with asyncio.timeout(10):
        while len(rest_stack.leases.standings()) < 2:
            await rest_stack.leases.look()
            await asyncio.sleep(0.01)
        await rest_stack.rest.drain()
        answer = await waiting
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
