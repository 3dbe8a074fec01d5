"""Anthropic's messages API, on the same models: a request becomes a chat, its answer a message."""

from typing import Final

from moc.service.services import Services
from moc.transports.rest.anthropic_answer import MessageTeller, message_of
from moc.transports.rest.anthropic_request import MessagesRequest, chat_fields, request_decoder
from moc.transports.rest.body import decoded
from moc.transports.rest.chat import Chat, converse
from moc.transports.rest.exchange import Exchange
from moc.transports.rest.operation import Operation

_ANSWER: Final = {"type": "object", "required": ["id", "type", "role", "content", "stop_reason", "usage"]}


class Anthropic:
    """The endpoint."""

    def __init__(self, services: Services) -> None:
        self._inference = services.inference

    def operations(self) -> list[Operation]:
        """Its route."""
        return [
            Operation(
                method="POST",
                path="/v1/messages",
                handle=self._answer,
                summary="Continue a conversation",
                body=MessagesRequest,
                answer=_ANSWER,
                media=("application/json", "text/event-stream"),
            )
        ]

    async def _answer(self, exchange: Exchange) -> None:
        request = decoded(request_decoder, await exchange.body())
        chat = Chat(
            model=request.model,
            fields=chat_fields(request),
            whole=message_of,
            teller=MessageTeller() if request.stream else None,
        )
        await converse(exchange, self._inference, chat)
