"""Tensors between JSON and bytes: what goes in comes out, what does not fit is refused."""

import json
import math
import struct
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moc.kernel.errors import InvalidRequest
from moc.transports.oip.tensors import DATATYPES, check, pack, unpack

NUMPY = {
    "BOOL": "?",
    **{f"{sign}INT{bits}": f"<{'u' if sign else 'i'}{bits // 8}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}


def elements(datatype: str) -> st.SearchStrategy[Any]:
    if datatype == "BYTES":
        return st.text(max_size=20)
    if datatype == "BOOL":
        return st.booleans()
    if datatype.startswith("FP"):
        return st.floats(width=int(datatype[2:]), allow_nan=False, allow_infinity=False)  # type: ignore[arg-type]
    limits = np.iinfo(NUMPY[datatype])
    return st.integers(int(limits.min), int(limits.max))


@st.composite
def arrays(draw: st.DrawFn) -> tuple[str, tuple[int, ...], list[Any]]:
    datatype = draw(st.sampled_from(DATATYPES))
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3)))
    values = draw(st.lists(elements(datatype), min_size=math.prod(shape), max_size=math.prod(shape)))
    return datatype, shape, values


def nested(values: list[Any], shape: tuple[int, ...]) -> list[Any]:
    for size in reversed(shape[1:]):
        values = [values[at : at + size] for at in range(0, len(values), size)] if size else []
    return values


@given(arrays())
def test_flat_json_comes_back_and_is_what_numpy_writes(array: tuple[str, tuple[int, ...], list[Any]]) -> None:
    datatype, shape, values = array
    packed = pack("x", datatype, shape, msgspec.json.encode(values))
    check("x", datatype, shape, packed)
    assert list(unpack("x", datatype, packed)) == values
    if datatype != "BYTES":
        assert packed == np.array(values, NUMPY[datatype]).tobytes()


@given(arrays())
def test_nested_json_is_the_same_as_flat(array: tuple[str, tuple[int, ...], list[Any]]) -> None:
    datatype, shape, values = array
    if 0 in shape:
        return
    text = msgspec.json.encode(nested(values, shape))
    assert pack("x", datatype, shape, text) == pack("x", datatype, shape, msgspec.json.encode(values))


@given(st.sampled_from(DATATYPES), st.binary(max_size=64), st.lists(st.integers(0, 5), max_size=3))
def test_any_bytes_are_either_a_tensor_or_refused(datatype: str, data: bytes, shape: list[int]) -> None:
    with suppress(InvalidRequest):
        check("x", datatype, shape, data)
        with suppress(InvalidRequest):  # BYTES that are not text
            assert len(unpack("x", datatype, data)) == math.prod(shape)


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", (2,), "[1]"),
        ("FP32", (2,), "[1,2,3]"),
        ("FP32", (2, 3), "[[1,2],[3,4,5,6]]"),
        ("FP32", (2, 2), "[[1,2,3,4]]"),
        ("FP32", (3, 0), "[[]]"),
        ("FP32", (2, 2), "[[[1]],[[2]]]"),
        ("FP32", (1,), "1"),
        ("FP32", (1,), '"1"'),
        ("FP32", (1,), "{}"),
        ("FP32", (1,), "null"),
        ("FP32", (1,), "[null]"),
        ("FP32", (1,), "[true]"),
        ("FP32", (1,), '["1"]'),
        ("FP32", (1,), "[1e39]"),
        ("FP16", (1,), "[65520]"),
        ("FP32", (2,), "[1,[2]]"),
        ("INT32", (1,), "[1.5]"),
        ("INT32", (1,), "[2147483648]"),
        ("INT64", (1,), "[9223372036854775808]"),
        ("UINT8", (1,), "[-1]"),
        ("UINT8", (1,), "[256]"),
        ("UINT64", (1,), "[18446744073709551616]"),
        ("BOOL", (1,), "[1]"),
        ("BYTES", (1,), "[1]"),
        ("FP33", (1,), "[1]"),
        ("fp32", (1,), "[1]"),
    ],
)
def test_what_is_not_the_tensor_it_says_is_refused_by_name(datatype: str, shape: tuple[int, ...], data: str) -> None:
    with pytest.raises(InvalidRequest, match="tensor 'x'"):
        pack("x", datatype, shape, data.encode())


def test_the_widest_numbers_fit() -> None:
    for datatype in ("INT64", "UINT64"):
        limits = np.iinfo(NUMPY[datatype])
        values = [int(limits.min), int(limits.max)]
        assert list(unpack("x", datatype, pack("x", datatype, (2,), json.dumps(values).encode()))) == values


@pytest.mark.parametrize("data", [b"\x01", b"\x01\x00\x00\x00", b"\xff\xff\xff\xff", b"\x01\x00\x00\x00a\x00"])
def test_torn_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="middle of an element"):
        check("x", "BYTES", (1,), data)


def test_bytes_that_are_not_text_cannot_be_json() -> None:
    with pytest.raises(InvalidRequest, match="binary"):
        unpack("x", "BYTES", struct.pack("<I", 1) + b"\xff")
