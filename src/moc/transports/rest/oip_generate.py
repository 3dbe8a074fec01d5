"""The generate extension of the Open Inference Protocol: text in, text out."""

from functools import partial
from typing import Any, Final

import msgspec

from moc.kernel.errors import InvalidRequest
from moc.service.inference import Request
from moc.service.services import Services
from moc.transports.rest.body import decoded
from moc.transports.rest.exchange import Exchange, inference_headers
from moc.transports.rest.oip_message import Parameters
from moc.transports.rest.operation import MODEL, Operation, model_reference, versioned
from moc.transports.rest.streaming import send_stream


class GenerateRequest(msgspec.Struct):
    """A prompt; `parameters` go to the engine as those of a completion (`max_tokens`, `temperature`, ...)."""

    text_input: str
    id: str = ""
    parameters: Parameters = {}


class GenerateResponse(msgspec.Struct):
    """What the model wrote; while streaming, what it wrote since the last event."""

    id: str
    model_name: str
    model_version: str
    text_output: str


class _Choice(msgspec.Struct):
    text: str = ""


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []


_OURS: Final = frozenset({"model", "prompt", "stream"})
_request_decoder: Final = msgspec.json.Decoder(GenerateRequest)
_completion_decoder: Final = msgspec.json.Decoder(_Completion)


class Generation:
    """The endpoints of the extension."""

    def __init__(self, services: Services) -> None:
        self._inference = services.inference

    def operations(self) -> list[Operation]:
        """Its routes."""
        post = partial(Operation, method="POST", body=GenerateRequest, answer=GenerateResponse)
        streamed = partial(post, media=("text/event-stream",))
        return [
            *versioned(post(path=f"{MODEL}/generate", handle=self._generate, summary="Continue a text")),
            *versioned(
                streamed(path=f"{MODEL}/generate_stream", handle=self._generate_stream, summary="Continue, in pieces")
            ),
        ]

    async def _generate(self, exchange: Exchange) -> None:
        wanted = decoded(_request_decoder, await exchange.body())
        reference = model_reference(exchange)
        with exchange.watch():
            answer = await self._inference.infer(
                exchange.identity, reference, _completion(wanted, reference, stream=False), exchange.deadline()
            )
        text = _text(bytes(answer.reply.body))
        response = _response(wanted, exchange, answer.reference, text)
        await exchange.answer(200, response, headers=inference_headers(answer))

    async def _generate_stream(self, exchange: Exchange) -> None:
        wanted = decoded(_request_decoder, await exchange.body())
        reference = model_reference(exchange)
        with exchange.watch():
            stream = await self._inference.stream(
                exchange.identity, reference, _completion(wanted, reference, stream=True), exchange.deadline()
            )
            served = stream.reference
            await send_stream(exchange, stream, chunk=lambda piece: _response(wanted, exchange, served, _text(piece)))


def _completion(wanted: GenerateRequest, reference: str, *, stream: bool) -> Request:
    if clash := _OURS & wanted.parameters.keys():
        raise InvalidRequest(f"`parameters` may not have {sorted(clash)[0]!r}; the request itself says that")
    body: dict[str, Any] = {**wanted.parameters, "model": reference, "prompt": wanted.text_input, "stream": stream}
    return Request("completion", msgspec.json.encode(body))


def _text(document: bytes) -> str:
    return "".join(choice.text for choice in _completion_decoder.decode(document).choices)


def _response(wanted: GenerateRequest, exchange: Exchange, reference: str, text: str) -> bytes:
    name, _, version = reference.partition("@")
    return msgspec.json.encode(GenerateResponse(wanted.id or exchange.request_id, name, version, text))
