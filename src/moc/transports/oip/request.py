"""The rules of an inference request that are the same in JSON and in gRPC."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from moc.kernel.errors import InvalidRequest, NotFound, Unimplemented
from moc.service.inference import Tensor

Scalar = str | int | float | bool | None
Parameters = dict[str, Scalar]

_REFUSED: Final = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "classification")


def model_reference(model: str, version: str | None) -> str:
    """`model`, or `model@version` when a version is named too; NotFound for what cannot be a version."""
    if not version:
        return model
    if not (version.isascii() and version.isdigit()):
        raise NotFound(f"{model[:128]} has no version {version[:40]!r}; versions are numbers from 1 up")
    return f"{model}@{version}"


def refuse(name: str, parameters: Mapping[str, Any]) -> None:
    """Unimplemented when a tensor's parameters ask for what this server does not have."""
    for key in _REFUSED:
        if key in parameters:
            raise Unimplemented(f"tensor {name!r}: the parameter {key} is not supported here; leave it out")


def timeout_s(microseconds: Scalar) -> float | None:
    """The parameter `timeout` in seconds; None when it is 0 or absent."""
    if microseconds is None or microseconds == 0:
        return None
    if type(microseconds) is not int or microseconds < 0:
        raise InvalidRequest(f"the parameter timeout must be a number of microseconds, not {microseconds!r}")
    return microseconds / 1e6


def check_inputs(described: Sequence[Tensor]) -> None:
    """InvalidRequest when an input is there twice."""
    if len(described) > 1 and len({tensor.name for tensor in described}) != len(described):
        raise InvalidRequest("`inputs` has the same input twice; give each once")


def check_outputs(named: int, different: int) -> None:
    """InvalidRequest when of the outputs that are named not all are different."""
    if named != different:
        raise InvalidRequest("`outputs` names the same output twice; name each once")
