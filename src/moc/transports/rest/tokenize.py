"""The tokens of a text or a conversation, as vLLM's API has it."""

from typing import Any, Final

import msgspec
from msgspec import Struct

from moc.kernel.errors import NotFound
from moc.service.inference import Request
from moc.service.services import Services
from moc.transports.rest.body import decoded
from moc.transports.rest.chat import model_not_found
from moc.transports.rest.exchange import Exchange, inference_headers
from moc.transports.rest.operation import Operation


class TokenizeRequest(Struct):
    """Either a `prompt` or `messages`; these end where the answer would begin if `add_generation_prompt`."""

    model: str
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class Tokens(Struct):
    """How many there are, how many one request may have, and which they are."""

    count: int
    max_model_len: int
    tokens: list[int]


_decoder: Final = msgspec.json.Decoder(TokenizeRequest)


class Tokenize:
    """The endpoint."""

    def __init__(self, services: Services) -> None:
        self._inference = services.inference

    def operations(self) -> list[Operation]:
        """Its route."""
        return [
            Operation(
                method="POST",
                path="/tokenize",
                handle=self._answer,
                summary="Make tokens of a text or a conversation",
                body=TokenizeRequest,
                answer=Tokens,
            )
        ]

    async def _answer(self, exchange: Exchange) -> None:
        body = await exchange.body()
        model = decoded(_decoder, body).model
        request, terms = Request("tokenize", body, headers=exchange.headers), exchange.terms()
        try:
            with exchange.watch():
                answer = await self._inference.infer(exchange.identity, model, request, terms)
        except NotFound as error:
            raise model_not_found(error) from None
        await exchange.answer(200, answer.reply.body, headers=inference_headers(answer))
