"""Arrays on the wire, byte for byte."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from moc.client.tensors import DTYPES, Array, decode, encode
from moc.kernel.errors import Internal, InvalidRequest
from tests.unit.stand_in import bytes_tensor

NUMBERS = sorted(set(DTYPES) - {"BYTES"})
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def echoed(inputs: dict[str, Array]) -> dict[str, Array]:
    """What comes back when a server returns exactly the tensors it was sent."""
    body, length = encode(inputs)
    answer = json.dumps({"outputs": json.loads(body[:length])["inputs"]}).encode()
    return decode(answer + body[length:], len(answer))


@given(st.data(), st.sampled_from(NUMBERS))
def test_numbers_come_back_bit_for_bit(data: st.DataObject, datatype: str) -> None:
    array = data.draw(arrays.arrays(DTYPES[datatype], SHAPES))
    found = echoed({"x": array, "y": array[..., :0] if array.ndim else array})["x"]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()
    assert found.flags.writeable


@given(st.lists(st.binary(max_size=8), max_size=6))
def test_bytes_come_back(elements: list[bytes]) -> None:
    array = np.empty(len(elements), object)
    array[:] = elements
    assert echoed({"x": array})["x"].tolist() == elements


def test_the_wire_is_row_major_and_little_endian() -> None:
    array = np.array([[1, 2], [3, 4]], ">i2").T
    body, length = encode({"x": array, "t": np.array(["é", ""])}, ["out"], {"priority": 1})
    header = json.loads(body[:length])
    assert header["inputs"][0] == {
        "name": "x",
        "shape": [2, 2],
        "datatype": "INT16",
        "parameters": {"binary_data_size": 8},
    }
    assert header["outputs"] == [{"name": "out", "parameters": {"binary_data": True}}]
    assert header["parameters"] == {"priority": 1, "binary_data_output": True}
    assert body[length:] == b"\x01\0\x03\0\x02\0\x04\0" + bytes_tensor("é".encode(), b"")


def test_answers_in_json_are_read_too() -> None:
    outputs = [
        {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2]},
        {"name": "b", "datatype": "BYTES", "shape": [2], "data": [["é"], ["x"]]},
    ]
    found = decode(json.dumps({"outputs": outputs}).encode(), None)
    assert found["a"].dtype == np.float32
    assert found["a"].tolist() == [[1.5, 2.0]]
    assert found["b"].tolist() == ["é".encode(), b"x"]


@pytest.mark.parametrize("array", [np.array([1j]), np.array([None]), np.array(["2026-01-01"], "datetime64[D]")])
def test_what_the_protocol_cannot_carry_is_refused(array: Array) -> None:
    with pytest.raises(InvalidRequest):
        encode({"x": array})


def output(datatype: str, shape: list[int], content: bytes, size: int) -> tuple[bytes, int]:
    tensor = {"name": "x", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
    header = json.dumps({"outputs": [tensor]}).encode()
    return header + content, len(header)


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"{", None),
        (b"{}", None),
        output("INT32", [2], b"\0" * 4, 4),
        output("INT32", [1], b"\0" * 3, 4),
        output("INT33", [1], b"\0" * 4, 4),
        output("BYTES", [1], b"\xff\0\0\0a", 5),
        output("BYTES", [1], b"\x01", 1),
        output("BYTES", [2], bytes_tensor(b"a"), 5),
        (b'{"outputs": [{"name": "x", "datatype": "INT32", "shape": [1]}]}', None),
    ],
)
def test_a_malformed_answer_is_an_error_and_never_an_array(body: bytes, length: int | None) -> None:
    with pytest.raises(Internal, match="not one of the Open Inference Protocol"):
        decode(body, length)
