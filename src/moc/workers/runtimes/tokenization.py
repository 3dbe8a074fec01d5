"""The request for tokens of a text or a conversation, and its answer: those of vLLM's `/tokenize`."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from moc.inference.request import Buffer, Reply
from moc.kernel.errors import InvalidRequest


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """A `prompt`, with what the model wants around it if `add_special_tokens`; or `messages`, in the model's own form.

    These end where the answer would begin if `add_generation_prompt`.
    """

    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


_decoder = msgspec.json.Decoder(TokenizeRequest)
_encode = msgspec.json.Encoder().encode


def read_tokenize(body: Buffer) -> TokenizeRequest:
    """What is asked; InvalidRequest when that is not one text or one conversation."""
    try:
        asked = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the request is not right: {error}") from None
    if (asked.prompt is None) == (asked.messages is None):
        raise InvalidRequest("give either `prompt` or `messages` to make tokens of")
    return asked


def tokenized(tokens: Sequence[int], room: int) -> Reply:
    """The answer; `room` is how many tokens one request may have."""
    return Reply(_encode({"count": len(tokens), "max_model_len": room, "tokens": tokens}))
