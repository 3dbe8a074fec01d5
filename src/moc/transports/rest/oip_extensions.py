"""Extensions of the Open Inference Protocol: model repository, statistics, model configuration."""

import contextlib
from functools import partial
from typing import Final

import msgspec

from moc.kernel.errors import NotFound
from moc.service.services import Services
from moc.transports.oip.repository import IndexEntry, StatisticsResponse, check_load, index_entry, statistics_response
from moc.transports.oip.request import Parameters
from moc.transports.oip.server import ModelConfig, model_config
from moc.transports.rest.body import decoded
from moc.transports.rest.exchange import Exchange
from moc.transports.rest.operation import MODEL, Operation, reference_of, versioned


class IndexRequest(msgspec.Struct):
    """`ready` leaves out what is not loaded."""

    ready: bool = False


class RepositoryRequest(msgspec.Struct):
    """Options of loading and unloading; `unload_dependents` has nothing to act on here."""

    parameters: Parameters = {}


class ModelLoad(msgspec.Struct):
    """A model was loaded (or, with false, unloaded)."""

    name: str
    load: bool


_index_decoder: Final = msgspec.json.Decoder(IndexRequest)
_repository_decoder: Final = msgspec.json.Decoder(RepositoryRequest)


class Extensions:
    """The endpoints of the extensions."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def operations(self) -> list[Operation]:
        """Its routes."""
        post = partial(Operation, method="POST", optional_body=True)
        change = partial(post, body=RepositoryRequest, answer=ModelLoad)
        statistics = partial(Operation, method="GET", handle=self._statistics, answer=StatisticsResponse)
        config = Operation(
            method="GET",
            path=f"{MODEL}/config",
            handle=self._config,
            summary="Show a model's configuration",
            answer=ModelConfig,
        )
        repository = "/v2/repository"
        return [
            post(
                path=f"{repository}/index",
                handle=self._index,
                summary="List every version of every model",
                body=IndexRequest,
                answer=list[IndexEntry],
            ),
            change(path=f"{repository}/models/{{model}}/load", handle=self._load, summary="Load a model"),
            change(path=f"{repository}/models/{{model}}/unload", handle=self._unload, summary="Unload a model"),
            statistics(path="/v2/models/stats", summary="Count what every model served"),
            *versioned(statistics(path=f"{MODEL}/stats", summary="Count what a model served")),
            *versioned(config),
        ]

    async def _index(self, exchange: Exchange) -> None:
        body = await exchange.body()
        wanted = decoded(_index_decoder, body) if body else IndexRequest()
        views = await self._services.models.index(exchange.identity, ready_only=wanted.ready)
        await exchange.answer_message([index_entry(view) for view in views])

    async def _load(self, exchange: Exchange) -> None:
        body = await exchange.body()
        options = decoded(_repository_decoder, body) if body else RepositoryRequest()
        check_load(options.parameters)
        view = await self._services.models.load(exchange.identity, reference_of(exchange), exchange.deadline())
        await exchange.answer_message(ModelLoad(view.name, load=True))

    async def _unload(self, exchange: Exchange) -> None:
        body = await exchange.body()
        if body:
            decoded(_repository_decoder, body)
        reference = reference_of(exchange)
        with contextlib.suppress(NotFound):  # the protocol asks for an end state: what is unknown is not loaded
            await self._services.models.unload(exchange.identity, reference, exchange.deadline())
        await exchange.answer_message(ModelLoad(reference, load=False))

    async def _statistics(self, exchange: Exchange) -> None:
        reference = reference_of(exchange) if "model" in exchange.scope["path_params"] else None
        found = self._services.inference.statistics(exchange.identity, reference)
        await exchange.answer_message(statistics_response(found))

    async def _config(self, exchange: Exchange) -> None:
        found = await self._services.inference.describe(exchange.identity, reference_of(exchange), exchange.deadline())
        await exchange.answer_message(model_config(found))
