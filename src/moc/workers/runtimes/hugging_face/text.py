"""Text out of tokens as they come: never half a character, never past a stop."""

from collections.abc import Callable, Sequence

HALF = "\ufffd"


class Text:
    """Takes tokens one by one; `push` gives the text that is certain by now.

    Tokens are decoded with those just before them, because how a token reads depends on them. What could be the
    beginning of a stop is held back until it is known not to be one.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = tuple(stops)
        self._tokens: list[int] = []
        self._begin = 0
        self._given = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """One more token; sets `stopped` when it completes a stop, of which nothing is given."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._begin : self._given])
        now = self._decode(self._tokens[self._begin :])
        if now.endswith(HALF) or len(now) <= len(before):
            return ""
        self._begin, self._given = self._given, len(self._tokens)
        return self._release(now[len(before) :])

    def end(self) -> str:
        """What was held back, now that no more comes; nothing when it was stopped."""
        if self.stopped:
            return ""
        before = self._decode(self._tokens[self._begin : self._given])
        rest = self._decode(self._tokens[self._begin :])[len(before) :]
        certain = self._release(rest)  # which may stop it after all
        held, self._held = self._held, ""
        return certain + held

    def _release(self, text: str) -> str:
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`, without being all of it."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
