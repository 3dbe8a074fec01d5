"""Every datatype reaches the engine as the same bytes, and comes back, in each form it can be sent in."""

import json
from typing import Any

import httpx
import numpy as np
import pytest

from moc.transports.grpc.stubs.inference import grpc_service_pb2 as pb
from moc.transports.oip.tensors import DATATYPES
from tests.grpc_stack import GrpcStack
from tests.rest_stack import EchoLink, client

FORMS = ("rest json", "rest binary", "grpc typed", "grpc raw")
FIELDS = {"INT64": "int64_contents", "UINT64": "uint64_contents", "BOOL": "bool_contents", "BYTES": "bytes_contents"}
URL = "/v2/models/echo/infer"


def values_of(datatype: str) -> list[Any]:
    """Elements at the edges of what it holds, as JSON has them."""
    if datatype == "BOOL":
        return [True, False, True]
    if datatype == "BYTES":
        return ["", "text", "hé\x00"]
    if datatype.startswith("FP"):
        return [0.5, -2.0, float(np.finfo(f"f{int(datatype[2:]) // 8}").max)]
    info = np.iinfo(datatype.lower())
    return [0, int(info.min), int(info.max)]


def bytes_of(datatype: str, values: list[Any]) -> bytes:
    """The elements as numpy lays them out."""
    if datatype == "BYTES":
        return b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in values)
    kind = {"BOOL": "?"}.get(datatype, f"{datatype.lower()}").replace("fp", "float")
    return np.array(values, kind).tobytes()


def field_of(datatype: str) -> str:
    if datatype.startswith("FP"):
        return f"{datatype.lower()}_contents"
    return FIELDS.get(datatype) or ("uint_contents" if datatype.startswith("U") else "int_contents")


async def over_rest(rest: httpx.AsyncClient, tensor: dict[str, Any], data: bytes | None) -> bytes:
    """The bytes that come back in binary; `data` makes the request binary too."""
    if data is not None:
        tensor = tensor | {"parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {} if data is None else {"inference-header-content-length": str(len(head))}
    answer = await rest.post(URL, content=head + (data or b""), headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.content[int(answer.headers["inference-header-content-length"]) :]


async def over_grpc(stack: GrpcStack, datatype: str, shape: list[int], contents: Any) -> bytes:
    """The bytes that come back; `contents` is either the raw bytes or the elements."""
    message = pb.ModelInferRequest(model_name="echo")
    tensor = message.inputs.add(name="INPUT0", datatype=datatype, shape=shape)
    if isinstance(contents, bytes):
        message.raw_input_contents.append(contents)
    else:
        elements = [each.encode() for each in contents] if datatype == "BYTES" else contents
        getattr(tensor.contents, field_of(datatype)).extend(elements)
    return (await stack.infer(message)).raw_output_contents[0]


@pytest.mark.parametrize("datatype", DATATYPES)
async def test_a_datatype_makes_the_round_trip_in_every_form(grpc_stack: GrpcStack, datatype: str) -> None:
    link: EchoLink = await grpc_stack.rest.load()
    values = values_of(datatype)
    data, shape = bytes_of(datatype, values), [1, len(values)]
    tensor = {"name": "INPUT0", "datatype": datatype, "shape": shape}
    async with client(grpc_stack.rest) as rest:
        found = {
            "rest json": await over_rest(rest, tensor | {"data": values}, None),
            "rest binary": await over_rest(rest, tensor, data),
            "grpc raw": await over_grpc(grpc_stack, datatype, shape, data),
        }
        if datatype != "FP16":
            found["grpc typed"] = await over_grpc(grpc_stack, datatype, shape, values)
        shown = await rest.post(URL, json={"inputs": [tensor | {"data": [values]}]})
    assert set(found.values()) == {data}, found
    assert found.keys() == set(FORMS) - ({"grpc typed"} if datatype == "FP16" else set())
    assert {bytes(request.body) for request in link.given} == {data}
    assert {request.inputs for request in link.given} == {link.given[0].inputs}
    assert shown.json()["outputs"][0]["data"] == values
