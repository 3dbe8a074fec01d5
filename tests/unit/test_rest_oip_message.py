"""Reading and writing inference messages of the Open Inference Protocol."""

import struct
from typing import Any

import msgspec
import pytest

from moc.inference.answer import Answer
from moc.inference.request import Reply, Tensor
from moc.kernel.errors import InvalidRequest, Unimplemented
from moc.transports.oip.message import Wanted
from moc.transports.oip.request import Haste
from moc.transports.rest.oip_message import header_length, parse, render

FLOATS = struct.pack("<2f", 1.0, 2.5)


def tensor(name: str = "x", **changes: Any) -> dict[str, Any]:
    return {"name": name, "shape": [2], "datatype": "FP32", "data": [1, 2.5], **changes}


def read(message: Any) -> Wanted:
    return parse(msgspec.json.encode(message), None)


def read_binary(message: Any, tail: bytes) -> Wanted:
    head = msgspec.json.encode(message)
    return parse(head + tail, len(head))


def binary_tensor(name: str, size: Any) -> dict[str, Any]:
    return {"name": name, "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": size}}


def test_tensors_lie_back_to_back_in_the_order_given() -> None:
    wanted = read({"inputs": [tensor("x"), tensor("y", datatype="INT8", data=[3, -4])]})
    assert bytes(wanted.request.body) == FLOATS + b"\x03\xfc"
    assert wanted.request.inputs == (Tensor("x", "FP32", (2,), 8), Tensor("y", "INT8", (2,), 2))


def test_binary_and_json_inputs_mix() -> None:
    inputs = [binary_tensor("x", 8), tensor("y", data=[0, 0]), binary_tensor("z", 8)]
    wanted = read_binary({"inputs": inputs}, FLOATS + FLOATS[::-1])
    assert bytes(wanted.request.body) == FLOATS + bytes(8) + FLOATS[::-1]


def test_parameters_reach_the_engine_except_those_that_are_for_us() -> None:
    ours = {"timeout": 1500000, "priority": 2, "binary_data_output": True}
    wanted = read({"inputs": [tensor()], "parameters": {**ours, "beam": 4}})
    assert wanted.haste == Haste(1.5, 2)
    assert wanted.binary
    assert wanted.request.parameters == {"beam": 4}


def test_wanted_outputs_are_named_to_the_engine() -> None:
    outputs = [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}]
    wanted = read({"inputs": [tensor()], "outputs": outputs})
    assert wanted.request.outputs == ("a", "b")
    assert wanted.binary_outputs == {"a": True}


@pytest.mark.parametrize(
    "message",
    [
        [],
        {},
        {"inputs": []},
        {"inputs": {}},
        {"inputs": [tensor(), tensor()]},
        {"inputs": [tensor(shape=[-2])]},
        {"inputs": [tensor(shape=[2**63])]},
        {"inputs": [tensor(shape=[1] * 33)]},
        {"inputs": [tensor(shape="2")]},
        {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32"}]},
        {"inputs": [tensor(parameters={"binary_data_size": 8})]},
        {"inputs": [tensor()], "outputs": [{"name": "a"}, {"name": "a"}]},
        {"inputs": [tensor()], "parameters": {"timeout": "soon"}},
        {"inputs": [tensor()], "parameters": {"timeout": -1}},
        {"inputs": [tensor()], "parameters": {"priority": 11}},
        {"inputs": [tensor()], "parameters": {"priority": "high"}},
        {"inputs": [tensor()], "parameters": {"deep": {"er": 1}}},
        {"inputs": [tensor()], "id": 7},
    ],
)
def test_a_message_that_is_not_one_is_refused(message: Any) -> None:
    with pytest.raises(InvalidRequest):
        read(message)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff", b'{"inputs": [NaN]}', b"[" * 10**5, b'{"inputs":[{"name":"\xff"}]}']
)
def test_text_that_is_not_json_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(text, None)


@pytest.mark.parametrize("size", [0, 7, 9, -1, 2**70, "8", True, 8.0])
def test_a_binary_size_that_lies_is_refused(size: Any) -> None:
    with pytest.raises(InvalidRequest):
        read_binary({"inputs": [binary_tensor("x", size)]}, FLOATS)


def test_bytes_that_belong_to_no_input_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="add up to 8"):
        read_binary({"inputs": [binary_tensor("x", 8)]}, FLOATS + b"!")


@pytest.mark.parametrize("parameter", ["shared_memory_region", "classification"])
def test_what_is_not_supported_is_named(parameter: str) -> None:
    with pytest.raises(Unimplemented, match=parameter):
        read({"inputs": [tensor()], "outputs": [{"name": "a", "parameters": {parameter: 1}}]})


@pytest.mark.parametrize("value", [b"-1", b"", b"x", b"11", b"99999999999999999999", "٣".encode()])
def test_a_header_length_must_lie_in_the_body(value: bytes) -> None:
    with pytest.raises(InvalidRequest):
        header_length(value, 10)
    assert header_length(None, 10) is None
    assert header_length(b"10", 10) == 10


def answer(*outputs: tuple[str, str, tuple[int, ...], bytes]) -> Answer:
    described = tuple(Tensor(name, datatype, shape, len(data)) for name, datatype, shape, data in outputs)
    return Answer(Reply(b"".join(output[3] for output in outputs), described), "m@3", "sha256:0", 0.0)


def test_json_answers_name_model_version_and_id() -> None:
    wanted = read({"inputs": [tensor()], "id": "mine"})
    body, media, headers = render(answer(("y", "FP32", (2,), FLOATS)), wanted, "req-1")
    assert (media, headers) == (b"application/json", ())
    assert msgspec.json.decode(body) == {
        "model_name": "m",
        "model_version": "3",
        "id": "mine",
        "outputs": [{"name": "y", "shape": [2], "datatype": "FP32", "data": [1.0, 2.5]}],
    }


def test_the_request_id_stands_in_for_a_missing_one() -> None:
    body, _, _ = render(answer(("y", "FP32", (2,), FLOATS)), read({"inputs": [tensor()]}), "req-1")
    assert msgspec.json.decode(body)["id"] == "req-1"


def test_binary_outputs_follow_the_json() -> None:
    wanted = read(
        {"inputs": [tensor()], "outputs": [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}]}
    )
    body, media, headers = render(answer(("a", "FP32", (2,), FLOATS), ("b", "INT8", (1,), b"\x05")), wanted, "r")
    assert media == b"application/octet-stream"
    length = int(dict(headers)[b"inference-header-content-length"])
    first, second = msgspec.json.decode(body[:length])["outputs"]
    assert first["parameters"] == {"binary_data_size": 8}
    assert "data" not in first
    assert second["data"] == [5]
    assert body[length:] == FLOATS


def test_binary_for_all_can_be_taken_back_for_one() -> None:
    outputs = [{"name": "a", "parameters": {"binary_data": False}}]
    wanted = read({"inputs": [tensor()], "parameters": {"binary_data_output": True}, "outputs": outputs})
    body, media, _ = render(answer(("a", "FP32", (2,), FLOATS)), wanted, "r")
    assert media == b"application/json"
    assert msgspec.json.decode(body)["outputs"][0]["data"] == [1.0, 2.5]
