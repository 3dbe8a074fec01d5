"""Inference messages of the Open Inference Protocol in gRPC."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from moc.kernel.errors import InvalidRequest
from moc.service.inference import Answer, Request, Tensor
from moc.transports.grpc.stubs.inference.grpc_service_pb2 import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
    ModelRepositoryParameter,
)
from moc.transports.oip import tensors
from moc.transports.oip.request import Haste, Parameters, check_inputs, check_outputs, refuse, taken_from

InferInput = ModelInferRequest.InferInputTensor

_FIELDS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where the elements of each datatype are; FP16 has no such place."""


@dataclass(slots=True)
class Wanted:
    """What a caller asked for: the request for the engine, and when it is to be served."""

    request: Request
    haste: Haste


def parse(message: ModelInferRequest) -> Wanted:
    """Read a request. InvalidRequest says what is wrong with it."""
    inputs, data = _inputs(message)
    outputs = _outputs(message) if message.outputs else ()
    parameters = parameters_of(message.parameters) if message.parameters else {}
    haste = taken_from(parameters)
    return Wanted(Request("tensors", data, inputs, outputs, parameters), haste)


def render(answer: Answer, request_id: str) -> ModelInferResponse:
    """An answer, its outputs raw."""
    reply = answer.reply
    name, _, version = answer.reference.partition("@")
    response = ModelInferResponse(model_name=name, model_version=version, id=request_id)
    at, body = 0, bytes(reply.body)
    for tensor in reply.outputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(body[at : at + tensor.size])
        at += tensor.size
    for key, value in reply.parameters.items():
        _set_parameter(response.parameters[key], value)
    return response


def parameters_of(given: Mapping[str, InferParameter] | Mapping[str, ModelRepositoryParameter]) -> Parameters:
    """Parameters as plain values."""
    found: Parameters = {}
    for key, parameter in given.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[key] = None if choice is None else getattr(parameter, choice)
    return found


def text_input(message: ModelInferRequest) -> str | None:
    """The prompt of a request whose only input is one text called `text_input`, else None."""
    if len(message.inputs) != 1 or message.inputs[0].name != "text_input" or message.inputs[0].datatype != "BYTES":
        return None
    _, data = _inputs(message)
    texts = tensors.unpack("text_input", "BYTES", data)
    return texts[0] if len(texts) == 1 else None


def _outputs(message: ModelInferRequest) -> tuple[str, ...]:
    """The names of the wanted outputs."""
    for output in message.outputs:
        refuse(output.name, output.parameters)
    names = tuple(output.name for output in message.outputs)
    check_outputs(len(names), len(set(names)))
    return names


def _inputs(message: ModelInferRequest) -> tuple[tuple[Tensor, ...], bytes]:
    """The tensors described, and their bytes back to back."""
    inputs, raw = message.inputs[:], message.raw_input_contents[:]  # lists: walking the containers costs far more
    if not inputs:
        raise InvalidRequest("the request has no `inputs`; give at least one")
    if raw and len(raw) != len(inputs):
        raise InvalidRequest(
            f"there are {len(inputs)} inputs but {len(raw)} raw_input_contents; give each input's or none"
        )
    described, parts = [], []
    for number, given in enumerate(inputs):
        name, datatype, shape = given.name, given.datatype, tuple(given.shape[:])
        if given.parameters:
            refuse(name, given.parameters)
        tensors.check_shape(name, shape)
        data = _raw(given, shape, raw[number]) if raw else _typed(given, shape)
        described.append(Tensor(name, datatype, shape, len(data)))
        parts.append(data)
    check_inputs(described)
    return tuple(described), parts[0] if len(parts) == 1 else b"".join(parts)


def _raw(given: InferInput, shape: tuple[int, ...], data: bytes) -> bytes:
    if given.HasField("contents") and given.contents.ListFields():
        raise InvalidRequest(f"input {given.name!r} has both `contents` and raw_input_contents; give one")
    tensors.check(given.name, given.datatype, shape, data)
    return data


def _typed(given: InferInput, shape: tuple[int, ...]) -> bytes:
    filled = [field.name for field, _ in given.contents.ListFields()]
    wanted = _FIELDS.get(given.datatype)
    if wanted is None and given.datatype in tensors.DATATYPES:
        raise InvalidRequest(f"input {given.name!r}: {given.datatype} has no contents; give it in raw_input_contents")
    if wanted is None:
        return tensors.pack_values(given.name, given.datatype, shape, ())  # refuses the datatype
    if filled not in ([], [wanted]):
        raise InvalidRequest(f"input {given.name!r}: {given.datatype} goes into {wanted}, not {', '.join(filled)}")
    return tensors.pack_values(given.name, given.datatype, shape, getattr(given.contents, wanted))


def _set_parameter(parameter: InferParameter, value: Any) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int) and -(2**63) <= value < 2**63:
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value if isinstance(value, str) else msgspec.json.encode(value).decode()
