"""Keys under /api/v1/keys."""

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from fastapi import APIRouter
from fastapi.responses import Response

from moc.security.key import WEIGHT_MAX, WEIGHT_MIN
from moc.service.keys import OVERLAP_MAX_S, KeyView, KeyWish, NewKeyView
from moc.service.services import Services
from moc.transports.rest.body import decoded
from moc.transports.rest.parameters import After, Call, Limit, json_answer


@dataclass(frozen=True, slots=True)
class KeyList:
    """Keys by id; `next` is the `after` of the following page."""

    keys: list[KeyView]
    next: str | None


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another secret for a key; the one before is good for `overlap_s` more."""

    overlap_s: float = 0.0


_WISH: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["role"],
    "additionalProperties": False,
    "properties": {
        "role": {"type": "string", "enum": ["viewer", "inference", "operator", "admin"]},
        "name": {"type": "string", "maxLength": 64, "description": "For people; the id when it is left out"},
        "models": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[A-Za-z0-9._*?@\\[\\]!-]{1,128}$"},
            "maxItems": 64,
            "description": "Names or patterns such as `team-*`; none = everything the role allows",
        },
        "expires_in_s": {"type": ["number", "null"], "minimum": 1, "maximum": 315_360_000},
        "rate": {"type": ["string", "null"], "description": "Such as `100/min`; units `s`, `min`, `h`, `d`"},
        "max_concurrency": {"type": ["integer", "null"], "minimum": 1, "maximum": 100_000},
        "weight": {
            "type": "number",
            "minimum": WEIGHT_MIN,
            "maximum": WEIGHT_MAX,
            "default": 1,
            "description": "Its share of a model that others wait for too, beside their weights",
        },
        "curve_public": {"type": "string", "description": "A ZeroMQ CURVE public key in Z85, to be known by"},
    },
}
_ROTATION: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"overlap_s": {"type": "number", "minimum": 0, "maximum": OVERLAP_MAX_S, "default": 0}},
}
_wishes: Final = msgspec.json.Decoder(KeyWish)
_rotations: Final = msgspec.json.Decoder(Rotation)


def add_keys(routes: APIRouter, services: Services) -> None:
    """The routes."""
    keys = services.keys

    @routes.get("/keys", tags=["keys"], response_model=KeyList, summary="List keys")
    async def list_keys(call: Call, after: After = None, limit: Limit = 100) -> Response:
        page = await keys.list(call.identity, after=after, limit=limit)
        return json_answer(KeyList(page.items, page.next))

    @routes.post(
        "/keys",
        tags=["keys"],
        status_code=201,
        response_model=NewKeyView,
        summary="Make a key; its token is told this once",
        openapi_extra=_body(_WISH, required=True),
    )
    async def create_key(call: Call) -> Response:
        return json_answer(await keys.create(call.identity, decoded(_wishes, await call.body())), 201)

    @routes.get("/keys/{key_id}", tags=["keys"], response_model=KeyView, summary="Show a key")
    async def show_key(call: Call, key_id: str) -> Response:
        return json_answer(await keys.show(call.identity, key_id))

    @routes.post(
        "/keys/{key_id}/rotate",
        tags=["keys"],
        response_model=NewKeyView,
        summary="Give a key another token, told this once",
        openapi_extra=_body(_ROTATION, required=False),
    )
    async def rotate_key(call: Call, key_id: str) -> Response:
        rotation = decoded(_rotations, await call.body() or b"{}")
        return json_answer(await keys.rotate(call.identity, key_id, rotation.overlap_s))

    @routes.delete(
        "/keys/{key_id}", tags=["keys"], response_model=KeyView, summary="Revoke a key, at once and for good"
    )
    async def revoke_key(call: Call, key_id: str) -> Response:
        return json_answer(await keys.revoke(call.identity, key_id))


def _body(schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}
