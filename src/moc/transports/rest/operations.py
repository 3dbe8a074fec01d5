"""What operators look at: probes, health, metrics."""

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from fastapi import APIRouter
from fastapi.responses import Response
from fastapi.routing import APIRoute

from moc.service.services import Services
from moc.service.system import METRICS_CONTENT_TYPE
from moc.transports.rest.parameters import Call

PUBLIC: Final = frozenset({"/livez", "/readyz", "/startupz"})
"""Probes need no key: what asks them has none."""

_UNAVAILABLE: Final = 503


@dataclass(frozen=True, slots=True)
class Probe:
    """`status` is `ok` or `unavailable`; `parts` says which part of the program is well, `reasons` why one is not."""

    status: str
    parts: dict[str, bool]
    reasons: dict[str, str]


@dataclass(frozen=True, slots=True)
class Health:
    """A probe that also tells the program's version."""

    status: str
    parts: dict[str, bool]
    reasons: dict[str, str]
    version: str


def router(services: Services, *, route: type[APIRoute]) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["operations"], route_class=route)
    system = services.system

    @routes.get("/livez", response_model=Probe, summary="Tell that the process answers")
    async def live() -> Response:
        return _probe(Probe("ok", {}, {}), system.is_live())

    @routes.get("/startupz", response_model=Probe, responses=_or(Probe), summary="Tell that the start is over")
    async def started() -> Response:
        well = system.is_started()
        return _probe(Probe(_word(well), {}, {}), well)

    @routes.get("/readyz", response_model=Probe, responses=_or(Probe), summary="Tell whether to send requests")
    async def ready() -> Response:
        readiness = system.readiness()
        return _probe(Probe(_word(readiness.ready), readiness.parts, readiness.reasons), readiness.ready)

    @routes.get("/health", response_model=Health, responses=_or(Health), summary="Show health and version")
    async def health(call: Call) -> Response:
        found = system.readiness(call.identity)
        return _probe(Health(_word(found.ready), found.parts, found.reasons, system.version), found.ready)

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        summary="Show metrics for Prometheus",
    )
    async def metrics(call: Call) -> Response:
        return Response(system.metrics(call.identity), headers={"content-type": METRICS_CONTENT_TYPE})

    return routes


def _or(model: type) -> dict[int | str, dict[str, Any]]:
    return {_UNAVAILABLE: {"model": model, "description": "Not ready"}}


def _word(ready: bool) -> str:
    return "ok" if ready else "unavailable"


def _probe(found: Probe | Health, well: bool) -> Response:
    return Response(msgspec.json.encode(found), 200 if well else _UNAVAILABLE, media_type="application/json")
