"""The rules of an inference request that are the same in JSON and in gRPC."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from msgspec import structs

from moc.kernel.errors import InvalidRequest, NotFound, Unimplemented
from moc.service.inference import Tensor, Terms
from moc.transports.headers import checked_priority

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


@dataclass(frozen=True, slots=True)
class Haste:
    """What the parameters of a request say of when it is to be served: None where they say nothing."""

    timeout_s: float | None = None
    priority: int | None = None

    def on(self, terms: Terms) -> Terms:
        """The terms, with what the parameters say: the sooner deadline, and their priority."""
        if self.timeout_s is not None:
            terms = structs.replace(terms, deadline=terms.deadline.sooner(self.timeout_s))
        return terms if self.priority is None else structs.replace(terms, priority=self.priority)


_NO_HASTE: Final = Haste()


def taken_from(parameters: Parameters) -> Haste:
    """What `timeout` (microseconds) and `priority` (1 is the highest) say; they are taken out. 0 says nothing."""
    if not parameters:
        return _NO_HASTE
    return Haste(_timeout_s(parameters.pop("timeout", None)), _priority(parameters.pop("priority", None)))


def _timeout_s(microseconds: Scalar) -> float | None:
    if microseconds is None or microseconds == 0:
        return None
    if type(microseconds) is not int or microseconds < 0:
        raise InvalidRequest(f"the parameter timeout must be a number of microseconds, not {microseconds!r}")
    return microseconds / 1e6


def _priority(given: Scalar) -> int | None:
    if given is None or given == 0:
        return None
    if type(given) is not int:
        raise InvalidRequest(f"the parameter priority must be a whole number, not {given!r}")
    return checked_priority(given)


def check_inputs(described: Sequence[Tensor]) -> None:
    """InvalidRequest when an input is there twice."""
    if len(described) > 1 and len({tensor.name for tensor in described}) != len(described):
        raise InvalidRequest("`inputs` has the same input twice; give each once")


def check_outputs(named: int, different: int) -> None:
    """InvalidRequest when of the outputs that are named not all are different."""
    if named != different:
        raise InvalidRequest("`outputs` names the same output twice; name each once")
