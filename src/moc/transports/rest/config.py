"""The configuration under /api/v1/config."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import Response

from moc.service.configuration import NAME_MAX, ConfigurationView, DifferenceView, RevisionView
from moc.service.services import Services
from moc.transports.rest.body import decoded
from moc.transports.rest.parameters import Call, Limit, json_answer


@dataclass(frozen=True, slots=True)
class RevisionList:
    """Revisions, oldest first; `next` is the `after` of the following page, null when there is none yet."""

    revisions: list[RevisionView]
    next: int | None


class Given(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text of a `moc.yaml`; `name` is what it is called where something is wrong with it."""

    text: str
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_MAX)] = "moc.yaml"


class Rollback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which revision to put in force again."""

    revision: int


_GIVEN: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["text"],
    "additionalProperties": False,
    "properties": {
        "text": {"type": "string", "description": "The YAML of a `moc.yaml`, as a whole"},
        "name": {
            "type": "string",
            "minLength": 1,
            "maxLength": NAME_MAX,
            "description": "What it is called where something is wrong with it",
            "default": "moc.yaml",
        },
    },
}
_ROLLBACK: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["revision"],
    "additionalProperties": False,
    "properties": {"revision": {"type": "integer", "minimum": 1, "description": "The `number` of a revision"}},
}
_given: Final = msgspec.json.Decoder(Given)
_rollbacks: Final = msgspec.json.Decoder(Rollback)


def add_config(routes: APIRouter, services: Services) -> None:
    """The routes."""
    configuration = services.configuration

    @routes.get("/config", tags=["config"], response_model=ConfigurationView, summary="Show the configuration in force")
    async def show_config(call: Call) -> Response:
        return json_answer(await configuration.show(call.identity))

    @routes.put(
        "/config",
        tags=["config"],
        response_model=RevisionView,
        summary="Put a configuration in force, all of it or nothing",
        openapi_extra=_body(_GIVEN),
    )
    async def apply_config(call: Call) -> Response:
        given = decoded(_given, await call.body())
        return json_answer(await configuration.apply(call.identity, given.text, given.name))

    @routes.post(
        "/config/diff",
        tags=["config"],
        response_model=DifferenceView,
        summary="Tell what a configuration would change",
        openapi_extra=_body(_GIVEN),
    )
    async def diff_config(call: Call) -> Response:
        given = decoded(_given, await call.body())
        return json_answer(await configuration.diff(call.identity, given.text, given.name))

    @routes.get("/config/history", tags=["config"], response_model=RevisionList, summary="List configurations")
    async def list_config_history(
        call: Call,
        after: Annotated[int, Query(ge=0, lt=10**9, description="Only revisions behind this one.")] = 0,
        limit: Limit = 100,
    ) -> Response:
        found = await configuration.history(call.identity, after=after, limit=limit)
        return json_answer(RevisionList([*found], found[-1].number if len(found) == limit else None))

    @routes.post(
        "/config/rollback",
        tags=["config"],
        response_model=RevisionView,
        summary="Put an earlier configuration in force again",
        openapi_extra=_body(_ROLLBACK),
    )
    async def rollback_config(call: Call) -> Response:
        return json_answer(await configuration.rollback(call.identity, decoded(_rollbacks, await call.body()).revision))


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
