"""The OpenAI API. A request goes to the engine as it came, an answer comes back as the engine gave it."""

from datetime import datetime
from functools import partial
from typing import Any, Final

import msgspec

from moc.kernel.errors import NotFound
from moc.service.inference import Kind, Request
from moc.service.services import Services
from moc.transports.rest.body import decoded
from moc.transports.rest.chat import model_not_found
from moc.transports.rest.exchange import Exchange, inference_headers
from moc.transports.rest.operation import Operation
from moc.transports.rest.streaming import event, send_stream

DONE: Final = event(b"[DONE]")
_PAGE: Final = 1000


class Target(msgspec.Struct):
    """All that is read of a request here: whom it is for, and whether the answer is to come in pieces."""

    model: str
    stream: bool | None = None


class ModelCard(msgspec.Struct):
    """A model; `created` in seconds since the epoch."""

    id: str
    created: int
    object: str = "model"
    owned_by: str = "modelops"


class ModelCards(msgspec.Struct):
    """Every model."""

    data: list[ModelCard]
    object: str = "list"


def _schema(required: dict[str, Any], optional: dict[str, Any]) -> dict[str, Any]:
    properties = {
        "model": {"type": "string", "description": "`name`, `name@version` or an alias"},
        **required,
        **optional,
    }
    return {"type": "object", "required": ["model", *required], "properties": properties}


_STREAM: Final = {"stream": {"type": ["boolean", "null"], "description": "Answer in server-sent events"}}
_TEXTS: Final = {"anyOf": [{"type": "string"}, {"type": "array"}]}
_OBJECT: Final = {"type": "object"}
CHAT_REQUEST: Final = _schema({"messages": {"type": "array", "items": _OBJECT, "minItems": 1}}, _STREAM)
COMPLETION_REQUEST: Final = _schema({"prompt": _TEXTS}, _STREAM)
EMBEDDINGS_REQUEST: Final = _schema({"input": _TEXTS}, {})
_target_decoder: Final = msgspec.json.Decoder(Target)


class OpenAI:
    """The endpoints."""

    def __init__(self, services: Services) -> None:
        self._inference = services.inference
        self._models = services.models
        self._aliases = services.aliases

    def operations(self) -> list[Operation]:
        """Its routes."""
        post = partial(Operation, method="POST", answer=_OBJECT)
        streamed = partial(post, media=("application/json", "text/event-stream"))
        return [
            streamed(
                path="/v1/chat/completions",
                handle=partial(self._generate, "chat"),
                summary="Continue a conversation",
                body=CHAT_REQUEST,
            ),
            streamed(
                path="/v1/completions",
                handle=partial(self._generate, "completion"),
                summary="Continue a text",
                body=COMPLETION_REQUEST,
            ),
            post(path="/v1/embeddings", handle=self._embed, summary="Embed texts", body=EMBEDDINGS_REQUEST),
            Operation(method="GET", path="/v1/models", handle=self._list, summary="List models", answer=ModelCards),
            Operation(
                method="GET", path="/v1/models/{model}", handle=self._show, summary="Show a model", answer=ModelCard
            ),
        ]

    async def _generate(self, kind: Kind, exchange: Exchange) -> None:
        body = await exchange.body()
        target = decoded(_target_decoder, body)
        request = Request(kind, body, headers=exchange.headers)
        if target.stream:
            await self._stream(exchange, target.model, request)
        else:
            await self._answer(exchange, target.model, request)

    async def _embed(self, exchange: Exchange) -> None:
        body = await exchange.body()
        request = Request("embeddings", body, headers=exchange.headers)
        await self._answer(exchange, decoded(_target_decoder, body).model, request)

    async def _answer(self, exchange: Exchange, model: str, request: Request) -> None:
        terms = exchange.terms()
        try:
            with exchange.watch():
                answer = await self._inference.infer(exchange.identity, model, request, terms)
        except NotFound as error:
            raise model_not_found(error) from None
        await exchange.answer(200, answer.reply.body, headers=inference_headers(answer))

    async def _stream(self, exchange: Exchange, model: str, request: Request) -> None:
        terms = exchange.terms()
        with exchange.watch():
            try:
                stream = await self._inference.stream(exchange.identity, model, request, terms)
            except NotFound as error:
                raise model_not_found(error) from None
            await send_stream(exchange, stream, last=DONE)

    async def _list(self, exchange: Exchange) -> None:
        cards, after = [], None
        while True:
            page = await self._models.list(exchange.identity, after=after, limit=_PAGE)
            cards += [_card(view.name, view.created_at) for view in page.items]
            after = page.next
            if after is None:
                break
        cards += [_card(view.name, view.changed_at) for view in self._aliases.known(exchange.identity)]
        await exchange.answer_message(ModelCards(cards))

    async def _show(self, exchange: Exchange) -> None:
        reference = exchange.path("model")
        if self._aliases.is_alias(reference):
            since = (await self._aliases.show(exchange.identity, reference)).changed_at
        else:
            try:
                since = (await self._models.show(exchange.identity, reference)).created_at
            except NotFound as error:
                raise model_not_found(error) from None
        await exchange.answer_message(_card(reference, since))


def _card(model_id: str, since: str) -> ModelCard:
    return ModelCard(model_id, int(datetime.fromisoformat(since).timestamp()))
