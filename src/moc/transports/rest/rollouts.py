"""Rollouts under /api/v1/rollouts."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import msgspec
from fastapi import APIRouter
from fastapi.responses import Response

from moc.security.identity import Identity
from moc.service.rollouts import RolloutsService, RolloutView, RolloutWish
from moc.service.services import Services
from moc.transports.rest.body import decoded
from moc.transports.rest.parameters import After, Call, Limit, json_answer


@dataclass(frozen=True, slots=True)
class RolloutList:
    """Rollouts, oldest first; `next` is the `after` of the following page."""

    rollouts: list[RolloutView]
    next: str | None


class RolloutChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rollout is to become; `force` promotes it before a verdict."""

    state: Literal["paused", "progressing", "promoted", "aborted"]
    force: bool = False


_WISH: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["alias", "to"],
    "additionalProperties": False,
    "properties": {
        "alias": {"type": "string", "description": "The alias to move"},
        "to": {"type": "string", "description": "The version (`name@version`) that is to get its requests"},
        "steps": {
            "type": "array",
            "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
            "minItems": 1,
            "maxItems": 20,
            "default": [1, 10, 50, 100],
            "description": "Its percentages of the requests in turn, ascending",
        },
        "hold_s": {"type": "number", "minimum": 0, "maximum": 2_592_000, "default": 600},
        "max_error_rate": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "max_p95_ms": {"type": ["number", "null"], "minimum": 0, "maximum": 1e9},
        "max_p95_ratio": {
            "type": ["number", "null"],
            "minimum": 0,
            "maximum": 1e6,
            "description": "How many times the old version's p95 its own may be",
        },
        "min_requests": {
            "type": "integer",
            "minimum": 0,
            "maximum": 1_000_000,
            "default": 50,
            "description": "Of how many requests a verdict is made, and how many a step takes at least",
        },
    },
}
_CHANGE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["state"],
    "additionalProperties": False,
    "properties": {
        "state": {"type": "string", "enum": ["paused", "progressing", "promoted", "aborted"]},
        "force": {"type": "boolean", "default": False, "description": "Promote it before a verdict"},
    },
}
_wishes: Final = msgspec.json.Decoder(RolloutWish)
_changes: Final = msgspec.json.Decoder(RolloutChange)


def add_rollouts(routes: APIRouter, services: Services) -> None:
    """The routes; `{rollout}` is an id, or an alias for its newest one."""
    rollouts = services.rollouts

    @routes.get("/rollouts", tags=["rollouts"], response_model=RolloutList, summary="List rollouts")
    async def list_rollouts(call: Call, after: After = None, limit: Limit = 100) -> Response:
        page = await rollouts.list(call.identity, after=after, limit=limit)
        return json_answer(RolloutList(page.items, page.next))

    @routes.post(
        "/rollouts",
        tags=["rollouts"],
        status_code=201,
        response_model=RolloutView,
        summary="Begin to move an alias to a version",
        openapi_extra=_body(_WISH),
    )
    async def begin_rollout(call: Call) -> Response:
        return json_answer(await rollouts.begin(call.identity, decoded(_wishes, await call.body())), 201)

    @routes.get("/rollouts/{rollout}", tags=["rollouts"], response_model=RolloutView, summary="Show a rollout")
    async def show_rollout(call: Call, rollout: str) -> Response:
        return json_answer(await rollouts.show(call.identity, rollout))

    @routes.patch(
        "/rollouts/{rollout}",
        tags=["rollouts"],
        response_model=RolloutView,
        summary="Pause, resume, promote or abort a rollout",
        openapi_extra=_body(_CHANGE),
    )
    async def change_rollout(call: Call, rollout: str) -> Response:
        change = _verb(rollouts, decoded(_changes, await call.body()))
        return json_answer(await change(call.identity, rollout))


def _verb(rollouts: RolloutsService, change: RolloutChange) -> Callable[[Identity, str], Awaitable[RolloutView]]:
    if change.state == "promoted":
        return partial(rollouts.promote, force=change.force)
    return {"paused": rollouts.pause, "progressing": rollouts.resume, "aborted": rollouts.abort}[change.state]


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
