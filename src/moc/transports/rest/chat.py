"""Chats in the words of another API: what an engine is asked, and what is read of its answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from moc.kernel.errors import Internal, NotFound
from moc.service.inference import InferenceService, Request
from moc.transports.rest.exchange import Exchange, inference_headers
from moc.transports.rest.streaming import Teller, tell_stream


class Function(msgspec.Struct):
    """What a model wants to be called; in a chunk, more of it."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """One call; `index` tells the calls of an answer apart while they come in chunks."""

    index: int | None = None
    id: str | None = None
    function: Function = msgspec.field(default_factory=Function)


class Said(msgspec.Struct):
    """A message, or what a chunk adds to it."""

    content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct):
    """The answer: `message` when it is whole, `delta` in a chunk."""

    message: Said | None = None
    delta: Said | None = None
    finish_reason: str | None = None

    @property
    def said(self) -> Said:
        """Whichever of the two there is."""
        return self.message or self.delta or Said()


class CachedTokens(msgspec.Struct):
    """Those of the prompt that had not to be read again."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """Tokens read and written."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: CachedTokens | None = None

    @property
    def cached_tokens(self) -> int:
        """Zero when the engine does not say."""
        details = self.prompt_tokens_details
        return 0 if details is None else details.cached_tokens or 0


class ChatAnswer(msgspec.Struct):
    """What is read of an answer, or of a chunk."""

    choices: list[Choice] = []
    usage: Usage | None = None


_decoder: Final = msgspec.json.Decoder(ChatAnswer)


def answer_in(document: bytes | bytearray | memoryview) -> ChatAnswer:
    """What an engine answered; Internal when that is no chat answer."""
    try:
        return _decoder.decode(document)
    except msgspec.DecodeError as error:
        raise Internal(f"the model answered something else than a chat answer: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A request as a chat, and the ways back.

    `fields` are those of an OpenAI chat request. `whole` makes the answer of the engine's and of the version that
    gave it; `teller` does so piece by piece when that is asked for.
    """

    model: str
    fields: dict[str, Any]
    whole: Callable[[ChatAnswer, str], Any]
    teller: Teller | None


async def converse(exchange: Exchange, inference: InferenceService, chat: Chat) -> None:
    """Ask the engine and answer the caller; a caller that leaves ends the engine's work."""
    fields = {**chat.fields, "model": chat.model}
    terms = exchange.terms()
    with exchange.watch():
        try:
            if chat.teller is not None:
                fields.update(stream=True, stream_options={"include_usage": True})
                request = Request("chat", msgspec.json.encode(fields), headers=exchange.headers)
                stream = await inference.stream(exchange.identity, chat.model, request, terms)
                await tell_stream(exchange, stream, chat.teller)
                return
            request = Request("chat", msgspec.json.encode(fields), headers=exchange.headers)
            answer = await inference.infer(exchange.identity, chat.model, request, terms)
        except NotFound as error:
            raise model_not_found(error) from None
    whole = chat.whole(answer_in(answer.reply.body), answer.reference)
    await exchange.answer(200, msgspec.json.encode(whole), headers=inference_headers(answer))


def model_not_found(error: NotFound) -> NotFound:
    """The same, as OpenAI's clients know it."""
    return NotFound(error.message, details={"code": "model_not_found", "param": "model"})
