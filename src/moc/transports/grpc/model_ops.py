"""`modelops.ModelOps`: the calls of the first generation of this system, in today's words."""

import time
from collections.abc import Awaitable
from typing import Final, TypeVar

from moc.kernel.errors import Forbidden, InvalidRequest, MocError, RateLimited, Unauthenticated
from moc.service.inference import Request
from moc.service.leases import LeaseWish
from moc.service.models import spec_from
from moc.service.services import Services
from moc.transports.first_generation import spec_of, written_in
from moc.transports.grpc.call import Call, Method, Unary
from moc.transports.grpc.messages import fields_of, read
from moc.transports.grpc.stubs.modelops import model_ops_pb2 as pb
from moc.transports.oip.text import completion
from moc.transports.status import retry_after_s

A = TypeVar("A", pb.InferResponse, pb.LoadModelResponse, pb.UnloadModelResponse, pb.ReleaseGpuLeaseResponse)

SERVICE: Final = "modelops.ModelOps"
_SUCCESS: Final = "success"
_EVERY: Final = 2**31
_MIB: Final = 2**20
_OF_THE_CALLER: Final = (Unauthenticated, Forbidden, RateLimited)
"""Errors that gRPC tells of itself."""


class ModelOps:
    """The service's methods."""

    def __init__(self, services: Services) -> None:
        self._inference = services.inference
        self._models = services.models
        self._leases = services.leases

    def methods(self) -> dict[str, Method]:
        """By path."""
        found: dict[str, Method] = {
            "Infer": Unary(self._infer),
            "LoadModel": Unary(self._load_model),
            "UnloadModel": Unary(self._unload_model),
            "ListModels": Unary(self._list_models),
            "AcquireGpuLease": Unary(self._acquire_gpu_lease),
            "ReleaseGpuLease": Unary(self._release_gpu_lease),
        }
        return {f"/{SERVICE}/{name}": method for name, method in found.items()}

    async def _infer(self, data: bytes, call: Call) -> bytes:
        return await _told(self._written(read(pb.InferRequest, data), call), pb.InferResponse)

    async def _written(self, message: pb.InferRequest, call: Call) -> pb.InferResponse:
        began = time.monotonic()
        answer = await self._inference.infer(call.identity, message.model_name, _request(message), call.terms())
        call.tell_provenance(answer)
        text, tokens = written_in(answer.reply.body)
        took_ms = round((time.monotonic() - began) * 1000, 3)
        return pb.InferResponse(response_text=text, tokens_generated=tokens, inference_time_ms=took_ms, status=_SUCCESS)

    async def _load_model(self, data: bytes, call: Call) -> bytes:
        return await _told(self._loaded(read(pb.LoadModelRequest, data), call), pb.LoadModelResponse)

    async def _loaded(self, message: pb.LoadModelRequest, call: Call) -> pb.LoadModelResponse:
        reference = message.model_name
        if message.model_path:
            shards = message.shards if message.HasField("shards") else None
            fields = spec_of(message.model_path, fields_of(message.load_params), shards)
            spec = spec_from(fields, where=f"model {reference[:128]!r}")
            reference = (await self._models.add(call.identity, reference, spec)).reference
        view = await self._models.load(call.identity, reference, call.deadline())
        return pb.LoadModelResponse(status=_SUCCESS, model_name=view.reference)

    async def _unload_model(self, data: bytes, call: Call) -> bytes:
        return await _told(self._unloaded(read(pb.UnloadModelRequest, data), call), pb.UnloadModelResponse)

    async def _unloaded(self, message: pb.UnloadModelRequest, call: Call) -> pb.UnloadModelResponse:
        await self._models.unload(call.identity, message.model_name, call.deadline())
        return pb.UnloadModelResponse(status=_SUCCESS)

    async def _list_models(self, data: bytes, call: Call) -> bytes:
        read(pb.ListModelsRequest, data)
        page = await self._models.list(call.identity, after=None, limit=_EVERY)
        response = pb.ListModelsResponse()
        for view in page.items:
            response.models.add(
                model_name=view.name, version=view.version, state=view.state, runtime=view.runtime, source=view.source
            )
        return response.SerializeToString()

    async def _acquire_gpu_lease(self, data: bytes, call: Call) -> bytes:
        message = read(pb.AcquireGpuLeaseRequest, data)
        size = message.vram_estimate_mb * _MIB
        wish = LeaseWish(bytes=size, priority=message.priority or 5, ttl_s=message.ttl_seconds or 60.0)
        try:
            lease = await self._leases.acquire(call.identity, wish, call.deadline())
        except _OF_THE_CALLER:
            raise
        except MocError as error:
            refused = pb.AcquireGpuLeaseResponse(reason=error.message, retry_after_ms=_retry_after_ms(error))
            return refused.SerializeToString()
        granted = pb.AcquireGpuLeaseResponse(granted=True, lease_id=lease.id, vram_reserved_mb=lease.bytes // _MIB)
        return granted.SerializeToString()

    async def _release_gpu_lease(self, data: bytes, call: Call) -> bytes:
        return await _told(self._released(read(pb.ReleaseGpuLeaseRequest, data), call), pb.ReleaseGpuLeaseResponse)

    async def _released(self, message: pb.ReleaseGpuLeaseRequest, call: Call) -> pb.ReleaseGpuLeaseResponse:
        await self._leases.release(call.identity, message.lease_id, None)
        return pb.ReleaseGpuLeaseResponse(status=_SUCCESS)


async def _told(work: Awaitable[A], kind: type[A]) -> bytes:
    """What came of it, or the answer that says why nothing did."""
    try:
        answer = await work
    except _OF_THE_CALLER:
        raise
    except MocError as error:
        answer = kind(status=error.code, error_message=error.message)
    return answer.SerializeToString()


def _request(message: pb.InferRequest) -> Request:
    """The request of a completion that says the same."""
    if not message.model_name:
        raise InvalidRequest("`model_name` is missing; say which model is to answer")
    parameters = fields_of(message.parameters)
    if message.HasField("max_tokens"):
        parameters["max_tokens"] = message.max_tokens
    if message.HasField("temperature"):
        parameters["temperature"] = message.temperature
    return completion(message.prompt, parameters, message.model_name, stream=False)


def _retry_after_ms(error: MocError) -> int:
    """0 when asking again cannot help."""
    return 1000 * (retry_after_s(error) or 0)
