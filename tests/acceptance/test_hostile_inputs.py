"""Requests meant to break it: each gets a client error, and the coordinator stays alive with its memory flat."""

import json
import socket
from typing import Any

import httpx
import psutil
import pytest

from tests.coordinator import Coordinator

TENSOR: dict[str, Any] = {"name": "INPUT0", "shape": [1, 8], "datatype": "FP32", "data": [0.5] * 8}


def with_tensor(**changes: Any) -> bytes:
    return json.dumps({"inputs": [{**TENSOR, **changes}]}).encode()


HOSTILE = {
    "nothing": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"inputs": "\xff\xfe"}',
    "an array": b"[]",
    "no inputs": b"{}",
    "inputs of a wrong type": b'{"inputs": 7}',
    "nested 101 deep": b'{"inputs":' + b"[" * 101 + b"]" * 101 + b"}",
    "nested 100000 deep": b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "data nested 200 deep": b'{"inputs":[{"name":"INPUT0","shape":[1],"datatype":"FP32","data":'
    + b"[" * 200
    + b"1"
    + b"]" * 200
    + b"}]}",
    "a negative dimension": with_tensor(shape=[-1, 8]),
    "a huge dimension": with_tensor(shape=[2**62, 8]),
    "dimensions that overflow": with_tensor(shape=[2**32, 2**32]),
    "a fractional dimension": with_tensor(shape=[1.5, 8]),
    "shape and data that differ": with_tensor(shape=[1, 7]),
    "a shape the model does not take": with_tensor(shape=[8, 1]),
    "an unknown datatype": with_tensor(datatype="FP33"),
    "a datatype the model does not take": with_tensor(datatype="INT32", data=[1] * 8),
    "an unknown tensor": with_tensor(name="nobody"),
    "the tensor twice": json.dumps({"inputs": [TENSOR, TENSOR]}).encode(),
    "an output twice": json.dumps({"inputs": [TENSOR], "outputs": [{"name": "OUTPUT0"}] * 2}).encode(),
    "an unknown output": json.dumps({"inputs": [TENSOR], "outputs": [{"name": "nobody"}]}).encode(),
    "NaN": b'{"inputs":[{"name":"INPUT0","shape":[1,8],"datatype":"FP32","data":[NaN,0,0,0,0,0,0,0]}]}',
    "Infinity": b'{"inputs":[{"name":"INPUT0","shape":[1,8],"datatype":"FP32","data":[Infinity,0,0,0,0,0,0,0]}]}',
    "1e999": b'{"inputs":[{"name":"INPUT0","shape":[1,8],"datatype":"FP32","data":[1e999,0,0,0,0,0,0,0]}]}',
    "words for numbers": with_tensor(data=["a"] * 8),
    "ragged data": with_tensor(data=[[1, 2, 3], [4, 5, 6, 7, 8]]),
}


def infer(coordinator: Coordinator, body: bytes, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{coordinator.url}/v2/models/identity/infer",
        content=body,
        headers={**coordinator.headers, "content-type": "application/json", **headers},
        timeout=60,
    )


def alive(coordinator: Coordinator) -> bool:
    return httpx.get(f"{coordinator.url}/v2/health/live", timeout=10).status_code == 200


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_a_bad_request(coordinator: Coordinator, name: str) -> None:
    answer = infer(coordinator, HOSTILE[name])
    assert answer.status_code == 400, answer.text
    assert isinstance(answer.json()["error"], str)
    assert "Traceback" not in answer.text
    assert alive(coordinator)


@pytest.mark.parametrize("length", ["99999999999", "-1", "x", "1000", "0"])
def test_a_header_length_that_lies(coordinator: Coordinator, length: str) -> None:
    answer = infer(coordinator, with_tensor(), **{"inference-header-content-length": length})
    assert answer.status_code == 400, answer.text
    assert alive(coordinator)


@pytest.mark.parametrize("size", [0, 31, 33, 2**62, -1, "x"])
def test_a_binary_size_that_lies(coordinator: Coordinator, size: Any) -> None:
    tensor = {key: value for key, value in TENSOR.items() if key != "data"}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}).encode()
    answer = infer(coordinator, head + bytes(32), **{"inference-header-content-length": str(len(head))})
    assert answer.status_code == 400, answer.text
    assert alive(coordinator)


def test_a_body_over_the_limit_is_refused_before_it_is_read(coordinator: Coordinator) -> None:
    with socket.create_connection(("127.0.0.1", coordinator.port), timeout=10) as connection:
        head = (
            "POST /v2/models/identity/infer HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {coordinator.key}\r\nContent-Length: 99999999999\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]
    assert alive(coordinator)


def test_an_endless_chunked_body_is_refused(coordinator: Coordinator) -> None:
    def endless() -> Any:
        for _ in range(200):
            yield bytes(2**20)

    try:
        answer = httpx.post(
            f"{coordinator.url}/v2/models/identity/infer", content=endless(), headers=coordinator.headers, timeout=60
        )
        assert answer.status_code == 413
    except httpx.TransportError:
        pass  # closed while we were still sending: also a refusal
    assert alive(coordinator)


def test_memory_stays_flat_under_abuse(coordinator: Coordinator) -> None:
    assert coordinator.process is not None
    process = psutil.Process(coordinator.process.pid)
    for body in HOSTILE.values():
        infer(coordinator, body)
    before = process.memory_info().rss
    for _ in range(10):
        for body in HOSTILE.values():
            infer(coordinator, body)
    assert process.memory_info().rss - before < 30 * 2**20


def test_another_sites_page_cannot_reach_it(coordinator: Coordinator) -> None:
    answer = httpx.get(f"{coordinator.url}/livez", headers={"host": "evil.example"}, timeout=10)
    assert answer.status_code in {400, 403, 421}
    assert "access-control-allow-origin" not in answer.headers
