"""Reading and writing inference messages of the Open Inference Protocol in gRPC."""

import struct
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from moc.inference.answer import Answer
from moc.inference.request import Reply, Tensor
from moc.kernel.errors import InvalidRequest, Unimplemented
from moc.transports.grpc.oip_message import parameters_of, parse, render
from moc.transports.grpc.stubs.inference.grpc_service_pb2 import ModelInferRequest
from moc.transports.oip.request import Haste

FLOATS = struct.pack("<2f", 1.0, 2.5)
CONTENTS = {
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
}


def raw(*tensors: tuple[str, str, list[int], bytes]) -> ModelInferRequest:
    message = ModelInferRequest(model_name="m")
    for name, datatype, shape, data in tensors:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(data)
    return message


def typed(datatype: str, shape: list[int], **contents: list[Any]) -> ModelInferRequest:
    message = ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return message


def extremes(datatype: str) -> list[Any]:
    if datatype == "BOOL":
        return [True, False]
    if datatype.startswith("FP"):
        return [0.5, -2.0]
    info = np.iinfo(np.dtype(datatype.lower()))
    return [info.min, info.max]


def test_tensors_lie_back_to_back_in_the_order_given() -> None:
    request = parse(raw(("x", "FP32", [2], FLOATS), ("y", "INT8", [2], b"\x03\xfc"))).request
    assert bytes(request.body) == FLOATS + b"\x03\xfc"
    assert request.inputs == (Tensor("x", "FP32", (2,), 8), Tensor("y", "INT8", (2,), 2))


@pytest.mark.parametrize("datatype", CONTENTS)
def test_typed_elements_become_the_bytes_they_are(datatype: str) -> None:
    values = extremes(datatype)
    request = parse(typed(datatype, [2], **{CONTENTS[datatype]: values})).request
    numpy_name = {"BOOL": "?", "FP32": "<f4", "FP64": "<f8"}.get(datatype, f"<{datatype.lower()}")
    dtype = np.dtype(numpy_name.removeprefix("<")).newbyteorder("<")
    assert bytes(request.body) == np.array(values, dtype).tobytes()


def test_typed_texts_get_their_lengths() -> None:
    request = parse(typed("BYTES", [2], bytes_contents=[b"\xff", b""])).request
    assert bytes(request.body) == b"\x01\0\0\0\xff\0\0\0\0"


def test_an_empty_tensor_needs_no_contents() -> None:
    request = parse(typed("INT32", [0, 3])).request
    assert request.inputs == (Tensor("x", "INT32", (0, 3), 0),)


