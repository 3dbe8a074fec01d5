"""Arrays to and from the binary tensor data of the Open Inference Protocol."""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from moc.kernel.errors import Internal, InvalidRequest

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
"""The protocol's datatypes as numpy's, as they lie on the wire; BYTES are arrays of `bytes` objects."""

_DATATYPES = {(dtype.kind, dtype.itemsize): name for name, dtype in DTYPES.items() if name != "BYTES"}


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Answer(msgspec.Struct):
    outputs: list[_Output]


def datatype_of(array: Array) -> str:
    """The protocol's name for an array's type; strings and bytes are BYTES. InvalidRequest when it has none."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    found = _DATATYPES.get((array.dtype.kind, array.dtype.itemsize))
    if found is None:
        raise InvalidRequest(f"arrays of {array.dtype} cannot be sent; convert to one of {', '.join(DTYPES)}")
    return found


def encode(
    inputs: Mapping[str, Array], outputs: Sequence[str] = (), parameters: Mapping[str, Any] | None = None
) -> tuple[bytes, int]:
    """The body of an inference request and the length of the JSON it starts with.

    `outputs` names the tensors wanted back, all of them when empty. Raises InvalidRequest for an array of a
    type the protocol does not have.
    """
    described, buffers = [], []
    for name, value in inputs.items():
        array = np.asarray(value)
        datatype = datatype_of(array)
        buffer = _pack_bytes(name, array) if datatype == "BYTES" else _pack_numbers(array, datatype)
        buffers.append(buffer)
        described.append(
            {
                "name": name,
                "shape": array.shape,
                "datatype": datatype,
                "parameters": {"binary_data_size": len(buffer)},
            }
        )
    header: dict[str, Any] = {"inputs": described, "parameters": {**(parameters or {}), "binary_data_output": True}}
    if outputs:
        header["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    encoded = msgspec.json.encode(header)
    return b"".join((encoded, *buffers)), len(encoded)


def decode(body: bytes, header_length: int | None) -> dict[str, Array]:
    """The output arrays of an answer, by name, each owning its memory; Internal when the answer is malformed.

    `header_length` is the length of the JSON in front of the tensors' bytes, None = it is all JSON.
    """
    try:
        end = len(body) if header_length is None else header_length
        answer = msgspec.json.decode(body[:end], type=_Answer)
        found = {}
        for output in answer.outputs:
            size = output.parameters.get("binary_data_size")
            if size is None:
                found[output.name] = _from_json(output)
                continue
            part = body[end : end + size]
            if len(part) != size:
                raise ValueError(f"{output.name} has {len(part)} of its {size} bytes")
            end += size
            found[output.name] = _from_bytes(output, part)
    except (msgspec.DecodeError, ValueError, TypeError, KeyError, struct.error) as error:
        raise Internal(f"the answer is not one of the Open Inference Protocol: {error}") from error
    return found


def _pack_numbers(array: Array, datatype: str) -> bytes:
    return array.astype(DTYPES[datatype], copy=False).tobytes()


def _pack_bytes(name: str, array: Array) -> bytes:
    parts: list[bytes] = []
    for element in array.reshape(-1).tolist():
        if not isinstance(element, str | bytes):
            raise InvalidRequest(f"input {name!r} holds a {type(element).__name__} where text or bytes are due")
        content = element.encode() if isinstance(element, str) else element
        parts += (struct.pack("<I", len(content)), content)
    return b"".join(parts)


def _from_bytes(output: _Output, part: bytes) -> Array:
    dtype = DTYPES[output.datatype]
    if output.datatype != "BYTES":
        return np.frombuffer(part, dtype).reshape(output.shape).copy()
    elements, at = [], 0
    while at < len(part):
        (length,) = struct.unpack_from("<I", part, at)
        at += 4 + length
        if at > len(part):
            raise ValueError(f"an element of {output.name} reaches beyond its end")
        elements.append(part[at - length : at])
    return _objects(elements, output.shape)


def _from_json(output: _Output) -> Array:
    if output.data is None:
        raise ValueError(f"{output.name} has no data")
    if output.datatype != "BYTES":
        return np.asarray(output.data, DTYPES[output.datatype]).reshape(output.shape)
    flat: list[Any] = output.data
    while flat and isinstance(flat[0], list):
        flat = [element for row in flat for element in row]
    return _objects([str(element).encode() for element in flat], output.shape)


def _objects(elements: list[bytes], shape: list[int]) -> Array:
    if len(elements) != math.prod(shape):
        raise ValueError(f"{len(elements)} elements do not fill the shape {shape}")
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)
