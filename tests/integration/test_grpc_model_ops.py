"""`modelops.ModelOps`: the calls of the first generation."""

import grpc
import msgspec
import pytest

from moc.inference.request import Reply, Request
from moc.security.identity import Role
from moc.security.key import KeyTerms
from moc.transports.grpc.stubs.modelops import model_ops_pb2 as pb
from tests.grpc_stack import GrpcStack, reason_of
from tests.rest_stack import INFO, EchoLink

SERVICE = "/modelops.ModelOps"


class Writer(EchoLink):
    """Always writes the same."""

    async def infer(self, request: Request) -> Reply:
        await super().infer(request)
        return Reply(b'{"choices": [{"text": " upon a time"}], "usage": {"completion_tokens": 3}}')


@pytest.fixture
async def writer(grpc_stack: GrpcStack) -> Writer:
    """The engine of `echo`."""
    await grpc_stack.rest.load()
    workers = grpc_stack.rest.workers
    (worker,) = workers.workers()
    link = workers.links[worker.id] = Writer(INFO)
    return link


async def infer(stack: GrpcStack, message: pb.InferRequest) -> pb.InferResponse:
    return await stack.ask(f"{SERVICE}/Infer", message, pb.InferResponse)


async def acquire(stack: GrpcStack, size_mb: int, **terms: int) -> pb.AcquireGpuLeaseResponse:
    message = pb.AcquireGpuLeaseRequest(client="agent", model_name="echo", vram_estimate_mb=size_mb, **terms)
    return await stack.ask(f"{SERVICE}/AcquireGpuLease", message, pb.AcquireGpuLeaseResponse)


async def release(stack: GrpcStack, lease_id: str) -> pb.ReleaseGpuLeaseResponse:
    message = pb.ReleaseGpuLeaseRequest(lease_id=lease_id)
    return await stack.ask(f"{SERVICE}/ReleaseGpuLease", message, pb.ReleaseGpuLeaseResponse)


async def test_a_prompt_is_continued(grpc_stack: GrpcStack, writer: Writer) -> None:
    asked = pb.InferRequest(model_name="echo", prompt="Once", max_tokens=3, temperature=0)
    asked.parameters.update({"seed": 7})
    call = grpc_stack.call(f"{SERVICE}/Infer", asked)
    told = pb.InferResponse.FromString(await call)
    assert (told.response_text, told.tokens_generated, told.status) == (" upon a time", 3, "success")
    assert told.inference_time_ms >= 0
    assert dict(await call.trailing_metadata())["x-moc-model"] == "echo@1"
    given = writer.given[0]
    assert (given.kind, msgspec.json.decode(given.body)) == (
        "completion",
        {"model": "echo", "prompt": "Once", "max_tokens": 3, "temperature": 0, "seed": 7, "stream": False},
    )


async def test_what_goes_wrong_is_told_in_the_answer(grpc_stack: GrpcStack, writer: Writer) -> None:
    clash = pb.InferRequest(model_name="echo", prompt="Once")
    clash.parameters.update({"stream": True})
    for wrong, code in (
        (pb.InferRequest(prompt="Once"), "invalid_request"),
        (clash, "invalid_request"),
        (pb.InferRequest(model_name="nobody", prompt="Once"), "not_found"),
    ):
        told = await infer(grpc_stack, wrong)
        assert (told.status, bool(told.error_message), told.response_text) == (code, True, "")


async def test_who_may_not_is_told_by_grpc(grpc_stack: GrpcStack, writer: Writer) -> None:
    grpc_stack.key, _ = await grpc_stack.rest.keys.create(KeyTerms(role=Role.VIEWER), actor="test")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await infer(grpc_stack, pb.InferRequest(model_name="echo", prompt="Once"))
    assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN")


async def test_a_model_is_added_loaded_listed_and_unloaded(grpc_stack: GrpcStack) -> None:
    load = pb.LoadModelRequest(model_name="new", model_path="new.py", shards=1)
    load.load_params.update({"options": {"a": 1}, "ttl_s": "10m"})
    for _ in range(2):
        loaded = await grpc_stack.ask(f"{SERVICE}/LoadModel", load, pb.LoadModelResponse)
        assert (loaded.status, loaded.model_name) == ("success", "new@1")
    listed = await grpc_stack.ask(f"{SERVICE}/ListModels", pb.ListModelsRequest(), pb.ListModelsResponse)
    (model,) = listed.models
    assert (model.model_name, model.version, model.state) == ("new", 1, "ready")
    assert (model.runtime, model.source) == ("python", "file:new.py")
    for force in (False, True):
        unload = pb.UnloadModelRequest(model_name="new", force=force)
        assert (await grpc_stack.ask(f"{SERVICE}/UnloadModel", unload, pb.UnloadModelResponse)).status == "success"
    nobody = pb.UnloadModelRequest(model_name="nobody")
    assert (await grpc_stack.ask(f"{SERVICE}/UnloadModel", nobody, pb.UnloadModelResponse)).status == "not_found"
    unknown = pb.LoadModelRequest(model_name="nobody")
    assert (await grpc_stack.ask(f"{SERVICE}/LoadModel", unknown, pb.LoadModelResponse)).status == "not_found"
    load.load_params.update({"sorce": "x"})
    wrong = await grpc_stack.ask(f"{SERVICE}/LoadModel", load, pb.LoadModelResponse)
    assert (wrong.status, "did you mean 'source'" in wrong.error_message) == ("invalid_request", True)


async def test_a_lease_is_granted_or_not_at_once(grpc_stack: GrpcStack) -> None:
    granted = await acquire(grpc_stack, 600, priority=2, ttl_seconds=30)
    assert (granted.granted, granted.vram_reserved_mb, granted.reason, granted.retry_after_ms) == (True, 600, "", 0)
    standing = grpc_stack.rest.leases.show(granted.lease_id)
    assert (standing.lease.terms.priority, standing.lease.terms.ttl_s) == (2, 30)
    refused = await acquire(grpc_stack, 600)
    assert (refused.granted, refused.lease_id, refused.vram_reserved_mb) == (False, "", 0)
    assert "600MiB" in refused.reason
    assert refused.retry_after_ms >= 1000
    wrong = await acquire(grpc_stack, 0)
    assert (wrong.granted, wrong.retry_after_ms) == (False, 0)
    for _ in range(2):
        assert (await release(grpc_stack, granted.lease_id)).status == "success"
    assert grpc_stack.rest.leases.standings() == []
    assert (await release(grpc_stack, "lse-none")).status == "not_found"


async def test_only_its_own_key_releases_a_lease_without_its_token(grpc_stack: GrpcStack) -> None:
    granted = await acquire(grpc_stack, 600)
    grpc_stack.key, _ = await grpc_stack.rest.keys.create(KeyTerms(role=Role.ADMIN), actor="test")
    with pytest.raises(grpc.aio.AioRpcError, match="ask with its token") as caught:
        await release(grpc_stack, granted.lease_id)
    assert reason_of(caught.value) == "FORBIDDEN"
    assert grpc_stack.rest.leases.show(granted.lease_id).lease.state == "admitted"
