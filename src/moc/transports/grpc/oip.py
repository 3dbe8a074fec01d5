"""The Open Inference Protocol's service, with its extensions."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from google.protobuf.message import Message

from moc.kernel.errors import MocError, NotFound
from moc.service.inference import Terms
from moc.service.services import Services
from moc.transports.grpc.call import Call, Method, Stream, Unary
from moc.transports.grpc.messages import message_of, read
from moc.transports.grpc.oip_message import Wanted, parameters_of, parse, render, text_input
from moc.transports.grpc.stubs.inference import grpc_service_pb2 as pb
from moc.transports.oip import tensors
from moc.transports.oip.repository import check_load, index_entry, statistics_response
from moc.transports.oip.request import model_reference, taken_from
from moc.transports.oip.server import model_config, model_metadata, server_metadata
from moc.transports.oip.text import completion, text_of

SERVICE: Final = "inference.GRPCInferenceService"
_FINAL: Final = "triton_final_response"
_WANTS_FINAL: Final = "triton_enable_empty_final_response"


class InferenceProtocol:
    """The service's methods."""

    def __init__(self, services: Services) -> None:
        self._inference = services.inference
        self._models = services.models
        self._system = services.system

    def methods(self) -> dict[str, Method]:
        """By path."""
        found: dict[str, Method] = {
            "ModelInfer": Unary(self._infer),
            "ModelStreamInfer": Stream(self._stream_infer),
            "ServerLive": Unary(self._live, public=True),
            "ServerReady": Unary(self._ready, public=True),
            "ModelReady": Unary(self._model_ready),
            "ServerMetadata": Unary(self._server),
            "ModelMetadata": Unary(self._metadata),
            "ModelConfig": Unary(self._config),
            "ModelStatistics": Unary(self._statistics),
            "RepositoryIndex": Unary(self._index),
            "RepositoryModelLoad": Unary(self._load),
            "RepositoryModelUnload": Unary(self._unload),
        }
        return {f"/{SERVICE}/{name}": method for name, method in found.items()}

    async def _infer(self, data: bytes, call: Call) -> bytes:
        message = read(pb.ModelInferRequest, data)
        return (await self._answer(message, parse(message), call)).SerializeToString()

    async def _answer(self, message: pb.ModelInferRequest, wanted: Wanted, call: Call) -> pb.ModelInferResponse:
        terms = wanted.haste.on(call.terms())
        answer = await self._inference.infer(call.identity, _reference(message), wanted.request, terms)
        call.tell_provenance(answer)
        return render(answer, message.id or call.request_id)

    async def _stream_infer(self, requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes, None]:
        async for data in requests:
            message = read(pb.ModelInferRequest, data)
            try:
                async with contextlib.aclosing(self._responses(message, call)) as responses:
                    async for response in responses:
                        yield pb.ModelStreamInferResponse(infer_response=response).SerializeToString()
            except MocError as error:
                empty = pb.ModelInferResponse(id=message.id)
                yield pb.ModelStreamInferResponse(error_message=error.message, infer_response=empty).SerializeToString()

    async def _responses(
        self, message: pb.ModelInferRequest, call: Call
    ) -> AsyncGenerator[pb.ModelInferResponse, None]:
        """What one request of a stream is answered with: one response, or the pieces of a text."""
        prompt = text_input(message)
        parameters = parameters_of(message.parameters)
        terms = taken_from(parameters).on(call.terms())
        if prompt is None or not await self._writes_text(message, call, terms):
            yield await self._answer(message, parse(message), call)
            return
        wants_final = parameters.pop(_WANTS_FINAL, False)
        request = completion(prompt, parameters, _reference(message), stream=True)
        stream = await self._inference.stream(call.identity, _reference(message), request, terms)
        async with contextlib.aclosing(stream):
            async for chunk in stream:
                response = _response(message, stream.reference, call, final=False)
                _add_text(response, text_of(chunk))
                yield response
        if wants_final:
            yield _response(message, stream.reference, call, final=True)

    async def _writes_text(self, message: pb.ModelInferRequest, call: Call, terms: Terms) -> bool:
        found = await self._inference.describe(call.identity, _reference(message), terms.deadline)
        return "completion" in found.kinds and "tensors" not in found.kinds

    async def _live(self, data: bytes, call: Call) -> bytes:
        read(pb.ServerLiveRequest, data)
        return pb.ServerLiveResponse(live=self._system.is_live()).SerializeToString()

    async def _ready(self, data: bytes, call: Call) -> bytes:
        read(pb.ServerReadyRequest, data)
        return pb.ServerReadyResponse(ready=self._system.readiness().ready).SerializeToString()

    async def _model_ready(self, data: bytes, call: Call) -> bytes:
        message = read(pb.ModelReadyRequest, data)
        reference = model_reference(message.name, message.version)
        problem = self._inference.problem(call.identity, reference)
        return pb.ModelReadyResponse(ready=not problem).SerializeToString()

    async def _server(self, data: bytes, call: Call) -> bytes:
        read(pb.ServerMetadataRequest, data)
        return _written(message_of(pb.ServerMetadataResponse, server_metadata(self._system.version)))

    async def _metadata(self, data: bytes, call: Call) -> bytes:
        message = read(pb.ModelMetadataRequest, data)
        reference = model_reference(message.name, message.version)
        found = await self._inference.describe(call.identity, reference, call.deadline())
        return _written(message_of(pb.ModelMetadataResponse, model_metadata(found)))

    async def _config(self, data: bytes, call: Call) -> bytes:
        message = read(pb.ModelConfigRequest, data)
        reference = model_reference(message.name, message.version)
        found = await self._inference.describe(call.identity, reference, call.deadline())
        return _written(message_of(pb.ModelConfigResponse, {"config": model_config(found)}))

    async def _statistics(self, data: bytes, call: Call) -> bytes:
        message = read(pb.ModelStatisticsRequest, data)
        reference = model_reference(message.name, message.version) if message.name else None
        found = self._inference.statistics(call.identity, reference)
        return _written(message_of(pb.ModelStatisticsResponse, statistics_response(found)))

    async def _index(self, data: bytes, call: Call) -> bytes:
        message = read(pb.RepositoryIndexRequest, data)
        views = await self._models.index(call.identity, ready_only=message.ready)
        return _written(message_of(pb.RepositoryIndexResponse, {"models": [index_entry(view) for view in views]}))

    async def _load(self, data: bytes, call: Call) -> bytes:
        message = read(pb.RepositoryModelLoadRequest, data)
        check_load(parameters_of(message.parameters))
        view = await self._models.load(call.identity, _repository_model(message), call.deadline())
        return _written(pb.RepositoryModelLoadResponse(model_name=view.name, isLoaded=True))

    async def _unload(self, data: bytes, call: Call) -> bytes:
        message = read(pb.RepositoryModelUnloadRequest, data)
        reference = _repository_model(message)
        with contextlib.suppress(NotFound):  # the protocol asks for an end state: what is unknown is not loaded
            await self._models.unload(call.identity, reference, call.deadline())
        return _written(pb.RepositoryModelUnloadResponse(model_name=reference, isUnloaded=True))


def _reference(message: pb.ModelInferRequest) -> str:
    return model_reference(message.model_name, message.model_version)


def _repository_model(message: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest) -> str:
    """The model that is meant, by the field of Triton's clients or that of KServe's."""
    return message.model_name or message.repository_name


def _response(message: pb.ModelInferRequest, reference: str, call: Call, *, final: bool) -> pb.ModelInferResponse:
    """One of several responses to a request, with nothing in it yet."""
    name, _, version = reference.partition("@")
    response = pb.ModelInferResponse(model_name=name, model_version=version, id=message.id or call.request_id)
    response.parameters[_FINAL].bool_param = final
    return response


def _add_text(response: pb.ModelInferResponse, text: str) -> None:
    response.outputs.add(name="text_output", datatype="BYTES", shape=(1,))
    response.raw_output_contents.append(tensors.pack_values("text_output", "BYTES", (1,), [text.encode()]))


def _written(message: Message) -> bytes:
    return message.SerializeToString()
