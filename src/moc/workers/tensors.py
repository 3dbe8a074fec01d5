"""Tensors as bytes and as numpy arrays."""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moc.inference.request import Buffer, Reply, Request, Tensor, TensorSpec
from moc.kernel.errors import Internal, InvalidRequest

Array = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
"""Every datatype of the protocol with the array that holds it; BYTES elements are bytes objects."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH = struct.Struct("<I")


def datatype_of(array: Array) -> str | None:
    """The protocol's name for what an array holds, None when it has none."""
    if array.dtype.kind in "SU":
        return "BYTES"
    return _NAMES.get(array.dtype.newbyteorder("<"))


def decode(tensor: Tensor, data: Buffer) -> Array:
    """The array in `data`; InvalidRequest when datatype, shape and size do not agree. It may be read-only."""
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        raise InvalidRequest(f"input {tensor.name!r} has datatype {tensor.datatype!r}; there are {', '.join(DTYPES)}")
    shape = tensor.shape
    if shape and min(shape) < 0:
        raise InvalidRequest(f"input {tensor.name!r} has a negative dimension in its shape {list(shape)}")
    count = math.prod(shape)
    if tensor.datatype == "BYTES":
        return _decode_bytes(tensor.name, data, count).reshape(shape)
    if count * dtype.itemsize != len(data):
        raise InvalidRequest(
            f"input {tensor.name!r} of shape {list(shape)} and datatype {tensor.datatype} takes "
            f"{count * dtype.itemsize} bytes, not {len(data)}"
        )
    if count == 0:
        return np.zeros(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape)


def encode(name: str, array: Array, datatype: str) -> tuple[Tensor, Buffer]:
    """The description and the bytes of an array; InvalidRequest when it cannot be of `datatype`."""
    if datatype == "BYTES":
        data: Buffer = _encode_bytes(name, array)
    else:
        data = np.ascontiguousarray(array, DTYPES[datatype]).tobytes()
    return Tensor(name, datatype, tuple(array.shape), len(data)), data


def inputs_of(request: Request, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The input arrays by name; InvalidRequest naming the first that is missing, unknown or not as the model wants."""
    wanted = {spec.name: spec for spec in specs}
    body = request.body if len(request.inputs) == 1 else memoryview(request.body)
    arrays: dict[str, Array] = {}
    at = 0
    for tensor in request.inputs:
        spec = wanted.get(tensor.name)
        if spec is None:
            raise InvalidRequest(f"there is no input {tensor.name!r}; the model takes {_listed(wanted)}")
        if tensor.name in arrays:
            raise InvalidRequest(f"input {tensor.name!r} is given twice")
        if tensor.datatype != spec.datatype:
            raise InvalidRequest(f"input {tensor.name!r} is {tensor.datatype}; the model takes {spec.datatype}")
        if tensor.shape != spec.shape and not _fits(tensor.shape, spec.shape):
            raise InvalidRequest(
                f"input {tensor.name!r} has shape {list(tensor.shape)}; the model takes {list(spec.shape)}"
            )
        end = at + tensor.size
        arrays[tensor.name] = decode(tensor, body if len(request.inputs) == 1 else body[at:end])
        at = end
    if at != len(request.body):
        raise InvalidRequest(f"the inputs are described as {at} bytes and are {len(request.body)}")
    if len(arrays) != len(wanted):
        missing = [name for name in wanted if name not in arrays]
        raise InvalidRequest(f"input {_listed(missing)} is missing; the model takes {_listed(wanted)}")
    return arrays


def texts_of(name: str, array: Array) -> Array:
    """The elements of the BYTES input `name` as text; InvalidRequest when one is not UTF-8."""
    texts = np.empty(array.size, object)
    try:
        texts[:] = [element.decode() for element in array.reshape(-1)]
    except UnicodeDecodeError:
        raise InvalidRequest(f"input {name!r} holds an element that is not UTF-8; the model takes text") from None
    return texts.reshape(array.shape)


def chosen(request: Request, specs: Sequence[TensorSpec]) -> Sequence[TensorSpec]:
    """The outputs the request wants, all when it names none; InvalidRequest for one the model does not give."""
    if not request.outputs:
        return specs
    given = {spec.name: spec for spec in specs}
    for name in request.outputs:
        if name not in given:
            raise InvalidRequest(f"there is no output {name!r}; the model gives {_listed(given)}")
    if len(set(request.outputs)) != len(request.outputs):
        raise InvalidRequest("an output is asked for twice")
    return [given[name] for name in request.outputs]


def reply_of(arrays: Mapping[str, Any], specs: Iterable[TensorSpec]) -> Reply:
    """The reply that carries `specs` of `arrays`; Internal when the model did not give what it promises."""
    tensors: list[Tensor] = []
    pieces: list[Buffer] = []
    for spec in specs:
        try:
            array = np.asarray(arrays[spec.name])
        except KeyError:
            raise Internal(f"the model gave no output {spec.name!r}; it promises one") from None
        if not _fits(array.shape, spec.shape):
            raise Internal(
                f"the model gave output {spec.name!r} of shape {list(array.shape)}; it promises {list(spec.shape)}"
            )
        dtype = DTYPES[spec.datatype]
        if array.dtype != dtype and not (spec.datatype == "BYTES" or np.can_cast(array.dtype, dtype, "same_kind")):
            raise Internal(f"the model gave output {spec.name!r} as {array.dtype}; it promises {spec.datatype}")
        tensor, data = encode(spec.name, array, spec.datatype)
        tensors.append(tensor)
        pieces.append(data)
    body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    return Reply(body, tuple(tensors))


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(w in (-1, n) for n, w in zip(shape, wanted, strict=True))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _decode_bytes(name: str, data: Buffer, count: int) -> Array:
    if count * _LENGTH.size > len(data):
        raise InvalidRequest(f"input {name!r} is too short for {count} elements of BYTES")
    elements = np.empty(count, object)
    at = 0
    for index in range(count):
        if at + _LENGTH.size > len(data):
            raise InvalidRequest(f"input {name!r} ends in the middle of element {index}")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + size > len(data):
            raise InvalidRequest(f"input {name!r} ends in the middle of element {index}")
        elements[index] = bytes(data[at : at + size])
        at += size
    if at != len(data):
        raise InvalidRequest(f"input {name!r} has {len(data) - at} bytes behind its {count} elements")
    return elements


def _encode_bytes(name: str, array: Array) -> bytes:
    pieces: list[bytes] = []
    for element in array.reshape(-1).tolist():
        data = element.encode() if isinstance(element, str) else element
        if not isinstance(data, bytes):
            raise Internal(f"the model gave a {type(element).__name__} in {name!r}; BYTES holds bytes or text")
        pieces += (_LENGTH.pack(len(data)), data)
    return b"".join(pieces)
