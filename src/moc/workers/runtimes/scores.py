"""Log-probabilities of a given text, asked and told as OpenAI's completions do: `echo` with `logprobs`."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from moc.inference.request import Buffer
from moc.kernel.errors import InvalidRequest, Unimplemented
from moc.workers.runtimes.prompts import listed

PROMPTS_MAX = 64
TOP_MAX = 20

_encode = msgspec.json.Encoder().encode


class EchoRequest(msgspec.Struct, kw_only=True):
    """Texts or tokens whose own probabilities are wanted, with the `logprobs` likeliest tokens at each place.

    `echo_from` is ours: the character of the text from which on they are. What stands before it is read much faster.
    `max_tokens` may be 1 for the likeliest token behind the text.
    """

    prompt: Any
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=TOP_MAX)] | None = None
    echo_from: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_tokens: int | None = None
    stream: bool | None = None
    n: int | None = None

    def prompts(self) -> "list[str | list[int]]":
        """Each prompt; InvalidRequest for none or too many, Unimplemented for what is not done with them."""
        if self.logprobs is None:
            raise Unimplemented("`echo` is for log-probabilities here; ask for them with `logprobs`")
        if self.max_tokens not in (0, 1):
            raise Unimplemented("with `echo` this engine tells of the prompt; say `max_tokens: 0`, or 1")
        if self.stream or self.n not in (None, 1):
            raise Unimplemented(
                "with `echo` there is one answer to a prompt, and it comes whole; leave out stream and n"
            )
        prompts = listed(self.prompt, "prompt")
        if not 0 < len(prompts) <= PROMPTS_MAX:
            raise InvalidRequest(f"there are {len(prompts)} prompts; 1 to {PROMPTS_MAX} are scored at once")
        return prompts

    def known(self, text: str, starts: Sequence[int]) -> int:
        """How many tokens that begin at `starts` are only read; nothing says how likely the first of all is."""
        spans = zip(starts, [*starts[1:], len(text)], strict=True)
        # several tokens may share a character: they begin where they end
        wanted = (at for at, (start, end) in enumerate(spans) if end > self.echo_from or start >= self.echo_from)
        return max(1, next(wanted, len(starts)))


def read_echo(body: Buffer) -> EchoRequest:
    """The request; InvalidRequest when it is not one."""
    try:
        return msgspec.json.decode(body, type=EchoRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the request is not right: {error}") from None


@dataclass(frozen=True, slots=True)
class Score:
    """A token that begins at the character `offset` of the text, and how likely it was there; None if nobody asked."""

    token: str
    offset: int
    logprob: float | None = None
    top: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A prompt's text with the scores of its tokens, of which the last `added` came behind it."""

    text: str
    scores: Sequence[Score]
    added: int = 0


def answer(model: str, scored: Sequence[Scored]) -> bytes:
    """The document that tells it."""
    total, added = sum(len(one.scores) for one in scored), sum(one.added for one in scored)
    document = {
        "id": f"cmpl-{secrets.token_hex(16)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [_choice(index, one) for index, one in enumerate(scored)],
        "usage": {"prompt_tokens": total - added, "completion_tokens": added, "total_tokens": total},
    }
    return _encode(document)


def _choice(index: int, scored: Scored) -> dict[str, Any]:
    logprobs = {
        "tokens": [score.token for score in scored.scores],
        "token_logprobs": [score.logprob for score in scored.scores],
        "top_logprobs": [score.top for score in scored.scores],
        "text_offset": [score.offset for score in scored.scores],
    }
    return {"index": index, "text": scored.text, "logprobs": logprobs, "finish_reason": "length"}


def offsets(text: str, pieces: Sequence[bytes]) -> list[int]:
    """At which character of the text each token begins; one that is no part of it stands where the next one does.

    Of a character that several tokens share each begins at that character.
    """
    data = text.encode("utf-8")
    # the character that each byte belongs to
    places = [at for at, character in enumerate(text) for _ in character.encode("utf-8")]
    places.append(len(text))
    found, at = [], 0
    for piece in pieces:
        found.append(places[at])
        if data.startswith(piece, at):
            at += len(piece)
        elif piece.startswith(b" ") and data.startswith(piece[1:], at):  # some tokenizers put a space before the text
            at += len(piece) - 1
    return found
