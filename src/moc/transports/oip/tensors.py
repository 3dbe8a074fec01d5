"""Tensors between elements and the binary layout (row-major, little-endian, BYTES behind u32 lengths).

`struct` rather than an array library: it refuses what does not fit the datatype instead of wrapping it.
"""

import re
import struct
import types
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from math import prod
from typing import Annotated, Any, Final

import msgspec

from moc.kernel.errors import InvalidRequest

Buffer = bytes | bytearray | memoryview

RANK_MAX: Final = 32
DIMENSION_MAX: Final = 2**62
_LENGTH: Final = struct.Struct("<I")
_OPENING: Final = re.compile(rb"[\s\[]*")

_CODES: Final = {
    "BOOL": "?",
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
    "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
_SIZES: Final = {datatype: struct.calcsize(f"<{code}") for datatype, code in _CODES.items()}
DATATYPES: Final = (*_CODES, "BYTES")
"""Every datatype of the protocol."""


def pack(name: str, datatype: str, shape: Sequence[int], data: Buffer) -> bytes:
    """The bytes of a tensor given as JSON text, nested as its shape says or flat.

    InvalidRequest, naming the tensor, when the elements are not of the datatype, do not fit it, or do not
    fill the shape.
    """
    _check_datatype(name, datatype)
    values = _elements(name, datatype, shape, data)
    return _packed(name, datatype, [value.encode() for value in values] if datatype == "BYTES" else values)


def pack_values(name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]) -> bytes:
    """The bytes of a tensor given as flat elements, those of BYTES as bytes; InvalidRequest as for `pack`."""
    _check_datatype(name, datatype)
    if len(values) != prod(shape):
        raise _misfit(name, shape)
    return _packed(name, datatype, values)


def unpack(name: str, datatype: str, data: Buffer) -> Sequence[Any]:
    """The elements of a tensor, flat, as JSON values; NaN and infinities become null when they are encoded.

    InvalidRequest for BYTES that are not UTF-8 text: JSON cannot carry them.
    """
    if datatype == "BYTES":
        try:
            return [str(item, "utf-8") for item in _split(name, data)]
        except UnicodeDecodeError:
            raise InvalidRequest(f"output {name!r} is not text; ask for it as binary data") from None
    return struct.unpack(f"<{len(data) // _SIZES[datatype]}{_CODES[datatype]}", data)


def check(name: str, datatype: str, shape: Sequence[int], data: Buffer) -> None:
    """InvalidRequest unless binary `data` is exactly a tensor of that datatype and shape."""
    _check_datatype(name, datatype)
    count = prod(shape)
    if datatype == "BYTES":
        found, expected, unit = len(_split(name, data)), count, "elements"
    else:
        found, expected, unit = len(data), count * _SIZES[datatype], "bytes"
    if found != expected:
        raise InvalidRequest(f"tensor {name!r}: shape {list(shape)} of {datatype} takes {expected} {unit}, not {found}")


def check_shape(name: str, shape: Sequence[int]) -> None:
    """InvalidRequest unless `shape` is one; JSON's reader knows that by itself."""
    if shape and (min(shape) < 0 or max(shape) > DIMENSION_MAX or len(shape) > RANK_MAX):
        raise InvalidRequest(
            f"tensor {name!r}: a shape has at most {RANK_MAX} dimensions from 0 up, not {list(shape)[: RANK_MAX + 1]}"
        )


def _packed(name: str, datatype: str, values: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join([_LENGTH.pack(len(value)) + value for value in values])
    try:
        return struct.pack(f"<{len(values)}{_CODES[datatype]}", *values)
    except (struct.error, OverflowError):
        raise InvalidRequest(f"tensor {name!r}: an element of `data` is out of the range of {datatype}") from None


def _check_datatype(name: str, datatype: str) -> None:
    if datatype != "BYTES" and datatype not in _CODES:
        known = ", ".join(DATATYPES)
        raise InvalidRequest(f"tensor {name!r}: unknown datatype {datatype[:40]!r}; known are {known}")


def _elements(name: str, datatype: str, shape: Sequence[int], data: Buffer) -> list[Any]:
    opening = _OPENING.match(data)
    depth = opening[0].count(b"[") if opening is not None else 0
    if depth not in (1, len(shape)):
        raise InvalidRequest(f"tensor {name!r}: `data` is nested {depth} deep; make it flat or {len(shape)} deep")
    try:
        values: list[Any] = _decoder(datatype, depth).decode(data)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"tensor {name!r}: `data` is not {datatype}: {error}") from None
    if depth > 1 and len(values) != shape[0]:
        raise _misfit(name, shape)
    for size in shape[1:depth]:
        if any(len(row) != size for row in values):
            raise _misfit(name, shape)
        values = list(chain.from_iterable(values))
    if len(values) != prod(shape):
        raise _misfit(name, shape)
    return values


def _misfit(name: str, shape: Sequence[int]) -> InvalidRequest:
    return InvalidRequest(f"tensor {name!r}: `data` does not fill the shape {list(shape)} exactly")


def _split(name: str, data: Buffer) -> list[memoryview]:
    view, items, at = memoryview(data), [], 0
    while at < len(view):
        start = at + 4
        at = start + _LENGTH.unpack_from(view, at)[0] if start <= len(view) else start
        if at > len(view):
            raise InvalidRequest(f"tensor {name!r}: its BYTES end in the middle of an element")
        items.append(view[start:at])
    return items


@lru_cache(maxsize=len(DATATYPES) * RANK_MAX)
def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder[list[Any]]:
    kind: Any = _element_type(datatype)
    for _ in range(depth):
        kind = types.GenericAlias(list, (kind,))
    return msgspec.json.Decoder(kind)


def _element_type(datatype: str) -> Any:
    if datatype == "BYTES":
        return str
    if datatype == "BOOL":
        return bool
    if datatype.startswith("FP"):
        return float
    bits = 8 * _SIZES[datatype]
    if datatype == "UINT64":
        return Annotated[int, msgspec.Meta(ge=0)]
    if datatype.startswith("U"):
        return Annotated[int, msgspec.Meta(ge=0, le=2**bits - 1)]
    return Annotated[int, msgspec.Meta(ge=-(2 ** (bits - 1)), le=2 ** (bits - 1) - 1)]
