"""The management API under /api/v1: models, aliases, devices, leases, keys, the audit, workers, events, the system."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from fastapi.routing import APIRoute

from moc.kernel.errors import InvalidRequest
from moc.resilience.deadline import Deadline
from moc.security.identity import Identity
from moc.service.models import spec_from
from moc.service.services import Services
from moc.service.tenancy import Explanation
from moc.service.views import DeviceView, EventView, ModelView, SystemView, WorkerView
from moc.transports.rest.aliases import add_aliases
from moc.transports.rest.audit import add_audit
from moc.transports.rest.body import decoded
from moc.transports.rest.config import add_config
from moc.transports.rest.evaluations import add_evaluations
from moc.transports.rest.jobs import add_jobs
from moc.transports.rest.keys import add_keys
from moc.transports.rest.leases import add_leases
from moc.transports.rest.operation import DEADLINE_HEADER
from moc.transports.rest.parameters import After, Call, Limit, json_answer
from moc.transports.rest.rollouts import add_rollouts
from moc.transports.rest.streaming import endless, event_id, numbered_event


@dataclass(frozen=True, slots=True)
class ModelList:
    """The newest version of each model; `next` is the `after` of the following page."""

    models: list[ModelView]
    next: str | None


@dataclass(frozen=True, slots=True)
class VersionList:
    """Every version of a model, oldest first."""

    versions: list[ModelView]


@dataclass(frozen=True, slots=True)
class WorkerList:
    """Worker processes, oldest first; `next` is the `after` of the following page."""

    workers: list[WorkerView]
    next: str | None


@dataclass(frozen=True, slots=True)
class DeviceList:
    """Devices by id; `next` is the `after` of the following page."""

    devices: list[DeviceView]
    next: str | None


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """What a device is to be: `cordoned` takes no new holders, `online` does."""

    state: Literal["cordoned", "online"]


@dataclass(frozen=True, slots=True)
class EventList:
    """Events, oldest first; `next` is the `after` of the following page, null when there is none yet."""

    events: list[EventView]
    next: int | None


Reference = Annotated[str, Path(description="`name` or `name@version`")]
Version = Annotated[int, Path(ge=1, lt=10**9)]
Change = Callable[[Identity, str, Deadline], Awaitable[ModelView]]

NEW_MODEL: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["name", "runtime"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"},
        "runtime": {
            "type": "string",
            "description": "`llama_cpp`, `onnx`, `transformers`, `python`, `command` or `remote`",
        },
        "source": {
            "type": "string",
            "description": "Its files: `file:`, `pypi:`, `https:` or `hf:`; a `remote`: its URL; a command: maybe none",
        },
        "sha256": {"type": ["string", "null"], "description": "What the file's SHA-256 must be"},
        "options": {"type": "object", "description": "The runtime's own options"},
        "devices": {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            "description": "`auto`, a kind of device, or a list of kinds and ids",
        },
        "memory": {"type": ["string", "integer", "null"], "description": "Declared need, such as `2GiB`"},
        "memory_bytes": {
            "type": ["integer", "null"],
            "minimum": 0,
            "description": "Declared need, of all shards together",
        },
        "preload": {"type": "boolean", "description": "Load it whenever the coordinator starts"},
        "pin": {"type": "boolean", "description": "Never unload it for being idle"},
        "ttl_s": {"type": ["number", "string"], "description": "Unload after this idle time; 0 = never"},
        "priority": {"type": "integer", "minimum": 1, "maximum": 10, "description": "1 is the highest"},
        "max_concurrent": {
            "type": ["integer", "null"],
            "minimum": 1,
            "maximum": 100_000,
            "description": "Requests at once; null = as `resilience.bulkhead` says",
        },
        "max_queue": {
            "type": ["integer", "null"],
            "minimum": 0,
            "maximum": 1_000_000,
            "description": "Requests that may wait; null = as `resilience.bulkhead` says",
        },
        "shards": {"type": "integer", "minimum": 1, "maximum": 64, "description": "How many devices it is spread over"},
        "group": {"type": "string", "description": "Models of one group are never loaded together; empty = none"},
        "min_residency_s": {
            "type": ["number", "string", "null"],
            "description": "Not unloaded for another so soon after its loading; null = 5 s",
        },
        "batching": {
            "type": ["object", "null"],
            "required": ["max_batch"],
            "additionalProperties": False,
            "properties": {
                "max_batch": {"type": "integer", "minimum": 2, "maximum": 65_536, "description": "Rows in one call"},
                "max_delay_ms": {
                    "type": "number",
                    "minimum": 0,
                    "maximum": 10_000,
                    "description": "How long a request may wait; 5",
                },
            },
            "description": "Gather requests on tensors",
        },
        "canary": {
            "type": ["object", "null"],
            "required": ["kind"],
            "additionalProperties": False,
            "properties": {
                "kind": {"enum": ["tensors", "chat", "completion", "embeddings", "rerank"]},
                "body": {"type": "object", "description": "The request; none for tensors, which are zeros"},
                "interval_s": {"type": "number", "minimum": 0.1, "maximum": 86_400, "description": "How often; 30"},
                "timeout_s": {
                    "type": "number",
                    "minimum": 0.1,
                    "maximum": 3_600,
                    "description": "How long an answer may take; 5",
                },
            },
            "description": "A request that tells whether the model still answers",
        },
        "cost": {"type": "number", "minimum": 0, "description": "What a request costs, for aliases that go by it"},
    },
}
_device_change_decoder: Final = msgspec.json.Decoder(DeviceChange)
_DEVICE_CHANGE_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["state"],
                    "properties": {"state": {"type": "string", "enum": ["cordoned", "online"]}},
                }
            }
        },
    }
}
_new_model_decoder: Final = msgspec.json.Decoder(dict[str, Any])
_NEW_MODEL_BODY: Final = {"requestBody": {"required": True, "content": {"application/json": {"schema": NEW_MODEL}}}}


def router(services: Services, *, closing: asyncio.Event, route: type[APIRoute]) -> APIRouter:
    """The routes; event streams end when `closing` is set."""
    routes = APIRouter(prefix="/api/v1", route_class=route)
    add_leases(routes, services, closing)  # first, for routes are compared one by one and these are asked most
    _add_models(routes, services)
    _add_model_changes(routes, services)
    add_aliases(routes, services)
    add_rollouts(routes, services)
    add_jobs(routes, services, closing)
    add_evaluations(routes, services)
    _add_devices(routes, services)
    add_keys(routes, services)
    add_audit(routes, services)
    add_config(routes, services)
    _add_system(routes, services)
    _add_events(routes, services, closing)
    return routes


def _add_models(routes: APIRouter, services: Services) -> None:
    models = services.models

    @routes.get("/models", tags=["models"], response_model=ModelList, summary="List models")
    async def list_models(call: Call, after: After = None, limit: Limit = 100) -> Response:
        page = await models.list(call.identity, after=after, limit=limit)
        return json_answer(ModelList(page.items, page.next))

    @routes.post(
        "/models",
        tags=["models"],
        status_code=201,
        response_model=ModelView,
        summary="Add a model, or a version of it",
        openapi_extra=_NEW_MODEL_BODY,
    )
    async def add_model(call: Call) -> Response:
        fields = decoded(_new_model_decoder, await call.body())
        name = fields.pop("name", None)
        if not isinstance(name, str):
            raise InvalidRequest("`name` is missing or not text; say what the model is to be called")
        view = await models.add(call.identity, name, spec_from(fields, where=f"model {name[:128]!r}"))
        return json_answer(view, 201)

    @routes.get("/models/{reference}", tags=["models"], response_model=ModelView, summary="Show a model")
    async def show_model(call: Call, reference: Reference) -> Response:
        return json_answer(await models.show(call.identity, reference))

    @routes.get(
        "/models/{reference}/explain",
        tags=["models"],
        response_model=Explanation,
        summary="Tell what loading a model would do",
    )
    async def explain_model(call: Call, reference: Reference) -> Response:
        return json_answer(await models.explain(call.identity, reference))

    @routes.get(
        "/models/{name}/versions/{version}/card",
        tags=["models"],
        response_class=PlainTextResponse,
        summary="Show the model card of a version that was trained here, as Markdown",
    )
    async def show_card(call: Call, name: str, version: Version) -> Response:
        return PlainTextResponse(await models.card(call.identity, f"{name}@{version}"), media_type="text/markdown")

    @routes.get("/models/{name}/versions", tags=["models"], response_model=VersionList, summary="List versions")
    async def list_versions(call: Call, name: str) -> Response:
        return json_answer(VersionList([*await models.versions(call.identity, name)]))

    @routes.get(
        "/models/{name}/versions/{version}", tags=["models"], response_model=ModelView, summary="Show a version"
    )
    async def show_version(call: Call, name: str, version: Version) -> Response:
        return json_answer(await models.show(call.identity, f"{name}@{version}"))


def _add_model_changes(routes: APIRouter, services: Services) -> None:
    models = services.models
    _add_change(routes, "pull", models.pull, "Fetch a model's files")
    _add_change(routes, "load", models.load, "Load a model; answers when it is ready")
    _add_change(routes, "unload", models.unload, "Drain a model and free its memory")

    @routes.delete("/models/{reference}", tags=["models"], status_code=204, summary="Remove a model, all its versions")
    async def remove_model(call: Call, reference: Reference) -> Response:
        await models.remove(call.identity, reference)
        return Response(status_code=204)

    @routes.delete(
        "/models/{name}/versions/{version}", tags=["models"], status_code=204, summary="Remove a version of a model"
    )
    async def remove_version(call: Call, name: str, version: Version) -> Response:
        await models.remove(call.identity, f"{name}@{version}")
        return Response(status_code=204)


def _add_change(routes: APIRouter, verb: str, change: Change, summary: str) -> None:
    async def change_model(call: Call, reference: Reference) -> Response:
        return json_answer(await change(call.identity, reference, call.deadline()))

    async def change_version(call: Call, name: str, version: Version) -> Response:
        return json_answer(await change(call.identity, f"{name}@{version}", call.deadline()))

    for path, endpoint, noun in (
        ("/models/{reference}", change_model, "model"),
        ("/models/{name}/versions/{version}", change_version, "version"),
    ):
        routes.add_api_route(
            f"{path}/{verb}",
            endpoint,
            methods=["POST"],
            name=f"{verb}_{noun}",
            tags=["models"],
            response_model=ModelView,
            summary=summary,
            openapi_extra={"parameters": [DEADLINE_HEADER]},
        )


def _add_devices(routes: APIRouter, services: Services) -> None:
    devices = services.devices

    @routes.get("/devices", tags=["devices"], response_model=DeviceList, summary="List devices")
    async def list_devices(call: Call, after: After = None, limit: Limit = 100) -> Response:
        page = await devices.list(call.identity, after=after, limit=limit)
        return json_answer(DeviceList(page.items, page.next))

    # The id of a part of a divided device has a slash.
    @routes.get("/devices/{device_id:path}", tags=["devices"], response_model=DeviceView, summary="Show a device")
    async def show_device(call: Call, device_id: str) -> Response:
        return json_answer(await devices.show(call.identity, device_id))

    @routes.patch(
        "/devices/{device_id:path}",
        tags=["devices"],
        response_model=DeviceView,
        summary="Cordon a device, or let it take models again",
        openapi_extra=_DEVICE_CHANGE_BODY,
    )
    async def change_device(call: Call, device_id: str) -> Response:
        change = decoded(_device_change_decoder, await call.body())
        return json_answer(await devices.set_state(call.identity, device_id, change.state))


def _add_system(routes: APIRouter, services: Services) -> None:
    system = services.system

    @routes.get("/workers", tags=["workers"], response_model=WorkerList, summary="List worker processes")
    async def list_workers(call: Call, after: After = None, limit: Limit = 100) -> Response:
        page = await system.workers(call.identity, after=after, limit=limit)
        return json_answer(WorkerList(page.items, page.next))

    @routes.get("/workers/{worker_id}", tags=["workers"], response_model=WorkerView, summary="Show a worker process")
    async def show_worker(call: Call, worker_id: str) -> Response:
        return json_answer(await system.worker(call.identity, worker_id))

    @routes.get("/system", tags=["system"], response_model=SystemView, summary="Show this replica")
    async def show_system(call: Call) -> Response:
        return json_answer(await system.status(call.identity))


def _add_events(routes: APIRouter, services: Services, closing: asyncio.Event) -> None:
    system = services.system

    @routes.get(
        "/events",
        tags=["events"],
        response_model=EventList,
        responses={200: {"content": {"text/event-stream": {}}}},
        summary="Follow events, or list them",
    )
    async def events(
        call: Call,
        after: Annotated[int | None, Query(ge=0, lt=2**62, description="Only events with a greater id.")] = None,
        follow: Annotated[bool, Query(description="Server-sent events without end, instead of a list.")] = True,
        limit: Limit = 100,
        last_event_id: Annotated[str | None, Header(description="Go on behind this event.")] = None,
    ) -> Response:
        if not follow:
            found = await system.events(call.identity, after=after or 0, limit=limit)
            return json_answer(EventList(found, found[-1].id if len(found) == limit else None))
        newest = await system.last_event_id(call.identity)
        start = after if last_event_id is None else event_id(last_event_id)
        followed = system.follow(call.identity, after=newest if start is None else start)
        stream = endless(call, followed, lambda view: numbered_event(view.id, view.kind, view), closing)
        return StreamingResponse(stream, media_type="text/event-stream")
