"""The extensions that list, load and count: model repository and statistics."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from moc.kernel.errors import Unimplemented
from moc.service.inference import Duration, Statistics
from moc.service.views import ModelView

_STATES: Final = {"ready": "READY", "loading": "LOADING", "draining": "UNLOADING", "unloading": "UNLOADING"}


class IndexEntry(msgspec.Struct):
    """A version in the repository; `state` is UNKNOWN, READY, UNAVAILABLE, LOADING or UNLOADING."""

    name: str
    version: str
    state: str
    reason: str


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


def index_entry(view: ModelView) -> IndexEntry:
    """A version as the repository lists it."""
    state = "UNAVAILABLE" if view.problem else _STATES.get(view.state, "UNAVAILABLE")
    reason = "" if state == "READY" else view.problem or view.message or view.reason
    return IndexEntry(view.name, str(view.version), state, reason)


def statistics_response(found: Iterable[Statistics]) -> StatisticsResponse:
    """Statistics as the protocol tells them."""
    return StatisticsResponse([_model_statistics(each) for each in found])


def check_load(parameters: Mapping[str, Any]) -> None:
    """Unimplemented when loading is asked to change the model."""
    for key, value in parameters.items():
        if value and (key == "config" or key.startswith("file:")):
            raise Unimplemented(
                f"the load parameter {key[:40]!r} is not supported; add a version with POST /api/v1/models instead"
            )


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
