"""Leases under /api/v1/leases: a request that waits in line holds its place only while its client is there."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import Response

from moc.service.leases import LeaseWish
from moc.service.services import Services
from moc.service.views import LeaseView
from moc.transports.closing import unless
from moc.transports.rest.body import decoded
from moc.transports.rest.operation import DEADLINE_HEADER
from moc.transports.rest.parameters import After, Call, Limit, json_answer


@dataclass(frozen=True, slots=True)
class LeaseList:
    """Leases, oldest first; `next` is the `after` of the following page."""

    leases: list[LeaseView]
    next: str | None


class Renewal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sign of life; `pid` says which process of the coordinator's host uses the lease, if that is new."""

    token: str
    pid: int | None = None


_SECONDS: Final = {"type": "number", "minimum": 0, "maximum": 86_400}
_WISH: Final[dict[str, Any]] = {
    "type": "object",
    "description": "Either `memory` or `bytes` says how much.",
    "additionalProperties": False,
    "properties": {
        "memory": {"type": ["string", "integer", "null"], "description": "Such as `8GiB`"},
        "bytes": {"type": ["integer", "null"], "minimum": 1, "maximum": 2**53},
        "device": {"type": "string", "description": "`auto`, a kind or an id", "default": "auto"},
        "priority": {"type": "integer", "minimum": 1, "maximum": 10, "default": 5, "description": "1 is the highest"},
        "ttl_s": {**_SECONDS, "minimum": 1, "default": 60, "description": "It ends so long after its last renewal"},
        "wait_s": {**_SECONDS, "default": 0, "description": "How long to stand in line for it"},
        "min_runtime_s": {
            **_SECONDS,
            "maximum": 30 * 86_400,
            "default": 0,
            "description": "It is not preempted before",
        },
        "grace_s": {**_SECONDS, "default": 10, "description": "How long it lasts once it is preempted"},
        "pid": {"type": ["integer", "null"], "description": "The process of the coordinator's host that uses it"},
    },
}
_RENEWAL: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["token"],
    "additionalProperties": False,
    "properties": {
        "token": {"type": "string", "pattern": r"^\d{1,18}\.\d{1,18}$"},
        "pid": {"type": ["integer", "null"], "minimum": 1},
    },
}


_wishes: Final = msgspec.json.Decoder(LeaseWish)
_renewals: Final = msgspec.json.Decoder(Renewal)


def add_leases(routes: APIRouter, services: Services, closing: asyncio.Event) -> None:
    """The routes; nobody waits for a lease any more when `closing` is set."""
    leases = services.leases

    @routes.get("/leases", tags=["leases"], response_model=LeaseList, summary="List leases")
    async def list_leases(
        call: Call,
        after: After = None,
        limit: Limit = 100,
        ended: Annotated[bool, Query(description="Also the last ones that are over.")] = False,
    ) -> Response:
        page = await leases.list(call.identity, ended=ended, after=after, limit=limit)
        return json_answer(LeaseList(page.items, page.next))

    @routes.post(
        "/leases",
        tags=["leases"],
        status_code=201,
        response_model=LeaseView,
        summary="Acquire a lease; answers when it is granted",
        openapi_extra={**_body(_WISH), "parameters": [DEADLINE_HEADER]},
    )
    async def acquire_lease(call: Call) -> Response:
        wish = decoded(_wishes, await call.body())
        with call.watch():
            view = await unless(closing, leases.acquire(call.identity, wish, call.deadline()))
        return json_answer(view, 201)

    @routes.get("/leases/{lease_id}", tags=["leases"], response_model=LeaseView, summary="Show a lease")
    async def show_lease(call: Call, lease_id: str) -> Response:
        return json_answer(await leases.show(call.identity, lease_id))

    @routes.post(
        "/leases/{lease_id}/renew",
        tags=["leases"],
        response_model=LeaseView,
        summary="Keep a lease, and learn whether it is preempted",
        openapi_extra=_body(_RENEWAL),
    )
    async def renew_lease(call: Call, lease_id: str) -> Response:
        renewal = decoded(_renewals, await call.body())
        return json_answer(await leases.renew(call.identity, lease_id, renewal.token, renewal.pid))

    @routes.delete("/leases/{lease_id}", tags=["leases"], response_model=LeaseView, summary="Release a lease")
    async def release_lease(
        call: Call, lease_id: str, token: Annotated[str, Query(max_length=40, description="What it was granted with.")]
    ) -> Response:
        return json_answer(await leases.release(call.identity, lease_id, token))


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
