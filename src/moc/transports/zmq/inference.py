"""Actions that run a model: on tensors, on a prompt, on a conversation, on texts to embed."""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, Raw, UnsetType

from moc.kernel.errors import InvalidRequest
from moc.service.inference import Answer, InferenceService, Kind, Request, Tensor
from moc.transports.oip import tensors
from moc.transports.oip.message import InferInput, InferRequest, Wanted, asked, response_to, wanted_by
from moc.transports.oip.request import check_inputs, refuse
from moc.transports.zmq.call import Action, Call, Emit, Outcome
from moc.transports.zmq.message import JSON


class InferPayload(InferRequest, kw_only=True, gc=False):
    """Inputs as the Open Inference Protocol has them, or a prompt with the options of a completion."""

    model: str
    inputs: list[InferInput] = msgspec.field(default_factory=list)
    prompt: Raw | UnsetType = UNSET
    stream: bool | None = None


class TextPayload(msgspec.Struct, gc=False):
    """All that is read here of what goes to the engine as it came."""

    model: str
    stream: bool | None = None


def inference_actions(inference: InferenceService) -> Mapping[str, Action]:
    """`infer`, `chat` and `embed`."""
    running = _Running(inference)
    return {
        "infer": Action(handle=running.infer),
        "chat": Action(handle=running.chat),
        "embed": Action(handle=running.embed),
    }


class _Running:
    def __init__(self, inference: InferenceService) -> None:
        self._inference = inference

    async def infer(self, call: Call) -> Outcome:
        payload = call.read(InferPayload)
        if (payload.prompt is UNSET) == (not payload.inputs):
            raise InvalidRequest("a payload of infer has either `inputs` or a `prompt`")
        if not payload.inputs:
            return await self._text(call, "completion", payload.model, stream=bool(payload.stream))
        wanted = _wanted(call, payload)
        terms = wanted.haste.on(call.terms)
        answer = await self._inference.infer(call.identity, payload.model, wanted.request, terms)
        response, frames = response_to(wanted, answer, call.request_id)
        return Outcome(response, frames, answer)

    async def chat(self, call: Call) -> Outcome:
        payload = call.read(TextPayload)
        return await self._text(call, "chat", payload.model, stream=bool(payload.stream))

    async def embed(self, call: Call) -> Outcome:
        return _document(call, await self._ask(call, "embeddings", call.read(TextPayload).model, call.document()))

    async def _text(self, call: Call, kind: Kind, model: str, *, stream: bool) -> Outcome:
        _no_tensors(call)
        if stream and call.emit is not None:
            return await self._stream(call, call.emit, kind, model)
        body = call.document(stream=False) if stream else call.document()
        return _document(call, await self._ask(call, kind, model, body))

    async def _ask(self, call: Call, kind: Kind, model: str, body: tensors.Buffer) -> Answer:
        return await self._inference.infer(call.identity, model, Request(kind, body), call.terms)

    async def _stream(self, call: Call, emit: Emit, kind: Kind, model: str) -> Outcome:
        stream = await self._inference.stream(call.identity, model, Request(kind, call.document()), call.terms)
        try:
            async for piece in stream:
                await emit(call.form.document(piece))
        finally:
            await stream.aclose()
        return Outcome(source=stream)


def _document(call: Call, answer: Answer) -> Outcome:
    return Outcome(call.form.document(answer.reply.body), (), answer)


def _no_tensors(call: Call) -> None:
    if call.tensors:
        raise InvalidRequest(f"{len(call.tensors)} frames follow the message, but it has no inputs to put them in")


def _wanted(call: Call, payload: InferPayload) -> Wanted:
    """What is to be run; tensors are in the JSON, or all in the frames behind msgpack, and so is the answer's."""
    if call.form is JSON:
        _no_tensors(call)
        wanted = wanted_by(payload, b"")
        if wanted.binary or any(wanted.binary_outputs.values()):
            raise InvalidRequest("a message in JSON is answered in JSON; ask in msgpack for binary tensors")
        return wanted
    wanted = asked(payload, *_framed(payload.inputs, call.tensors))
    wanted.binary, wanted.binary_outputs = True, {}
    return wanted


def _framed(inputs: Sequence[InferInput], frames: Sequence[memoryview]) -> tuple[tuple[Tensor, ...], tensors.Buffer]:
    """The tensors described, and their bytes back to back: of one tensor its own frame, not copied."""
    if len(inputs) != len(frames):
        raise InvalidRequest(f"{len(inputs)} inputs are described, but {len(frames)} frames follow the message")
    described = []
    for given, frame in zip(inputs, frames, strict=True):
        if given.data is not UNSET:
            raise InvalidRequest(f"input {given.name!r} has `data`; in msgpack its bytes are a frame of their own")
        refuse(given.name, given.parameters)
        tensors.check(given.name, given.datatype, given.shape, frame)
        described.append(Tensor(given.name, given.datatype, given.shape, len(frame)))
    if len(frames) == 1:
        return tuple(described), frames[0]
    check_inputs(described)
    return tuple(described), b"".join(frames)
