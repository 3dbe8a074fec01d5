"""Inference messages of the Open Inference Protocol: JSON, and JSON with binary tensors behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from moc.kernel.errors import InvalidRequest, Unimplemented
from moc.service.inference import Answer, Request, Tensor
from moc.transports.rest import tensors
from moc.transports.rest.body import decoded
from moc.transports.rest.exchange import JSON, Header

Scalar = str | int | float | bool | None
Parameters = dict[str, Scalar]
Dimension = Annotated[int, Meta(ge=0, le=2**62)]

_HEADER_LENGTH: Final = b"inference-header-content-length"
_BINARY: Final = b"application/octet-stream"
_REFUSED: Final = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "classification")


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
    """An inference request; `timeout` (microseconds) is the one parameter the server itself obeys."""

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
    timeout_s: float | None
    binary: bool
    binary_outputs: dict[str, bool]


_decoder: Final = msgspec.json.Decoder(InferRequest)
_encoder: Final = msgspec.json.Encoder()


def header_length(value: bytes | None, size: int) -> int | None:
    """`Inference-Header-Content-Length`: how much of a body of `size` bytes is JSON, None when all of it is."""
    if value is None:
        return None
    if not (value.isdigit() and len(value) < 19 and int(value) <= size):
        raise InvalidRequest(
            f"{_HEADER_LENGTH.decode()} must be a number of bytes within the body of {size}, not {value[:40]!r}"
        )
    return int(value)


def parse(body: bytes, json_bytes: int | None) -> Wanted:
    """Read a request whose first `json_bytes` are JSON (None = all). InvalidRequest says what is wrong with it."""
    message = decoded(_decoder, body if json_bytes is None else memoryview(body)[:json_bytes])
    inputs, data = _inputs(message, b"" if json_bytes is None else memoryview(body)[json_bytes:])
    parameters = message.parameters
    binary_outputs = {output.name: _wants_binary(output) for output in message.outputs}
    if len(binary_outputs) != len(message.outputs):
        raise InvalidRequest("`outputs` names the same output twice; name each once")
    timeout_s = _timeout_s(parameters.pop("timeout", None)) if parameters else None
    binary = bool(parameters.pop("binary_data_output", False)) if parameters else False
    return Wanted(
        Request("tensors", data, inputs, tuple(binary_outputs), dict(parameters)),
        message.id,
        timeout_s,
        binary,
        {name: wanted for name, wanted in binary_outputs.items() if wanted is not None},
    )


def render(answer: Answer, wanted: Wanted, request_id: str) -> tuple[bytes, bytes, tuple[Header, ...]]:
    """An answer as (body, media type, extra headers); the id is the caller's own or else `request_id`."""
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
    response = InferResponse(name, version, wanted.id or request_id, outputs, reply.parameters)
    encoded = _encoder.encode(response)
    if not binary:
        return encoded, JSON, ()
    return b"".join([encoded, *binary]), _BINARY, ((_HEADER_LENGTH, b"%d" % len(encoded)),)


def _inputs(message: InferRequest, binary: tensors.Buffer) -> tuple[tuple[Tensor, ...], tensors.Buffer]:
    """The tensors described, and their bytes back to back."""
    described, parts, at = [], [], 0
    for given in message.inputs:
        if given.parameters:
            _refuse(given.name, given.parameters)
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
    if len({tensor.name for tensor in described}) != len(described):
        raise InvalidRequest("`inputs` has the same input twice; give each once")
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
    _refuse(output.name, output.parameters)
    wanted = output.parameters.get("binary_data")
    return None if wanted is None else bool(wanted)


def _refuse(name: str, parameters: Parameters) -> None:
    for key in _REFUSED:
        if key in parameters:
            raise Unimplemented(f"tensor {name!r}: the parameter {key} is not supported here; leave it out")


def _timeout_s(microseconds: Scalar) -> float | None:
    if microseconds is None or microseconds == 0:
        return None
    if type(microseconds) is not int or microseconds < 0:
        raise InvalidRequest(f"the parameter timeout must be a number of microseconds, not {microseconds!r}")
    return microseconds / 1e6
