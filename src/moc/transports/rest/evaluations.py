"""Evaluations under /api/v1/evaluations."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import Response

from moc.service.evaluations import Comparison, EvaluationView, EvaluationWish, ItemView
from moc.service.jobs import TEXT_MAX
from moc.service.services import Services
from moc.transports.rest.body import decoded
from moc.transports.rest.parameters import After, Call, IdempotencyKey, Limit, json_answer


@dataclass(frozen=True, slots=True)
class EvaluationList:
    """Evaluations, oldest first; `next` is the `after` of the following page."""

    evaluations: list[EvaluationView]
    next: str | None


@dataclass(frozen=True, slots=True)
class ItemList:
    """Items in the order they were asked in; `next` is the `after` of the following page."""

    items: list[ItemView]
    next: str | None


_WISH: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["model", "suite"],
    "additionalProperties": False,
    "properties": {
        "model": {"type": "string", "maxLength": TEXT_MAX, "description": "`name`, `name@version` or an alias"},
        "suite": {
            "type": "object",
            "required": ["name", "tasks"],
            "properties": {
                "name": {"type": "string", "maxLength": 64},
                "defaults": {"type": "object"},
                "tasks": {"type": "array", "items": {"type": "object"}, "minItems": 1, "maxItems": 100},
            },
            "description": "What it is asked, as in the YAML of a suite; `data` is `{file: ID}`",
        },
        "priority": {"type": "integer", "minimum": 1, "maximum": 10, "default": 5, "description": "1 is the highest"},
        "seed": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1, "default": 0},
        "metadata": {
            "type": "object",
            "maxProperties": 16,
            "propertyNames": {"maxLength": 64},
            "additionalProperties": {"type": "string", "maxLength": 512},
        },
    },
}
_BODY: Final = {"requestBody": {"required": True, "content": {"application/json": {"schema": _WISH}}}}
_wishes: Final = msgspec.json.Decoder(EvaluationWish)


def add_evaluations(routes: APIRouter, services: Services) -> None:
    """The routes; an evaluation's id is that of its job, which can be paused and cancelled as any job."""
    evaluations = services.evaluations

    @routes.get("/evaluations", tags=["evaluations"], response_model=EvaluationList, summary="List evaluations")
    async def list_evaluations(call: Call, after: After = None, limit: Limit = 100) -> Response:
        page = await evaluations.list(call.identity, after=after, limit=limit)
        return json_answer(EvaluationList(page.items, page.next))

    @routes.post(
        "/evaluations",
        tags=["evaluations"],
        status_code=201,
        response_model=EvaluationView,
        summary="Measure a model by a suite",
        openapi_extra=_BODY,
    )
    async def run_evaluation(call: Call, idempotency_key: IdempotencyKey = "") -> Response:
        wish = decoded(_wishes, await call.body())
        return json_answer(await evaluations.run(call.identity, wish, idempotency_key=idempotency_key), 201)

    @routes.get(
        "/evaluations/{evaluation}", tags=["evaluations"], response_model=EvaluationView, summary="Show an evaluation"
    )
    async def show_evaluation(call: Call, evaluation: str) -> Response:
        return json_answer(await evaluations.show(call.identity, evaluation))

    @routes.get(
        "/evaluations/{evaluation}/items",
        tags=["evaluations"],
        response_model=ItemList,
        summary="List what came of the items of an evaluation",
    )
    async def list_items(
        call: Call,
        evaluation: str,
        task: Annotated[str, Query(max_length=64, description="Only those of this task.")] = "",
        failed: Annotated[bool, Query(description="Only those that were not right, or have no score.")] = False,
        after: Annotated[int, Query(ge=0, le=10**9, description="Start behind so many.")] = 0,
        limit: Limit = 100,
    ) -> Response:
        page = await evaluations.items(call.identity, evaluation, task=task, failed=failed, after=after, limit=limit)
        return json_answer(ItemList(page.items, page.next))

    @routes.get(
        "/evaluations/{a}/compare/{b}",
        tags=["evaluations"],
        response_model=Comparison,
        summary="Compare two evaluations by the same suite, item by item",
    )
    async def compare_evaluations(call: Call, a: str, b: str) -> Response:
        return json_answer(await evaluations.compare(call.identity, a, b))
