"""Log-probabilities of a given text from a causal language model."""

from collections.abc import Callable, Iterator, Sequence

import torch

from moc.kernel.errors import Cancelled
from moc.workers.runtimes.hugging_face.engine import Engine
from moc.workers.runtimes.scores import EchoRequest, Score, Scored

BLOCK = 256
"""How many tokens are read at once: the scores of all tokens there are, for each of them, must fit into memory."""


class Scorer:
    """Scores texts as a request wants it; `wanted` tells whether somebody still waits for them."""

    def __init__(self, engine: Engine, request: EchoRequest, wanted: Callable[[], bool]) -> None:
        self._engine = engine
        self._request = request
        self._wanted = wanted

    def of(self, prompt: str | list[int]) -> Scored:
        """The scores of one prompt; blocks. Cancelled when nobody waits any more."""
        tokens = self._engine.tokens
        if isinstance(prompt, str):
            text = prompt
            ids, starts = tokens.encode_where(text, special=True)
        else:
            text, ids = tokens.name(prompt), prompt
            usual, starts = tokens.encode_where(text, special=False)
            if usual != ids:  # the text could have been cut otherwise
                starts = [len(tokens.name(ids[:count])) for count in range(len(ids))]
        ids = self._engine.checked(ids, "the prompt")
        known = self._request.known(text, starts)
        scores = [Score(tokens.name([token]), start) for token, start in zip(ids[:known], starts[:known], strict=True)]
        rows = self._rows(ids, known)
        # the rows come last, so that none is taken for which there is no token
        for token, start, row in zip(ids[known:], starts[known:], rows, strict=False):
            scores.append(self._score(token, start, row))
        if not self._request.max_tokens:
            return Scored(text, scores)
        row = next(rows)
        added = self._score(int(row.argmax()), len(text), row)
        return Scored(text + added.token, [*scores, added], added=1)

    def _rows(self, ids: Sequence[int], known: int) -> Iterator[torch.Tensor]:
        """How likely each token is, in place of each of `ids` behind the first `known`, and behind the last."""
        past = None
        for begin in range(0, len(ids), BLOCK):
            if not self._wanted():
                raise Cancelled("nobody waits for these scores any more")
            block = ids[begin : begin + BLOCK]
            with self._engine.computing():
                given = torch.tensor([block], device=self._engine.device)
                read = self._engine.network(given, past_key_values=past, use_cache=True)
                past = read.past_key_values
                logits = read.logits[0, max(0, known - 1 - begin) :].float()
                likely = torch.log_softmax(logits, dim=-1)
            yield from likely

    def _score(self, token: int, start: int, row: torch.Tensor) -> Score:
        tokens = self._engine.tokens
        count = min(self._request.logprobs or 0, len(row))
        values, likeliest = row.topk(count)
        top = {tokens.name([int(one)]): float(value) for one, value in zip(likeliest, values, strict=True)}
        return Score(tokens.name([token]), start, float(row[token]), top)
