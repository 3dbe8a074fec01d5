"""The paths of the first generation of this system, for the programs that still ask there."""

import time
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter
from fastapi.responses import Response
from fastapi.routing import APIRoute
from msgspec import Meta, Struct

from moc.kernel.errors import InvalidRequest, Unimplemented
from moc.service.job_views import JobView
from moc.service.jobs import JobFilter
from moc.service.models import spec_from
from moc.service.services import Services
from moc.service.views import ModelView
from moc.transports.first_generation import job_of, spec_of, written_in
from moc.transports.oip.text import completion
from moc.transports.rest.body import decoded
from moc.transports.rest.exchange import inference_headers
from moc.transports.rest.jobs import JOB_BODY, JobList, job_wishes
from moc.transports.rest.management import ModelList
from moc.transports.rest.operation import DEADLINE_HEADER, TERMS_HEADERS
from moc.transports.rest.parameters import After, Call, IdempotencyKey, Limit, json_answer


class InferenceRequest(Struct, kw_only=True):
    """A prompt; `parameters` go to the engine as those of a completion, under `max_tokens` and `temperature`."""

    model: str = ""
    model_name: str = ""
    prompt: str
    parameters: dict[str, Any] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None


class LoadRequest(Struct):
    """A model, and where its file is if it is new; `load_params` are fields of a model as `moc.yaml` has them."""

    model_name: str
    model_path: str | None = None
    load_params: dict[str, Any] | None = None
    shards: int | None = None


@dataclass(frozen=True, slots=True)
class InferenceAnswer:
    """What the model wrote. A failure is not told here but as on every other path."""

    response_text: str
    tokens_generated: int
    inference_time_ms: float
    status: Literal["success"] = "success"
    error_message: str = ""


_TAG: Final = "compatibility"
_inference_decoder: Final = msgspec.json.Decoder(InferenceRequest)
_load_decoder: Final = msgspec.json.Decoder(LoadRequest)
_fields_decoder: Final = msgspec.json.Decoder(dict[str, Any])


def router(services: Services, *, route: type[APIRoute]) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=[_TAG], deprecated=True, route_class=route)
    _add_inference(routes, services)
    _add_models(routes, services)
    _add_jobs(routes, services)
    _add_goals(routes)
    return routes


def _add_inference(routes: APIRouter, services: Services) -> None:
    @routes.post(
        "/inference",
        response_model=InferenceAnswer,
        summary="Continue a text",
        openapi_extra={**_body(InferenceRequest), "parameters": [*TERMS_HEADERS]},
    )
    async def inference(call: Call) -> Response:
        wanted = decoded(_inference_decoder, await call.body())
        model = wanted.model_name or wanted.model
        if not model:
            raise InvalidRequest("`model_name` is missing; say which model is to answer")
        options = {"max_tokens": wanted.max_tokens, "temperature": wanted.temperature}
        parameters = {**(wanted.parameters or {}), **{name: v for name, v in options.items() if v is not None}}
        request = completion(wanted.prompt, parameters, model, stream=False)
        began = time.monotonic()
        with call.watch():
            answer = await services.inference.infer(call.identity, model, request, call.terms())
        text, tokens = written_in(answer.reply.body)
        response = json_answer(
            InferenceAnswer(
                response_text=text,
                tokens_generated=tokens,
                inference_time_ms=round((time.monotonic() - began) * 1000, 3),
            )
        )
        response.raw_headers.extend(inference_headers(answer))
        return response


def _add_models(routes: APIRouter, services: Services) -> None:
    models = services.models

    @routes.get("/models", response_model=ModelList, name="older_list_models", summary="List models")
    async def list_models(call: Call, after: After = None, limit: Limit = 100) -> Response:
        page = await models.list(call.identity, after=after, limit=limit)
        return json_answer(ModelList(page.items, page.next))

    @routes.post(
        "/models",
        response_model=ModelView,
        name="older_load_model",
        summary="Load a model; add it first if its path is given",
        openapi_extra={**_body(LoadRequest), "parameters": [DEADLINE_HEADER]},
    )
    async def load_model(call: Call) -> Response:
        wanted = decoded(_load_decoder, await call.body())
        reference = wanted.model_name
        if wanted.model_path:
            fields = spec_of(wanted.model_path, wanted.load_params, wanted.shards)
            spec = spec_from(fields, where=f"model {reference[:128]!r}")
            reference = (await models.add(call.identity, reference, spec)).reference
        return json_answer(await models.load(call.identity, reference, call.deadline()))

    @routes.delete(
        "/models/{name}", response_model=ModelView, name="older_unload_model", summary="Unload a model; it stays listed"
    )
    async def unload_model(call: Call, name: str) -> Response:
        return json_answer(await models.unload(call.identity, name, call.deadline()))


def _add_jobs(routes: APIRouter, services: Services) -> None:
    jobs = services.jobs

    @routes.get("/learning/jobs", response_model=JobList, name="older_list_jobs", summary="List jobs")
    async def list_jobs(call: Call, after: After = None, limit: Limit = 100) -> Response:
        page = await jobs.list(call.identity, wanted=JobFilter(), after=after, limit=limit)
        return json_answer(JobList(page.items, page.next))

    @routes.post(
        "/learning/jobs",
        response_model=JobView,
        name="older_submit_job",
        summary="Submit a job; `job_type` and `model_name` are its `type` and `model`",
        openapi_extra=JOB_BODY,
    )
    async def submit_job(call: Call, idempotency_key: IdempotencyKey = "") -> Response:
        fields = decoded(_fields_decoder, await call.body())
        wish = decoded(job_wishes, msgspec.json.encode(job_of(fields)))
        return json_answer(await jobs.submit(call.identity, wish, idempotency_key=idempotency_key))


def _add_goals(routes: APIRouter) -> None:
    """What this version cannot do yet."""

    async def refuse() -> Response:
        raise Unimplemented("this version has no goals; a later one will")

    for method in ("GET", "POST"):
        routes.add_api_route(
            "/goals",
            refuse,
            methods=[method],
            name=f"older_{method.lower()}_goals",
            response_class=Response,
            summary="Refused: this version has no goals",
        )


def _body(described: type) -> dict[str, Any]:
    """What the document says of a request."""
    (schema,), components = msgspec.json.schema_components([described])
    schema = components.get(described.__name__, schema)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
