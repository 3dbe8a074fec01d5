"""The Open Inference Protocol: health, metadata and inference."""

from functools import partial
from typing import Final

import msgspec

from moc.kernel.errors import Unavailable
from moc.service.services import Services
from moc.transports.oip.message import InferRequest, InferResponse
from moc.transports.oip.server import ModelMetadata, ServerMetadata, model_metadata, server_metadata
from moc.transports.rest.exchange import Exchange, inference_headers
from moc.transports.rest.oip_message import header_length, parse, render
from moc.transports.rest.operation import MODEL, Operation, reference_of, versioned
from moc.transports.status import Shape, http_status

_UNAVAILABLE: Final = http_status(Unavailable(""), Shape.OIP)


class Live(msgspec.Struct):
    """The server answers."""

    live: bool


class Ready(msgspec.Struct, omit_defaults=True):
    """Whether the server takes requests; `error` says why not."""

    ready: bool
    live: bool
    error: str = ""


class ModelReady(msgspec.Struct, omit_defaults=True):
    """Whether a model takes requests without being loaded first; `error` says why not."""

    ready: bool
    name: str
    error: str = ""


class CoreProtocol:
    """The protocol's own endpoints; a model is reached as `{model}` and as `{model}/versions/{version}`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def operations(self) -> list[Operation]:
        """Its routes; inference first, it is looked for most."""
        infer = Operation(
            method="POST",
            path=f"{MODEL}/infer",
            handle=self._infer,
            summary="Run a model on tensors",
            body=InferRequest,
            binary_body=True,
            answer=InferResponse,
            media=("application/json", "application/octet-stream"),
        )
        get = partial(Operation, method="GET")
        server = partial(get, handle=self._server, summary="Describe the server", answer=ServerMetadata)
        ready = partial(get, handle=self._model_ready, summary="Tell whether a model is loaded", answer=ModelReady)
        metadata = partial(get, handle=self._metadata, summary="Describe a model's tensors", answer=ModelMetadata)
        health = partial(get, public=True)
        return [
            *versioned(infer),
            server(path="/v2"),
            server(path="/v2/"),
            health(path="/v2/health/live", handle=self._live, summary="Tell that the server answers", answer=Live),
            health(path="/v2/health/ready", handle=self._ready, summary="Tell whether to send requests", answer=Ready),
            *versioned(ready(path=f"{MODEL}/ready")),
            *versioned(metadata(path=MODEL)),
        ]

    async def _infer(self, exchange: Exchange) -> None:
        body = await exchange.body()
        wanted = parse(body, header_length(exchange.header(b"inference-header-content-length"), len(body)))
        wanted.request.headers = exchange.headers
        terms = wanted.haste.on(exchange.terms())
        with exchange.watch():
            answer = await self._services.inference.infer(
                exchange.identity, reference_of(exchange), wanted.request, terms
            )
        payload, media, headers = render(answer, wanted, exchange.request_id)
        await exchange.answer(200, payload, media=media, headers=(*inference_headers(answer), *headers))

    async def _server(self, exchange: Exchange) -> None:
        await exchange.answer_message(server_metadata(self._services.system.version))

    async def _live(self, exchange: Exchange) -> None:
        await exchange.answer_message(Live(live=self._services.system.is_live()))

    async def _ready(self, exchange: Exchange) -> None:
        readiness = self._services.system.readiness()
        if readiness.ready:
            await exchange.answer_message(Ready(ready=True, live=True))
            return
        waiting = ", ".join(f"{part}: {reason}" for part, reason in readiness.reasons.items())
        await exchange.answer_message(Ready(ready=False, live=True, error=f"not ready: {waiting}"), _UNAVAILABLE)

    async def _model_ready(self, exchange: Exchange) -> None:
        name = exchange.path("model")
        problem = self._services.inference.problem(exchange.identity, reference_of(exchange))
        if problem:
            message = ModelReady(ready=False, name=name, error=f"{name} is not ready: {problem}")
            await exchange.answer_message(message, _UNAVAILABLE)
            return
        await exchange.answer_message(ModelReady(ready=True, name=name))

    async def _metadata(self, exchange: Exchange) -> None:
        found = await self._services.inference.describe(exchange.identity, reference_of(exchange), exchange.deadline())
        await exchange.answer_message(model_metadata(found))
