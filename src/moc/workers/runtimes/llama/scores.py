"""Log-probabilities of a given text from llama.cpp, which tells only those of what it answers.

So the text is asked of it as an answer: a grammar allows nothing but its tokens, one after the other, and what is told
of them is how likely they were before the grammar. A grammar cannot allow a token that ends an answer: such a one is
made the only likely one, in a request of its own. Of a token that is a part of a character nothing is told where it is
the answer's last, so it is looked up among all tokens there are; that takes some tenths of a second.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from moc.kernel.errors import Internal, InvalidRequest
from moc.workers.runtimes.llama.tokens import LlamaTokens, Token
from moc.workers.runtimes.scores import EchoRequest, Score, Scored, offsets

FORCED = 1e4
"""What is added to the logit of a token that is to be the next one, whatever the others are."""

EVERY = 2**24
"""As many of the likeliest tokens as there are."""

PLAIN = "a"
"""A text whose last token is a whole character to every tokenizer."""

Ask = Callable[[dict[str, Any]], Sequence[bytes]]
"""Ask the engine for a completion; the chunks of the answer. It raises what goes wrong."""


class _Top(msgspec.Struct):
    id: int
    logprob: float
    bytes: list[int] = []


class _Seen(_Top):
    top_logprobs: list[_Top] = []


class _Logprobs(msgspec.Struct):
    content: list[_Seen] = []


class _Choice(msgspec.Struct):
    logprobs: _Logprobs | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


_decode = msgspec.json.Decoder(_Chunk).decode


class LlamaScores:
    """Scores texts of up to `room` tokens. `kept` are fields of the request that the engine gets as they are."""

    def __init__(self, tokens: LlamaTokens, ask: Ask, request: EchoRequest, kept: dict[str, Any], *, room: int) -> None:
        self._tokens = tokens
        self._ask = ask
        self._request = request
        self._kept = kept
        self._room = room

    def of(self, prompt: str | list[int]) -> Scored:
        """The scores of one prompt; blocks."""
        text = prompt if isinstance(prompt, str) else self._tokens.decode(prompt)
        tokens = self._checked(self._tokens.encode(text) if isinstance(prompt, str) else self._pieces(text, prompt))
        pieces = [token.bytes for token in tokens]
        starts = offsets(text, pieces)
        known = self._request.known(text, starts)
        seen = [None] * known + self._seen(tokens, known)
        scores = [self._score(*one) for one in zip(pieces, starts, seen, strict=True)]
        if not self._request.max_tokens:
            return Scored(text, scores)
        added = self._added([token.id for token in tokens], len(text))
        return Scored(text + added.token, [*scores, added], added=1)

    def _checked(self, tokens: list[Token]) -> list[Token]:
        if not tokens:
            raise InvalidRequest("the prompt is empty; there is nothing to score")
        if len(tokens) + (self._request.max_tokens or 0) > self._room:
            raise InvalidRequest(
                f"the prompt has {len(tokens)} tokens; one request has a context of {self._room}: send less, "
                "or load the model with more"
            )
        return tokens

    def _pieces(self, text: str, ids: list[int]) -> list[Token]:
        """The tokens of these ids, though the text itself may be made of others."""
        usual = self._tokens.encode(text, special=False)
        if [token.id for token in usual] == ids:
            return usual
        return [Token(one, self._tokens.decode([one])) for one in ids]

    def _seen(self, tokens: Sequence[Token], known: int) -> "list[_Seen | None]":
        seen: list[_Seen | None] = []
        for run in _runs(tokens[known:]):
            ids = [token.id for token in tokens[: known + len(seen)]]
            got = self._forced(ids, run) if isinstance(run[0].piece, str) else self._hidden(ids, run[0])
            if [one.id for one in got] != [token.id for token in run]:
                raise Internal(f"llama.cpp told of {len(got)} tokens where {len(run)} were to be scored")
            seen += got
        return seen

    def _forced(self, ids: list[int], run: Sequence[Token]) -> list[_Seen]:
        """What the engine tells of a run that it cannot but answer."""
        if len(run) == 1:
            return self._continue(ids, 1, {"logit_bias": [[run[0].id, FORCED]]})
        grammar = "root ::= " + " ".join(f"<[{token.id}]>" for token in run)
        return self._continue(ids, len(run), {"grammar": grammar})

    def _hidden(self, ids: list[int], token: Token) -> list[_Seen]:
        """What the engine tells of a part of a character."""
        every = self._every(ids)
        return [_Seen(one.id, one.logprob, one.bytes, every) for one in every if one.id == token.id]

    def _added(self, ids: list[int], offset: int) -> Score:
        """The likeliest token behind `ids`."""
        told = self._continue(ids, 1, {})
        if told:
            return self._score(bytes(told[0].bytes), offset, told[0])
        every = self._every(ids)  # it is a part of a character
        return self._score(bytes(every[0].bytes), offset, _Seen(every[0].id, every[0].logprob, every[0].bytes, every))

    def _every(self, ids: list[int]) -> list[_Top]:
        """All tokens there are, the likeliest behind `ids` first: they are told of beside any token but such a part."""
        plain = self._tokens.encode(PLAIN, special=False)[-1]
        how = {"logit_bias": [[plain.id, FORCED]], "logprobs": EVERY}
        return [one for told in self._continue(ids, 1, how) for one in told.top_logprobs]

    def _continue(self, ids: list[int], count: int, how: dict[str, Any]) -> list[_Seen]:
        """What the engine tells of the `count` tokens behind `ids`."""
        body = {
            **self._kept,
            "prompt": ids,
            "max_tokens": count,
            "temperature": 0,
            "logprobs": max(1, self._request.logprobs or 0),
            "post_sampling_probs": False,
            **how,
        }
        chunks = [_decode(chunk) for chunk in self._ask(body)]
        told = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs is not None]
        return [one for logprobs in told for one in logprobs.content]

    def _score(self, piece: bytes, offset: int, seen: _Seen | None) -> Score:
        name = piece.decode(errors="replace")
        return Score(name, offset) if seen is None else Score(name, offset, seen.logprob, self._top(seen))

    def _top(self, seen: _Seen) -> dict[str, float]:
        top = seen.top_logprobs[: self._request.logprobs]
        return {bytes(one.bytes).decode(errors="replace"): one.logprob for one in top}


def _runs(tokens: Sequence[Token]) -> list[list[Token]]:
    """The tokens in order, those together that one grammar can allow."""
    runs: list[list[Token]] = []
    for token in tokens:
        if runs and not _is_alone(token) and not _is_alone(runs[-1][-1]):
            runs[-1].append(token)
        else:
            runs.append([token])
    return runs


def _is_alone(token: Token) -> bool:
    """Whether no grammar can allow it: a part of a character, or (to be sure) whatever looks like a mark."""
    piece = token.piece
    return not isinstance(piece, str) or not piece or (len(piece) > 2 and "<" in piece and piece.endswith(">"))
