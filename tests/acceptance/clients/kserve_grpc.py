"""KServe's `InferenceGRPCClient` and its stub, unchanged, against a coordinator with `add_sub`."""

# ruff: noqa: PT017 - these are programs, not tests

import asyncio
import os

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

HEADERS = (("authorization", f"Bearer {os.environ['MOC_KEY']}"),)


async def infer(client: InferenceGRPCClient) -> None:
    left, right = np.arange(16, dtype=np.int32), np.full(16, 3, dtype=np.int32)
    for binary in (False, True):
        inputs = [InferInput("INPUT0", [16], "INT32"), InferInput("INPUT1", [16], "INT32")]
        inputs[0].set_data_from_numpy(left, binary_data=binary)
        inputs[1].set_data_from_numpy(right, binary_data=binary)
        answer = await client.infer(InferRequest("add_sub", inputs, request_id="seven"), headers=HEADERS)
        found = {output.name: output.as_numpy() for output in answer.outputs}
        assert (found["OUTPUT0"] == left + right).all(), found
        assert (found["OUTPUT1"] == left - right).all(), found
        assert answer.id == "seven", answer.id


async def repository(stub: GRPCInferenceServiceStub) -> None:
    name = "add_sub"
    loaded = await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name), metadata=HEADERS)
    assert (loaded.model_name, loaded.isLoaded) == (name, True)
    assert (await stub.ServerMetadata(pb.ServerMetadataRequest(), metadata=HEADERS)).name == "modelops-coordinator"
    metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name=name), metadata=HEADERS)
    assert [tensor.name for tensor in metadata.inputs] == ["INPUT0", "INPUT1"]
    unloaded = await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=name), metadata=HEADERS)
    assert (unloaded.model_name, unloaded.isUnloaded) == (name, True)


async def main() -> None:
    async with InferenceGRPCClient(os.environ["MOC_GRPC"], retries=2) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        await infer(client)
        assert await client.is_model_ready("add_sub", headers=HEADERS)
        try:
            await infer_nobody(client)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND
        else:
            raise AssertionError("should have been refused")
    async with grpc.aio.insecure_channel(os.environ["MOC_GRPC"]) as channel:
        await repository(GRPCInferenceServiceStub(channel))


async def infer_nobody(client: InferenceGRPCClient) -> None:
    tensor = InferInput("INPUT0", [1], "INT32", data=[1])
    await client.infer(InferRequest("nobody", [tensor]), headers=HEADERS)


asyncio.run(main())
print("ok")
