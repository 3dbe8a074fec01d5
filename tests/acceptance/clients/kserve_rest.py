"""KServe's `InferenceRESTClient`, unchanged, against a coordinator with `add_sub`."""

import asyncio
import os

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

HEADERS = {"Authorization": f"Bearer {os.environ['MOC_KEY']}"}


async def main() -> None:
    client = InferenceRESTClient(config=RESTConfig(protocol="v2", timeout=60, retries=0))
    url = os.environ["MOC_URL"]
    assert await client.is_server_live(url, headers=HEADERS)
    assert await client.is_server_ready(url, headers=HEADERS)
    left, right = np.arange(16, dtype=np.int32), np.full(16, 3, dtype=np.int32)
    for binary in (False, True):
        inputs = [InferInput("INPUT0", [16], "INT32"), InferInput("INPUT1", [16], "INT32")]
        inputs[0].set_data_from_numpy(left, binary_data=binary)
        inputs[1].set_data_from_numpy(right, binary_data=binary)
        request = InferRequest("add_sub", inputs, request_id="seven")
        answer = await client.infer(url, request, model_name="add_sub", headers=HEADERS)
        found = {output.name: output.as_numpy() for output in answer.outputs}
        assert (found["OUTPUT0"] == left + right).all(), found
        assert (found["OUTPUT1"] == left - right).all(), found
        assert answer.id == "seven", answer.id
    assert await client.is_model_ready(url, "add_sub", headers=HEADERS)
    await client.close()


asyncio.run(main())
print("ok")
