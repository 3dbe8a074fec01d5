"""`moc.v1.Inference`."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import msgspec
import structlog

from moc.kernel.errors import InvalidRequest, MocError
from moc.service.inference import Request, Tensor, Terms
from moc.service.services import Services
from moc.transports.grpc.call import Call, Method, Stream, Unary
from moc.transports.grpc.messages import fields_of, read
from moc.transports.grpc.stubs.moc.v1 import inference_pb2 as pb
from moc.transports.oip import tensors
from moc.transports.oip.request import check_inputs, check_outputs
from moc.transports.status import unexpected

log = structlog.get_logger(__name__)

SERVICE: Final = "moc.v1.Inference"
ITEMS_MAX: Final = 1024
"""How many items of one stream are worked on at once; no more are read meanwhile."""


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


_OURS: Final = frozenset({"model", "messages", "stream"})
_chunk_decoder: Final = msgspec.json.Decoder(_Chunk)


class Inference:
    """The service's methods."""

    def __init__(self, services: Services) -> None:
        self._inference = services.inference

    def methods(self) -> dict[str, Method]:
        """By path."""
        found: dict[str, Method] = {
            "Infer": Unary(self._infer),
            "InferStream": Stream(self._infer_stream),
            "Chat": Stream(self._chat),
        }
        return {f"/{SERVICE}/{name}": method for name, method in found.items()}

    async def _infer(self, data: bytes, call: Call) -> bytes:
        message = read(pb.InferRequest, data)
        return (await self._answer(message, call, call.terms())).SerializeToString()

    async def _answer(self, message: pb.InferRequest, call: Call, terms: Terms) -> pb.InferResponse:
        answer = await self._inference.infer(call.identity, message.model, _request(message), terms)
        response = pb.InferResponse(model=answer.reference, digest=answer.digest, queue_ms=answer.queue_s * 1000)
        at, body = 0, bytes(answer.reply.body)
        for tensor in answer.reply.outputs:
            data = body[at : at + tensor.size]
            response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, data=data)
            at += tensor.size
        response.parameters.update(answer.reply.parameters)
        return response

    async def _infer_stream(self, requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes, None]:
        """Results as they come; a reader that does not keep up holds back the reading of more items."""
        room, done = asyncio.Semaphore(ITEMS_MAX), asyncio.Queue[bytes | None]()

        async def work(item: pb.InferItem) -> None:
            await done.put((await self._result(item, call)).SerializeToString())

        async def take_in() -> None:
            async with asyncio.TaskGroup() as tasks:
                async for data in requests:
                    for item in read(pb.InferBatch, data).items:
                        await room.acquire()
                        tasks.create_task(work(item))

        def over(_: asyncio.Task[None]) -> None:
            done.put_nowait(None)

        taking = asyncio.create_task(take_in())
        taking.add_done_callback(over)
        try:
            while (result := await done.get()) is not None:
                yield result
                room.release()
            await taking
        except ExceptionGroup as group:
            raise group.exceptions[0] from None  # of a batch that could not be read; items keep theirs to themselves
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    async def _result(self, item: pb.InferItem, call: Call) -> pb.InferResult:
        try:
            terms = call.terms()
            if item.deadline_ms > 0:
                terms = msgspec.structs.replace(terms, deadline=terms.deadline.sooner(item.deadline_ms / 1000))
            return pb.InferResult(id=item.id, response=await self._answer(item.request, call, terms))
        except MocError as error:
            failure = error
        except Exception as error:
            log.error("item failed", request_id=call.request_id, exc_info=error)
            failure = unexpected(call.request_id)
        return pb.InferResult(id=item.id, error=pb.Error(code=failure.code, message=failure.message))

    async def _chat(self, requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes, None]:
        async for data in requests:
            message = read(pb.ChatRequest, data)
            stream = await self._inference.stream(call.identity, message.model, _conversation(message), call.terms())
            call.tell_provenance(stream)
            async with contextlib.aclosing(stream):
                async for piece in stream:
                    yield _chat_chunk(piece).SerializeToString()
            return


def _request(message: pb.InferRequest) -> Request:
    if not message.inputs:
        raise InvalidRequest("the request has no `inputs`; give at least one")
    described = []
    for given in message.inputs:
        shape = tuple(given.shape)
        tensors.check_shape(given.name, shape)
        tensors.check(given.name, given.datatype, shape, given.data)
        described.append(Tensor(given.name, given.datatype, shape, len(given.data)))
    check_inputs(described)
    outputs = tuple(message.outputs)
    check_outputs(len(outputs), len(set(outputs)))
    body = b"".join([given.data for given in message.inputs])
    return Request("tensors", body, tuple(described), outputs, fields_of(message.parameters))


def _conversation(message: pb.ChatRequest) -> Request:
    """The OpenAI request that says the same."""
    parameters = fields_of(message.parameters)
    if clash := _OURS & parameters.keys():
        raise InvalidRequest(f"`parameters` may not have {sorted(clash)[0]!r}; the request itself says that")
    messages = [{"role": each.role, "content": each.content} for each in message.messages]
    body = {**parameters, "model": message.model, "messages": messages, "stream": True}
    return Request("chat", msgspec.json.encode(body))


def _chat_chunk(document: bytes) -> pb.ChatChunk:
    chunk = _chunk_decoder.decode(document)
    said = pb.ChatChunk(
        content="".join(choice.delta.content or "" for choice in chunk.choices),
        finish_reason="".join(choice.finish_reason or "" for choice in chunk.choices),
    )
    if chunk.usage is not None:
        said.usage.prompt_tokens = chunk.usage.prompt_tokens
        said.usage.completion_tokens = chunk.usage.completion_tokens
        said.usage.total_tokens = chunk.usage.total_tokens
    return said
