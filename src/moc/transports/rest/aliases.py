"""Aliases under /api/v1/aliases."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import Response

from moc.kernel.errors import InvalidRequest
from moc.service.aliases import REASON_MAX, AliasChangeView, AliasView, How, alias_from
from moc.service.services import Services
from moc.transports.rest.body import decoded
from moc.transports.rest.parameters import After, Call, Limit, json_answer


@dataclass(frozen=True, slots=True)
class AliasList:
    """Aliases by name; `next` is the `after` of the following page."""

    aliases: list[AliasView]
    next: str | None


@dataclass(frozen=True, slots=True)
class AliasHistory:
    """Changes of an alias, oldest first; `next` is the `after` of the following page."""

    changes: list[AliasChangeView]
    next: int | None


class Rollback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which change to go back to; without `to` the one before the newest."""

    to: int | None = None


ALIAS: Final[dict[str, Any]] = {
    "versions": {
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1_000_000},
        "minProperties": 1,
        "maxProperties": 32,
        "description": "References (`name@version` or `name`) with their weights: shares of whatever sum",
    },
    "fallback": {
        "type": "array",
        "items": {"type": "string"},
        "maxItems": 8,
        "description": "Models to be tried in turn when those fail",
    },
    "policy": {
        "type": "string",
        "enum": ["weighted", "local_first", "cheapest", "fastest"],
        "description": "Which of them comes first: one drawn by its weight, one on this host, the cheapest or fastest",
    },
    "sticky": {
        "type": "string",
        "enum": ["", "key", "session"],
        "description": "Requests of one key, or of one `x-moc-session`, go to the same version",
    },
    "shadow": {
        "type": "object",
        "additionalProperties": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
        "maxProperties": 1,
        "description": "A model that gets a copy of so many percent of the requests; its answers are dropped",
    },
    "hedge": {"type": "boolean", "description": "Ask the next one too when an answer takes longer than nearly all do"},
}
_HOW: Final[dict[str, Any]] = {
    "reason": {"type": "string", "maxLength": REASON_MAX, "description": "Why, for the history"},
    "expect": {
        "type": ["integer", "null"],
        "minimum": 0,
        "description": "The `number` it must have, or nothing is changed; 0 = it must not exist",
    },
    "wait": {
        "type": "boolean",
        "default": True,
        "description": "Change it once what is to get requests is loaded, if what gets them now is",
    },
}
_NAME: Final = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"}
_ROLLBACK: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"to": {"type": ["integer", "null"], "minimum": 1, "description": "The number of a change"}},
}
_fields: Final = msgspec.json.Decoder(dict[str, Any])
_rollbacks: Final = msgspec.json.Decoder(Rollback)


def add_aliases(routes: APIRouter, services: Services) -> None:
    """The routes."""
    _add_reads(routes, services)
    _add_changes(routes, services)


def _add_reads(routes: APIRouter, services: Services) -> None:
    aliases = services.aliases

    @routes.get("/aliases", tags=["aliases"], response_model=AliasList, summary="List aliases")
    async def list_aliases(call: Call, after: After = None, limit: Limit = 100) -> Response:
        page = await aliases.list(call.identity, after=after, limit=limit)
        return json_answer(AliasList(page.items, page.next))

    @routes.get("/aliases/{name}", tags=["aliases"], response_model=AliasView, summary="Show an alias")
    async def show_alias(call: Call, name: str) -> Response:
        return json_answer(await aliases.show(call.identity, name))

    @routes.get(
        "/aliases/{name}/history", tags=["aliases"], response_model=AliasHistory, summary="List what an alias was"
    )
    async def list_alias_history(
        call: Call,
        name: str,
        after: Annotated[int, Query(ge=0, lt=10**9, description="Only changes with a greater number.")] = 0,
        limit: Limit = 100,
    ) -> Response:
        found = await aliases.history(call.identity, name, after=after, limit=limit)
        return json_answer(AliasHistory([*found], found[-1].number if len(found) == limit else None))


def _add_changes(routes: APIRouter, services: Services) -> None:
    aliases = services.aliases

    @routes.post(
        "/aliases",
        tags=["aliases"],
        status_code=201,
        response_model=AliasView,
        summary="Make an alias",
        openapi_extra=_body({"name": _NAME, **ALIAS, "reason": _HOW["reason"]}, required=["name", "versions"]),
    )
    async def create_alias(call: Call) -> Response:
        fields = decoded(_fields, await call.body())
        name = fields.pop("name", None)
        if not isinstance(name, str):
            raise InvalidRequest("`name` is missing or not text; say what the alias is to be called")
        how = msgspec.structs.replace(_how(fields), expect=0)
        alias = alias_from(name, fields, where=f"alias {name[:128]!r}")
        return json_answer(await aliases.set(call.identity, name, alias, how, call.deadline()), 201)

    @routes.put(
        "/aliases/{name}",
        tags=["aliases"],
        response_model=AliasView,
        summary="Set an alias, whatever it was",
        openapi_extra=_body({**ALIAS, **_HOW}, required=["versions"]),
    )
    async def set_alias(call: Call, name: str) -> Response:
        fields = decoded(_fields, await call.body())
        how = _how(fields)
        alias = alias_from(name, fields, where=f"alias {name[:128]!r}")
        return json_answer(await aliases.set(call.identity, name, alias, how, call.deadline()))

    @routes.patch(
        "/aliases/{name}",
        tags=["aliases"],
        response_model=AliasView,
        summary="Change parts of an alias",
        openapi_extra=_body({**ALIAS, **_HOW}, required=[]),
    )
    async def change_alias(call: Call, name: str) -> Response:
        fields = decoded(_fields, await call.body())
        how = _how(fields)
        return json_answer(await aliases.change(call.identity, name, fields, how, call.deadline()))

    @routes.post(
        "/aliases/{name}/rollback",
        tags=["aliases"],
        response_model=AliasView,
        summary="Let an alias be what it was before",
        openapi_extra={"requestBody": {"required": False, "content": {"application/json": {"schema": _ROLLBACK}}}},
    )
    async def rollback_alias(call: Call, name: str) -> Response:
        rollback = decoded(_rollbacks, await call.body() or b"{}")
        return json_answer(await aliases.rollback(call.identity, name, to=rollback.to))

    @routes.delete("/aliases/{name}", tags=["aliases"], status_code=204, summary="Remove an alias; its history stays")
    async def remove_alias(call: Call, name: str) -> Response:
        await aliases.remove(call.identity, name)
        return Response(status_code=204)


def _how(fields: dict[str, Any]) -> How:
    """Take what a body says of the change out of it."""
    try:
        return msgspec.convert({key: fields.pop(key) for key in _HOW if key in fields}, How)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body is not what this takes: {error}") from None


def _body(properties: dict[str, Any], *, required: list[str]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    if required:
        schema["required"] = required
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
