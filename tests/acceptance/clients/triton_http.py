"""NVIDIA's `tritonclient.http`, unchanged, against a coordinator with `add_sub` and `identity`."""

# ruff: noqa: PT017 - these are programs, not tests

import os

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(os.environ["MOC_URL"].removeprefix("http://"))
headers = {"Authorization": f"Bearer {os.environ['MOC_KEY']}"}

assert client.is_server_live()
assert client.is_server_ready()
client.load_model("add_sub", headers=headers)
assert client.is_model_ready("add_sub", headers=headers)
server = client.get_server_metadata(headers=headers)
assert {"model_repository", "statistics", "model_configuration", "binary_tensor_data"} <= set(server["extensions"])

metadata = client.get_model_metadata("add_sub", headers=headers)
assert [tensor["name"] for tensor in metadata["inputs"]] == ["INPUT0", "INPUT1"], metadata
assert metadata["inputs"][0]["datatype"] == "INT32"
assert metadata["inputs"][0]["shape"] == [16]
assert client.get_model_config("add_sub", headers=headers)["name"] == "add_sub"

left, right = np.arange(16, dtype=np.int32), np.full(16, 3, dtype=np.int32)
for binary in (False, True):
    inputs = [triton.InferInput("INPUT0", [16], "INT32"), triton.InferInput("INPUT1", [16], "INT32")]
    inputs[0].set_data_from_numpy(left, binary_data=binary)
    inputs[1].set_data_from_numpy(right, binary_data=binary)
    outputs = [
        triton.InferRequestedOutput("OUTPUT0", binary_data=binary),
        triton.InferRequestedOutput("OUTPUT1", binary_data=not binary),
    ]
    answer = client.infer("add_sub", inputs, outputs=outputs, request_id="seven", headers=headers)
    assert (answer.as_numpy("OUTPUT0") == left + right).all()
    assert (answer.as_numpy("OUTPUT1") == left - right).all()
    assert answer.get_response()["id"] == "seven"


def counted():
    """How often the model answered."""
    (statistics,) = client.get_inference_statistics("identity", headers=headers)["model_stats"]
    assert statistics["inference_count"] == statistics["inference_stats"]["success"]["count"]
    return statistics["inference_count"]


before = counted()
batch = np.random.default_rng(0).random((3, 8), dtype=np.float32)
tensor = triton.InferInput("INPUT0", [3, 8], "FP32")
tensor.set_data_from_numpy(batch)
assert (client.infer("identity", [tensor], headers=headers).as_numpy("OUTPUT0") == batch).all()
several = [client.async_infer("identity", [tensor], headers=headers) for _ in range(8)]
assert all((each.get_result().as_numpy("OUTPUT0") == batch).all() for each in several)

assert counted() == before + 9

index = {entry["name"]: entry["state"] for entry in client.get_model_repository_index(headers=headers)}
assert index["add_sub"] == "READY", index
client.unload_model("add_sub", headers=headers)
assert not client.is_model_ready("add_sub", headers=headers)
client.unload_model("nobody", headers=headers)

for wrong in (
    lambda: client.load_model("nobody", headers=headers),
    lambda: client.infer("nobody", [tensor], headers=headers),
    lambda: client.get_model_metadata("identity"),
    lambda: client.get_model_metadata("nobody", headers=headers),
):
    try:
        wrong()
    except InferenceServerException as error:
        assert error.message(), error
    else:
        raise AssertionError("should have been refused")
client.close()
print("ok")
