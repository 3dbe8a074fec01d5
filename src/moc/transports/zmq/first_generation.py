"""The messages of the first generation of this system, `{"type": …, "data": …}`, in today's words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from moc.transports.first_generation import job_of, spec_of

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Older:
    """What a `type` asks for, the `type` of its answer, and what its `data` is as a payload."""

    action: str
    answer: str
    payload: Callable[[Fields], Fields] = dict


def _model(data: Fields) -> Fields:
    """`model_name` as `model`."""
    fields = dict(data)
    if "model_name" in fields:
        fields["model"] = fields.pop("model_name")
    return fields


def _inference(data: Fields) -> Fields:
    fields = _model(data)
    parameters = fields.get("parameters")
    if "prompt" in fields and isinstance(parameters, dict):
        del fields["parameters"]
        return {**parameters, **fields}
    return fields


def _load(data: Fields) -> Fields:
    """With a `model_path`, what the model is made of: its runtime is told by the path unless `load_params` does."""
    fields = _model(data)
    path, parameters, shards = (fields.pop(key, None) for key in ("model_path", "load_params", "shards"))
    if not isinstance(path, str) or not path:
        return fields
    return {**fields, "spec": spec_of(path, parameters if isinstance(parameters, dict) else None, shards)}


def _unload(data: Fields) -> Fields:
    """`force` is left out: a model is always drained first."""
    return {key: value for key, value in _model(data).items() if key != "force"}


TYPES: Mapping[str, Older] = MappingProxyType(
    {
        "inference_request": Older("infer", "inference_response", _inference),
        "model_load_request": Older("load_model", "model_load_response", _load),
        "model_unload_request": Older("unload_model", "model_unload_response", _unload),
        "learning_job_request": Older("submit_job", "learning_job_response", job_of),
        "goal_create_request": Older("create_goal", "goal_create_response"),
        "status_request": Older("status", "status_response"),
        "capabilities_request": Older("capabilities", "capabilities_response"),
        "discovery": Older("discovery", "discovery_response"),
        "heartbeat": Older("health", "heartbeat_response"),
    }
)
"""Every `type` there was."""
