"""The generate extension of the Open Inference Protocol: text in, text out."""

from functools import partial
from typing import Final

import msgspec

from moc.service.services import Services
from moc.transports.oip.request import Parameters, taken_from
from moc.transports.oip.text import completion, text_of
from moc.transports.rest.body import decoded
from moc.transports.rest.exchange import Exchange, inference_headers
from moc.transports.rest.operation import MODEL, Operation, reference_of, versioned
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


_request_decoder: Final = msgspec.json.Decoder(GenerateRequest)


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
        reference = reference_of(exchange)
        terms = taken_from(wanted.parameters).on(exchange.terms())
        request = completion(wanted.text_input, wanted.parameters, reference, stream=False)
        request.headers = exchange.headers
        with exchange.watch():
            answer = await self._inference.infer(exchange.identity, reference, request, terms)
        text = text_of(bytes(answer.reply.body))
        response = _response(wanted, exchange, answer.reference, text)
        await exchange.answer(200, response, headers=inference_headers(answer))

    async def _generate_stream(self, exchange: Exchange) -> None:
        wanted = decoded(_request_decoder, await exchange.body())
        reference = reference_of(exchange)
        terms = taken_from(wanted.parameters).on(exchange.terms())
        request = completion(wanted.text_input, wanted.parameters, reference, stream=True)
        request.headers = exchange.headers
        with exchange.watch():
            stream = await self._inference.stream(exchange.identity, reference, request, terms)
            served = stream.reference
            await send_stream(exchange, stream, chunk=lambda piece: _response(wanted, exchange, served, text_of(piece)))


def _response(wanted: GenerateRequest, exchange: Exchange, reference: str, text: str) -> bytes:
    name, _, version = reference.partition("@")
    return msgspec.json.encode(GenerateResponse(wanted.id or exchange.request_id, name, version, text))
