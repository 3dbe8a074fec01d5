"""Tensors in the words of the Open Inference Protocol, as JSON or with the bytes of tensors behind it."""

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np

from moc.inference.request import Buffer, Info, Reply, Request, Tensor, TensorSpec
from moc.kernel.errors import Internal, MocError, Unimplemented
from moc.workers import tensors
from moc.workers.upstream.line import Call, Line
from moc.workers.upstream.options import UpstreamOptions

HEALTH = "v2/health/ready"
INFO_TIMEOUT_S = 30.0
HEADER_LENGTH = "Inference-Header-Content-Length"


class _Output(msgspec.Struct, gc=False):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, Any] = {}


class _Answer(msgspec.Struct, gc=False):
    outputs: list[_Output]
    parameters: dict[str, Any] = {}


class _Metadata(msgspec.Struct):
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    platform: str = ""


_decode = msgspec.json.Decoder(_Answer).decode
_decode_metadata = msgspec.json.Decoder(_Metadata).decode
_encode = msgspec.json.Encoder().encode


class Oip:
    """The protocol `oip`."""

    health = HEALTH

    def __init__(self, options: UpstreamOptions, line: Line) -> None:
        name, _, version = options.model.partition("@")
        self._path = f"v2/models/{quote(name, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")
        self._options = options
        self._line = line

    async def info(self) -> Info:
        """The model's tensors, if the upstream tells them."""
        try:
            told = _decode_metadata(await self._line.get(self._path, timeout_s=INFO_TIMEOUT_S))
        except (MocError, msgspec.DecodeError):
            told = _Metadata()
        return Info(
            kinds=("tensors",),
            engine=f"oip at {self._line.host}",
            inputs=told.inputs,
            outputs=told.outputs,
            concurrency=self._options.max_connections,
            details={"upstream": self._line.host, "model": self._options.model},
        )

    def call(self, request: Request, *, stream: bool) -> Call:
        """The HTTP request for one of ours."""
        if request.kind != "tensors" or stream:
            raise Unimplemented(f"{self._line.who} cannot {'stream' if stream else 'do'} {request.kind}")
        binary = self._options.binary
        asked: dict[str, Any] = {"inputs": _described(request) if binary else _spelled(request)}
        if request.outputs:
            wanted = {"parameters": {"binary_data": True}} if binary else {}
            asked["outputs"] = [{"name": name, **wanted} for name in request.outputs]
        parameters = {**request.parameters, "binary_data_output": True} if binary else request.parameters
        if parameters:
            asked["parameters"] = parameters
        head = _encode(asked)
        if not binary:
            return Call(f"{self._path}/infer", head, {"Content-Type": "application/json"})
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
        return Call(f"{self._path}/infer", b"".join((head, request.body)), headers)

    def reply(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        """The answer in a body; Internal when it is none."""
        length = headers.get(HEADER_LENGTH)
        if length is not None and not (length.isdecimal() and len(length) < 19 and int(length) <= len(body)):
            raise self._broken(f"{HEADER_LENGTH} is {length[:40]!r} in an answer of {len(body)} bytes")
        head = len(body) if length is None else int(length)
        rest = memoryview(body)[head:]
        described: list[Tensor] = []
        parts: list[Buffer] = []
        try:
            answer = _decode(memoryview(body)[:head])
            for output in answer.outputs:
                tensor, data = _read(output, rest)
                rest = rest[len(data) if isinstance(output.data, msgspec.UnsetType) else 0 :]
                described.append(tensor)
                parts.append(data)
        except (msgspec.DecodeError, RecursionError, ValueError, TypeError, OverflowError, MocError) as error:
            raise self._broken(str(error)) from None
        if rest:
            raise self._broken(f"{len(rest)} bytes belong to no tensor")
        parameters = {key: value for key, value in answer.parameters.items() if key != "binary_data_output"}
        return Reply(parts[0] if len(parts) == 1 else b"".join(parts), tuple(described), parameters)

    def _broken(self, why: str) -> Internal:
        return Internal(f"{self._line.who} answers something else than tensors: {why[:300]}")


def _described(request: Request) -> list[dict[str, Any]]:
    """Inputs whose bytes follow."""
    return [
        {
            "name": each.name,
            "datatype": each.datatype,
            "shape": each.shape,
            "parameters": {"binary_data_size": each.size},
        }
        for each in request.inputs
    ]


def _spelled(request: Request) -> list[dict[str, Any]]:
    """Inputs with their elements in JSON."""
    spelled: list[dict[str, Any]] = []
    view, at = memoryview(request.body), 0
    for each in request.inputs:
        array = tensors.decode(each, view[at : at + each.size])
        at += each.size
        values = tensors.texts_of(each.name, array) if each.datatype == "BYTES" else array
        spelled.append(
            {"name": each.name, "datatype": each.datatype, "shape": each.shape, "data": values.reshape(-1).tolist()}
        )
    return spelled


def _read(output: _Output, rest: memoryview) -> tuple[Tensor, Buffer]:
    """One tensor of an answer, of which `rest` is what is left behind the JSON; ValueError when it is none."""
    name, datatype, shape = output.name, output.datatype, output.shape
    if datatype not in tensors.DTYPES or min(shape, default=0) < 0:
        raise ValueError(f"output {name!r} is {datatype} of shape {list(shape)}")
    if isinstance(output.data, msgspec.UnsetType):
        size = output.parameters.get("binary_data_size")
        if not isinstance(size, int) or not 0 <= size <= len(rest):
            raise ValueError(f"output {name!r} has neither data nor as many bytes as it says")
        tensor = Tensor(name, datatype, shape, size)
        if datatype == "BYTES":
            tensors.decode(tensor, rest[:size])
        elif math.prod(shape) * tensors.DTYPES[datatype].itemsize != size:
            raise ValueError(f"output {name!r} has {size} bytes for {datatype} of shape {list(shape)}")
        return tensor, rest[:size]
    values = output.data
    return tensors.encode(name, np.asarray(values, tensors.DTYPES[datatype]).reshape(shape), datatype)
