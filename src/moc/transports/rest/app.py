"""The ASGI application: the inference protocols, the management API, and the gate before both."""

import asyncio
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from typing import Any, Final, cast

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import Response
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import Router, compile_path
from starlette.types import ASGIApp

from moc.kernel.errors import InvalidRequest, MocError
from moc.service.services import Services
from moc.transports.rest import compatibility, management, operations
from moc.transports.rest.anthropic import Anthropic
from moc.transports.rest.audio import Audio
from moc.transports.rest.document import document
from moc.transports.rest.exchange import Exchange
from moc.transports.rest.failure import failure_of
from moc.transports.rest.files import Files
from moc.transports.rest.fine_tuning import FineTuning
from moc.transports.rest.gate import Gate
from moc.transports.rest.limits import Limits
from moc.transports.rest.oip import CoreProtocol
from moc.transports.rest.oip_extensions import Extensions
from moc.transports.rest.oip_generate import Generation
from moc.transports.rest.openai import OpenAI
from moc.transports.rest.operation import EXCHANGE, Operation
from moc.transports.rest.rerank import Rerank
from moc.transports.rest.responses import Responses
from moc.transports.rest.tokenize import Tokenize

_OPENAPI: Final = "/openapi.json"
_DOCS_POLICY: Final = (
    "default-src 'none'; connect-src 'self'; frame-ancestors 'none'; img-src data: https://fastapi.tiangolo.com; "
    "script-src 'unsafe-inline' https://cdn.jsdelivr.net; style-src 'unsafe-inline' https://cdn.jsdelivr.net"
)


def build(services: Services, *, limits: Limits, hosts: frozenset[str] | None, closing: asyncio.Event) -> ASGIApp:
    """Everything the REST port answers.

    `hosts`, when given, are the only names it may be called by; event streams end when `closing` is set.
    """
    protocols = protocol_operations(services)
    public = frozenset(operation.path for operation in protocols if operation.public) | operations.PUBLIC
    return Gate(
        services.authenticator,
        limits=limits,
        protocols=Router([operation.route() for operation in protocols], redirect_slashes=False),
        management=_management(services, closing, protocols, public),
        public=public,
        unbounded=frozenset(operation.path for operation in protocols if operation.bounds_itself),
        hosts=hosts,
        closing=closing,
    )


def protocol_operations(services: Services) -> list[Operation]:
    """Every operation of the inference protocols, in the order in which they are looked for."""
    openai = (OpenAI, Responses, Rerank, Audio, Tokenize, Files, FineTuning)
    parts = (CoreProtocol, *openai, Anthropic, Extensions, Generation)
    found = [operation for part in parts for operation in part(services).operations()]
    # A path that is only a model's name also matches what is written out, such as /v2/models/stats.
    return sorted(found, key=lambda operation: operation.path.endswith("{model}"))


class _Served(APIRoute):
    """A route as it is asked, without what only the document tells of its answers: that takes long to make."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "response_model": None, "responses": None})


def _management(
    services: Services, closing: asyncio.Event, protocols: list[Operation], public: frozenset[str]
) -> FastAPI:
    @cache
    def described() -> bytes:
        return msgspec.json.encode(document(_app(services, closing, APIRoute, described), protocols, public))

    return _app(services, closing, _Served, described)


def _app(services: Services, closing: asyncio.Event, route: type[APIRoute], described: Callable[[], bytes]) -> FastAPI:
    app = FastAPI(
        openapi_url=None,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,
        exception_handlers={
            MocError: _refused,
            HTTPException: _refused,
            RequestValidationError: _invalid,
            Exception: _refused,
        },
    )
    app.include_router(management.router(services, closing=closing, route=route))
    app.include_router(operations.router(services, route=route))
    app.include_router(compatibility.router(services, route=route))

    @app.get(_OPENAPI, tags=["operations"], summary="Show this document")
    async def openapi() -> Response:
        return Response(await asyncio.to_thread(described), media_type="application/json")

    @app.get("/docs", tags=["operations"], response_class=Response, summary="Show this document for people")
    async def docs() -> Response:
        page = get_swagger_ui_html(openapi_url=_OPENAPI, title="ModelOps Coordinator")
        page.headers["content-security-policy"] = _DOCS_POLICY
        return page

    return app


async def _refused(request: Request, error: Exception) -> Response:
    exchange: Exchange = request.scope[EXCHANGE]
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        error = HTTPException(error.status_code, headers={"Allow": ", ".join(sorted(_methods(request)))})
    failure = failure_of(error, exchange)
    answer = Response(failure.body, failure.status, media_type="application/json")
    answer.raw_headers.extend(failure.headers)
    return answer


def _methods(request: Request) -> set[str]:
    """Every method of the path that was asked; the router tells only those of the first route that has it."""
    path = request.scope["path"]
    routes = [
        route
        for route in iter_route_contexts(request.app.routes)
        if route.path is not None and compile_path(route.path)[0].match(path)
    ]
    return {method for route in routes for method in route.methods or ()}


async def _invalid(request: Request, error: Exception) -> Response:
    first = cast(RequestValidationError, error).errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return await _refused(request, InvalidRequest(f"{place}: {first['msg']}"))
