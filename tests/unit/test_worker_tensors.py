from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moc.inference.request import Request, Tensor, TensorSpec
from moc.kernel.errors import Internal, InvalidRequest
from moc.workers.tensors import DTYPES, chosen, datatype_of, decode, encode, inputs_of, reply_of

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
numbers = st.sampled_from([name for name in DTYPES if name != "BYTES"])
VECTOR = TensorSpec("x", "FP32", (-1, 2))


@given(numbers.flatmap(lambda name: st.tuples(st.just(name), hnp.arrays(DTYPES[name], shapes))))
def test_every_number_comes_back_as_it_was(drawn: tuple[str, Any]) -> None:
    name, array = drawn
    tensor, data = encode("x", array, name)
    back = decode(tensor, data)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()
    assert back.shape == array.shape == tensor.shape
    assert datatype_of(array) == name


@given(hnp.arrays(object, shapes, elements=st.binary(max_size=9)))
def test_every_text_comes_back_as_it_was(array: Any) -> None:
    tensor, data = encode("x", array, "BYTES")
    back = decode(tensor, data)
    assert back.shape == array.shape
    assert back.reshape(-1).tolist() == array.reshape(-1).tolist()


any_shapes = st.lists(st.integers(-3, 2**62), max_size=4).map(tuple)


@given(st.binary(max_size=40), any_shapes, st.sampled_from([*DTYPES, "FP8"]))
def test_bytes_that_are_no_tensor_are_refused(data: bytes, shape: tuple[int, ...], datatype: str) -> None:
    try:
        array = decode(Tensor("x", datatype, shape, len(data)), data)
    except InvalidRequest:
        return
    assert array.shape == shape
    assert encode("x", array, datatype)[1] == data


def wanted(body: bytes, *tensors: Tensor) -> Any:
    return inputs_of(Request("tensors", body, tensors), [VECTOR, TensorSpec("y", "INT8", (1,))])


def test_inputs_are_cut_from_the_body_in_order() -> None:
    vector = np.array([[1, 2], [3, 4]], "<f4")
    found = wanted(vector.tobytes() + b"\x07", Tensor("x", "FP32", (2, 2), 16), Tensor("y", "INT8", (1,), 1))
    assert found["x"].tolist() == vector.tolist()
    assert found["y"].tolist() == [7]


@pytest.mark.parametrize(
    ("body", "tensors", "named"),
    [
        (bytes(8), [Tensor("x", "FP32", (1, 2), 8)], "'y' is missing"),
        (bytes(8), [Tensor("z", "FP32", (1, 2), 8)], "no input 'z'"),
        (bytes(8), [Tensor("x", "INT32", (1, 2), 8)], "'x' is INT32"),
        (bytes(8), [Tensor("x", "FP32", (2, 1), 8)], "'x' has shape [2, 1]"),
        (bytes(8), [Tensor("x", "FP32", (2,), 8)], "'x' has shape [2]"),
        (bytes(9), [Tensor("x", "FP32", (1, 2), 8), Tensor("x", "FP32", (1, 2), 1)], "'x' is given twice"),
        (bytes(7), [Tensor("x", "FP32", (1, 2), 7)], "takes 8 bytes"),
        (bytes(12), [Tensor("x", "FP32", (1, 2), 8), Tensor("y", "INT8", (1,), 1)], "described as 9"),
        (b"", [Tensor("x", "FP32", (-1, 2), 0)], "negative"),
    ],
)
def test_what_the_model_does_not_take_is_refused_by_name(body: bytes, tensors: list[Tensor], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wanted(body, *tensors)
    assert named in caught.value.message


def test_the_outputs_asked_for_are_given_in_that_order() -> None:
    specs = [VECTOR, TensorSpec("y", "INT8", (1,))]
    assert [spec.name for spec in chosen(Request("tensors", b"", (), ("y", "x")), specs)] == ["y", "x"]
    assert chosen(Request("tensors", b""), specs) == specs


@pytest.mark.parametrize("outputs", [("z",), ("x", "x")])
def test_an_output_that_is_not_there_or_asked_twice_is_refused(outputs: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest):
        chosen(Request("tensors", b"", (), outputs), [VECTOR])


@pytest.mark.parametrize("given_", [{}, {"x": np.zeros((2, 3), "<f4")}, {"x": np.array([["a", "b"]])}])
def test_a_model_that_breaks_its_promise_is_at_fault(given_: dict[str, Any]) -> None:
    with pytest.raises(Internal):
        reply_of(given_, [VECTOR])


def test_a_wider_number_is_narrowed_to_what_was_promised() -> None:
    reply = reply_of({"x": np.ones((1, 2), "<f8")}, [VECTOR])
    assert reply.body == np.ones((1, 2), "<f4").tobytes()
