"""NVIDIA's `tritonclient.grpc`, sync and aio, unchanged, against a coordinator with `add_sub` and `smollm2`."""

# ruff: noqa: PT017 - these are programs, not tests

import asyncio
import os
import queue

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

HEADERS = {"authorization": f"Bearer {os.environ['MOC_KEY']}"}
LEFT, RIGHT = np.arange(16, dtype=np.int32), np.full(16, 3, dtype=np.int32)


def tensors(module) -> list:
    inputs = [module.InferInput("INPUT0", [16], "INT32"), module.InferInput("INPUT1", [16], "INT32")]
    inputs[0].set_data_from_numpy(LEFT)
    inputs[1].set_data_from_numpy(RIGHT)
    return inputs


def check(answer) -> None:
    assert (answer.as_numpy("OUTPUT0") == LEFT + RIGHT).all()
    assert (answer.as_numpy("OUTPUT1") == LEFT - RIGHT).all()
    assert answer.get_response().id == "seven"


def told(client: triton.InferenceServerClient) -> None:
    server = client.get_server_metadata(headers=HEADERS)
    assert {"model_repository", "statistics", "model_configuration"} <= set(server.extensions)
    metadata = client.get_model_metadata("add_sub", headers=HEADERS, as_json=True)
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["INPUT0", "INPUT1"], metadata
    assert metadata["inputs"][0]["datatype"] == "INT32"
    assert metadata["inputs"][0]["shape"] == ["16"]
    config = client.get_model_config("add_sub", headers=HEADERS).config
    assert (config.name, config.input[0].name, list(config.input[0].dims)) == ("add_sub", "INPUT0", [16])
    index = client.get_model_repository_index(headers=HEADERS)
    assert {entry.name: entry.state for entry in index.models}["add_sub"] == "READY"
    statistics = client.get_inference_statistics("add_sub", headers=HEADERS).model_stats[0]
    assert statistics.inference_count >= 1
    assert statistics.inference_stats.success.count >= 1


def refused(client: triton.InferenceServerClient) -> None:
    for status, wrong in (
        ("StatusCode.NOT_FOUND", lambda: client.load_model("nobody", headers=HEADERS)),
        ("StatusCode.NOT_FOUND", lambda: client.infer("nobody", tensors(triton), headers=HEADERS)),
        ("StatusCode.NOT_FOUND", lambda: client.get_model_metadata("nobody", headers=HEADERS)),
        ("StatusCode.UNAUTHENTICATED", lambda: client.get_model_metadata("identity")),
        ("StatusCode.INVALID_ARGUMENT", lambda: client.infer("add_sub", tensors(triton)[:1], headers=HEADERS)),
    ):
        try:
            wrong()
        except InferenceServerException as error:
            assert error.status() == status, error
            assert error.message(), error
        else:
            raise AssertionError(f"should have been refused with {status}")


def streamed(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), headers=HEADERS)
    for number in range(5):
        client.async_stream_infer("add_sub", tensors(triton), request_id="seven" if number % 2 else "six")
    for number in range(5):
        result, error = answers.get(timeout=60)
        assert error is None, error
        assert result.get_response().id == ("seven" if number % 2 else "six")
        assert (result.as_numpy("OUTPUT0") == LEFT + RIGHT).all()
    prompt = triton.InferInput("text_input", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([b"One, two, three,"], dtype=object))
    client.async_stream_infer(
        "smollm2", [prompt], parameters={"max_tokens": 8, "temperature": 0}, enable_empty_final_response=True
    )
    pieces = []
    while True:
        result, error = answers.get(timeout=120)
        assert error is None, error
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
        pieces.append(result.as_numpy("text_output")[0].decode())
    assert len(pieces) > 1, pieces
    assert "four" in "".join(pieces), pieces
    client.async_stream_infer("nobody", tensors(triton))
    _, error = answers.get(timeout=60)
    assert "nobody" in error.message(), error
    client.stop_stream()


def sync() -> None:
    client = triton.InferenceServerClient(os.environ["MOC_GRPC"])
    assert client.is_server_live()
    assert client.is_server_ready()
    client.load_model("add_sub", headers=HEADERS)
    assert client.is_model_ready("add_sub", headers=HEADERS)
    outputs = [triton.InferRequestedOutput("OUTPUT0"), triton.InferRequestedOutput("OUTPUT1")]
    check(client.infer("add_sub", tensors(triton), outputs=outputs, request_id="seven", headers=HEADERS))
    only = client.infer("add_sub", tensors(triton), outputs=outputs[1:], headers=HEADERS)
    assert only.as_numpy("OUTPUT0") is None
    answers: queue.Queue = queue.Queue()
    for _ in range(8):
        client.async_infer(
            "add_sub",
            tensors(triton),
            lambda result, error: answers.put((result, error)),
            request_id="seven",
            headers=HEADERS,
        )
    for _ in range(8):
        result, error = answers.get(timeout=60)
        assert error is None, error
        check(result)
    told(client)
    refused(client)
    streamed(client)
    client.unload_model("add_sub", headers=HEADERS)
    assert not client.is_model_ready("add_sub", headers=HEADERS)
    client.unload_model("nobody", headers=HEADERS)
    client.close()


async def aio() -> None:
    async with triton_aio.InferenceServerClient(os.environ["MOC_GRPC"]) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        calls = [
            client.infer("add_sub", tensors(triton_aio), request_id="seven", headers=HEADERS, client_timeout=60)
            for _ in range(16)
        ]
        for answer in await asyncio.gather(*calls):
            check(answer)

        async def requests():
            for _ in range(3):
                yield {"model_name": "add_sub", "inputs": tensors(triton_aio), "request_id": "seven"}

        count = 0
        async for answer, error in client.stream_infer(requests(), headers=HEADERS):
            assert error is None, error
            check(answer)
            count += 1
        assert count == 3
        try:
            await client.infer("nobody", tensors(triton_aio), headers=HEADERS)
        except InferenceServerException as error:
            assert error.status() == "StatusCode.NOT_FOUND"
        else:
            raise AssertionError("should have been refused")


sync()
asyncio.run(aio())
print("ok")
