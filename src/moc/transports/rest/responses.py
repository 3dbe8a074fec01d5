"""OpenAI's responses API: a request becomes a chat, its answer a response. Nothing of it is kept."""

from functools import partial
from typing import Final

from moc.service.services import Services
from moc.transports.rest.body import decoded
from moc.transports.rest.chat import Chat, converse
from moc.transports.rest.exchange import Exchange
from moc.transports.rest.operation import Operation
from moc.transports.rest.responses_answer import ResponseTeller, response_of
from moc.transports.rest.responses_request import ResponsesRequest, chat_fields, request_decoder

_ANSWER: Final = {"type": "object", "required": ["id", "object", "status", "model", "output", "usage"]}


class Responses:
    """The endpoint."""

    def __init__(self, services: Services) -> None:
        self._inference = services.inference

    def operations(self) -> list[Operation]:
        """Its route."""
        return [
            Operation(
                method="POST",
                path="/v1/responses",
                handle=self._answer,
                summary="Answer in items",
                body=ResponsesRequest,
                answer=_ANSWER,
                media=("application/json", "text/event-stream"),
            )
        ]

    async def _answer(self, exchange: Exchange) -> None:
        request = decoded(request_decoder, await exchange.body())
        chat = Chat(
            model=request.model,
            fields=chat_fields(request),
            whole=partial(response_of, request),
            teller=ResponseTeller(request) if request.stream else None,
        )
        await converse(exchange, self._inference, chat)
