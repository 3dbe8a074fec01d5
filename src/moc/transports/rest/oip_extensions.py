"""Extensions of the Open Inference Protocol: model repository, statistics, model configuration."""

import contextlib
from functools import partial
from typing import Final

import msgspec

from moc.kernel.errors import NotFound, Unimplemented
from moc.service.inference import Duration, Statistics, TensorSpec
from moc.service.services import Services
from moc.service.views import ModelView
from moc.transports.rest.body import decoded
from moc.transports.rest.exchange import Exchange
from moc.transports.rest.oip_message import Parameters
from moc.transports.rest.operation import MODEL, Operation, model_reference, versioned


class IndexRequest(msgspec.Struct):
    """`ready` leaves out what is not loaded."""

    ready: bool = False


class IndexEntry(msgspec.Struct):
    """A version in the repository; `state` is UNKNOWN, READY, UNAVAILABLE, LOADING or UNLOADING."""

    name: str
    version: str
    state: str
    reason: str


class RepositoryRequest(msgspec.Struct):
    """Options of loading and unloading; `unload_dependents` has nothing to act on here."""

    parameters: Parameters = {}


class ModelLoad(msgspec.Struct):
    """A model was loaded (or, with false, unloaded)."""

    name: str
    load: bool


class InferStatistics(msgspec.Struct):
    """Requests by outcome and stage; this server has no response cache."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class ModelStatistics(msgspec.Struct):
    """What a version has served; `last_inference` in milliseconds since the epoch. Batches are the engine's own."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferStatistics
    batch_stats: tuple[()] = ()


class StatisticsResponse(msgspec.Struct):
    """Statistics of one version or of all."""

    model_stats: list[ModelStatistics]


class TensorConfig(msgspec.Struct):
    """An input or output as Triton's configuration writes it."""

    name: str
    data_type: str
    dims: tuple[int, ...]


class ModelConfig(msgspec.Struct):
    """A model in the terms of Triton's configuration; `max_batch_size` 0: the shapes are whole."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]
    instance_group: list[dict[str, int | str]]


_STATES: Final = {"ready": "READY", "loading": "LOADING", "draining": "UNLOADING", "unloading": "UNLOADING"}
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
        await exchange.answer_message([_index_entry(view) for view in views])

    async def _load(self, exchange: Exchange) -> None:
        body = await exchange.body()
        options = decoded(_repository_decoder, body) if body else RepositoryRequest()
        for key, value in options.parameters.items():
            if value and (key == "config" or key.startswith("file:")):
                raise Unimplemented(
                    f"the load parameter {key[:40]!r} is not supported; add a version with POST /api/v1/models instead"
                )
        view = await self._services.models.load(exchange.identity, model_reference(exchange), exchange.deadline())
        await exchange.answer_message(ModelLoad(view.name, load=True))

    async def _unload(self, exchange: Exchange) -> None:
        body = await exchange.body()
        if body:
            decoded(_repository_decoder, body)
        reference = model_reference(exchange)
        with contextlib.suppress(NotFound):  # the protocol asks for an end state: what is unknown is not loaded
            await self._services.models.unload(exchange.identity, reference, exchange.deadline())
        await exchange.answer_message(ModelLoad(reference, load=False))

    async def _statistics(self, exchange: Exchange) -> None:
        reference = model_reference(exchange) if "model" in exchange.scope["path_params"] else None
        found = self._services.inference.statistics(exchange.identity, reference)
        await exchange.answer_message(StatisticsResponse([_model_statistics(one) for one in found]))

    async def _config(self, exchange: Exchange) -> None:
        found = await self._services.inference.describe(
            exchange.identity, model_reference(exchange), exchange.deadline()
        )
        config = ModelConfig(
            name=found.name,
            platform=found.platform,
            backend=found.platform,
            max_batch_size=0,
            input=[_tensor_config(spec) for spec in found.inputs],
            output=[_tensor_config(spec) for spec in found.outputs],
            instance_group=[{"kind": "KIND_AUTO", "count": 1}],
        )
        await exchange.answer_message(config)


def _index_entry(view: ModelView) -> IndexEntry:
    state = _STATES.get(view.state, "UNAVAILABLE")
    reason = "" if state == "READY" else view.message or view.reason
    return IndexEntry(view.name, str(view.version), state, reason)


def _tensor_config(spec: TensorSpec) -> TensorConfig:
    return TensorConfig(spec.name, "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}", spec.shape)


def _model_statistics(found: Statistics) -> ModelStatistics:
    stages = InferStatistics(
        success=found.success,
        fail=found.fail,
        queue=found.queue,
        compute_input=found.compute_input,
        compute_infer=found.compute_infer,
        compute_output=found.compute_output,
        cache_hit=Duration(),
        cache_miss=Duration(),
    )
    return ModelStatistics(
        name=found.name,
        version=str(found.version),
        last_inference=found.last_inference_ms,
        inference_count=found.inference_count,
        execution_count=found.execution_count,
        inference_stats=stages,
    )