def test_fp16_is_raw() -> None:
    assert parse(raw(("x", "FP16", [2], b"abcd"))).request.inputs[0].size == 4


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (ModelInferRequest(model_name="m"), "no `inputs`"),
        (typed("FP16", [1], fp32_contents=[1]), "FP16 has no contents"),
        (typed("FP32", [1], int_contents=[1]), "FP32 goes into fp32_contents, not int_contents"),
        (typed("FP32", [1], fp32_contents=[1], int_contents=[1]), "goes into fp32_contents"),
        (typed("INT8", [1], int_contents=[128]), "out of the range of INT8"),
        (typed("UINT16", [1], uint_contents=[2**16]), "out of the range of UINT16"),
        (typed("FP32", [3], fp32_contents=[1]), "does not fill the shape"),
        (typed("FP32", [1]), "does not fill the shape"),
        (typed("COMPLEX", [1], fp32_contents=[1]), "unknown datatype 'COMPLEX'"),
        (typed("FP32", [-1, -1], fp32_contents=[1]), "dimensions from 0 up"),
        (typed("FP32", [1] * 33, fp32_contents=[1]), "at most 32 dimensions"),
        (raw(("x", "FP32", [3], FLOATS)), "takes 12 bytes, not 8"),
        (raw(("x", "FP32", [2**62, 2**62], FLOATS)), "bytes, not 8"),
        (raw(("x", "BYTES", [1], b"\xff\0\0\0a")), "end in the middle of an element"),
        (raw(("x", "NOPE", [1], b"a")), "unknown datatype"),
        (raw(("x", "INT8", [1], b"a"), ("x", "INT8", [1], b"a")), "same input twice"),
    ],
)
def test_what_does_not_fit_is_refused(message: ModelInferRequest, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        parse(message)


def test_typed_and_raw_do_not_mix() -> None:
    message = typed("FP32", [1], fp32_contents=[1])
    message.raw_input_contents.append(b"abcd")
    with pytest.raises(InvalidRequest, match="both `contents` and raw_input_contents"):
        parse(message)
    message = raw(("x", "FP32", [2], FLOATS))
    message.inputs.add(name="y", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)
    with pytest.raises(InvalidRequest, match="2 inputs but 1 raw_input_contents"):
        parse(message)


def test_parameters_reach_the_engine_except_those_that_are_for_us() -> None:
    message = raw(("x", "FP32", [2], FLOATS))
    message.parameters["timeout"].int64_param = 1_500_000
    message.parameters["priority"].int64_param = 0
    message.parameters["beam"].int64_param = 4
    message.parameters["style"].string_param = "plain"
    message.parameters["heat"].double_param = 0.5
    message.parameters["none"].SetInParent()
    wanted = parse(message)
    assert wanted.haste == Haste(1.5, None)
    assert wanted.request.parameters == {"beam": 4, "style": "plain", "heat": 0.5, "none": None}


@pytest.mark.parametrize("value", [-1, "soon", 0.5, True])
def test_a_timeout_that_is_no_number_of_microseconds_is_refused(value: Any) -> None:
    message = raw(("x", "FP32", [2], FLOATS))
    kind = {bool: "bool", int: "int64", str: "string", float: "double"}[type(value)]
    setattr(message.parameters["timeout"], f"{kind}_param", value)
    with pytest.raises(InvalidRequest, match="timeout"):
        parse(message)


def test_wanted_outputs_are_named_to_the_engine() -> None:
    message = raw(("x", "FP32", [2], FLOATS))
    for name in ("a", "b"):
        message.outputs.add(name=name)
    assert parse(message).request.outputs == ("a", "b")
    message.outputs.add(name="a")
    with pytest.raises(InvalidRequest, match="same output twice"):
        parse(message)


def test_shared_memory_and_classification_are_not_here() -> None:
    message = raw(("x", "FP32", [2], FLOATS))
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(Unimplemented, match="shared_memory_region"):
        parse(message)
    message = raw(("x", "FP32", [2], FLOATS))
    message.outputs.add(name="y").parameters["classification"].int64_param = 3
    with pytest.raises(Unimplemented, match="classification"):
        parse(message)


def test_an_answer_is_rendered_raw_with_its_parameters() -> None:
    outputs = (Tensor("a", "INT8", (2,), 2), Tensor("b", "BYTES", (1,), 5))
    parameters = {"n": 1, "big": 2**70, "x": 0.5, "ok": True, "s": "t", "list": [1]}
    reply = Reply(bytearray(b"\x01\x02\x01\0\0\0z"), outputs, parameters)
    message = render(Answer(reply, "m@3", "sha256:0", 0.0), "seven")
    assert (message.model_name, message.model_version, message.id) == ("m", "3", "seven")
    assert [(each.name, each.datatype, list(each.shape)) for each in message.outputs] == [
        ("a", "INT8", [2]),
        ("b", "BYTES", [1]),
    ]
    assert list(message.raw_output_contents) == [b"\x01\x02", b"\x01\0\0\0z"]
    assert parameters_of(message.parameters) == {**parameters, "big": str(2**70), "list": "[1]"}


@given(st.binary(max_size=300))
def test_no_message_is_misread(data: bytes) -> None:
    try:
        message = ModelInferRequest.FromString(data)
    except DecodeError:
        return
    try:
        request = parse(message).request
    except (InvalidRequest, Unimplemented):
        return
    assert sum(tensor.size for tensor in request.inputs) == len(request.body)
