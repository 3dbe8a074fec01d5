"""An inference of the Open Inference Protocol as a document: JSON, or what stands for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from moc.kernel.errors import InvalidRequest
from moc.service.inference import Answer, Request, Tensor
from moc.transports.oip import tensors
from moc.transports.oip.request import Haste, Parameters, Scalar, check_inputs, check_outputs, refuse, taken_from

Dimension = Annotated[int, Meta(ge=0, le=tensors.DIMENSION_MAX)]


class InferInput(msgspec.Struct, gc=False):
    """One input tensor: `data` nested or flat, or the parameter `binary_data_size`."""

    name: str
    shape: Annotated[tuple[Dimension, ...], Meta(max_length=tensors.RANK_MAX)]
    datatype: str
    data: Raw | UnsetType = UNSET
    parameters: Parameters = {}


class InferRequestedOutput(msgspec.Struct, gc=False):
    """One wanted output; the parameter `binary_data` asks for it in binary."""

    name: str
    parameters: Parameters = {}


class InferRequest(msgspec.Struct, gc=False):
    """An inference request; the server itself obeys the parameters `timeout` (microseconds) and `priority`."""

    inputs: Annotated[list[InferInput], Meta(min_length=1)]
    id: str = ""
    outputs: list[InferRequestedOutput] = []
    parameters: Parameters = {}


class InferOutput(msgspec.Struct, omit_defaults=True, gc=False):
    """One output tensor: `data` is flat, absent when it follows in binary."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: Sequence[Any] | UnsetType = UNSET
    parameters: dict[str, Any] = {}


class InferResponse(msgspec.Struct, omit_defaults=True, gc=False):
    """The answer to an inference request."""

    model_name: str
    model_version: str
    id: str
    outputs: list[InferOutput]
    parameters: dict[str, Any] = {}


@dataclass(slots=True)
class Wanted:
    """What a caller asked for: the request for the engine, and how the answer is to look."""

    request: Request
    id: str
    haste: Haste
    binary: bool
    binary_outputs: dict[str, bool]


def wanted_by(message: InferRequest, binary: tensors.Buffer) -> Wanted:
    """What a message asks for, with `binary` behind it. InvalidRequest says what is wrong with it."""
    inputs, data = _inputs(message, binary)
    return asked(message, inputs, data)


def asked(message: InferRequest, inputs: tuple[Tensor, ...], data: tensors.Buffer) -> Wanted:
    """What a message asks for whose inputs, with their bytes back to back, are read already."""
    parameters = message.parameters
    binary_outputs = {output.name: _wants_binary(output) for output in message.outputs}
    check_outputs(len(message.outputs), len(binary_outputs))
    haste = taken_from(parameters)
    binary = bool(parameters.pop("binary_data_output", False)) if parameters else False
    return Wanted(
        Request("tensors", data, inputs, tuple(binary_outputs), dict(parameters)),
        message.id,
        haste,
        binary,
        {name: wanted for name, wanted in binary_outputs.items() if wanted is not None},
    )


def response_to(wanted: Wanted, answer: Answer, request_id: str) -> tuple[InferResponse, list[memoryview]]:
    """An answer, and the bytes of the outputs that are to follow it; the id is the caller's own or `request_id`."""
    reply = answer.reply
    view, at, binary, outputs = memoryview(reply.body), 0, [], []
    for tensor in reply.outputs:
        data = view[at : at + tensor.size]
        at += tensor.size
        if wanted.binary_outputs.get(tensor.name, wanted.binary):
            binary.append(data)
            size = {"binary_data_size": tensor.size}
            outputs.append(InferOutput(tensor.name, tensor.shape, tensor.datatype, UNSET, size))
        else:
            values = tensors.unpack(tensor.name, tensor.datatype, data)
            outputs.append(InferOutput(tensor.name, tensor.shape, tensor.datatype, values))
    name, _, version = answer.reference.partition("@")
    return InferResponse(name, version, wanted.id or request_id, outputs, reply.parameters), binary


def _inputs(message: InferRequest, binary: tensors.Buffer) -> tuple[tuple[Tensor, ...], tensors.Buffer]:
    """The tensors described, and their bytes back to back."""
    described, parts, at = [], [], 0
    for given in message.inputs:
        if given.parameters:
            refuse(given.name, given.parameters)
        size = given.parameters.get("binary_data_size") if given.parameters else None
        data: tensors.Buffer
        if size is None:
            if isinstance(given.data, UnsetType):
                raise InvalidRequest(f"input {given.name!r} has no `data`")
            data = tensors.pack(given.name, given.datatype, given.shape, memoryview(given.data))
        else:
            data = _binary(given, size, memoryview(binary)[at:])
            at += len(data)
        described.append(Tensor(given.name, given.datatype, given.shape, len(data)))
        parts.append(data)
    if at != len(binary):
        raise InvalidRequest(f"{len(binary)} bytes follow the JSON, but the inputs' `binary_data_size` add up to {at}")
    if len(parts) == 1:
        return tuple(described), parts[0]
    check_inputs(described)
    return tuple(described), b"".join(parts)


def _binary(given: InferInput, size: Scalar, rest: memoryview) -> memoryview:
    if type(size) is not int or not 0 <= size <= len(rest):
        raise InvalidRequest(f"input {given.name!r}: binary_data_size is {size}, but {len(rest)} bytes are left")
    if not isinstance(given.data, UnsetType):
        raise InvalidRequest(f"input {given.name!r} has both `data` and `binary_data_size`; give one")
    tensors.check(given.name, given.datatype, given.shape, rest[:size])
    return rest[:size]


def _wants_binary(output: InferRequestedOutput) -> bool | None:
    if not output.parameters:
        return None
    refuse(output.name, output.parameters)
    wanted = output.parameters.get("binary_data")
    return None if wanted is None else bool(wanted)
