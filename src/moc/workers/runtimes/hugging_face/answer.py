"""OpenAI answers to chat and completion requests: in one piece, or as the chunks of a stream."""

import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an answer came to its end, and the tokens it took."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        """As the API counts."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Answer:
    """The documents of one answer; `chat` says of which kind."""

    def __init__(self, model: str, *, chat: bool) -> None:
        self._chat = chat
        self._begun = False
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, outcome: Outcome) -> bytes:
        """The answer in one piece."""
        held = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return self._document(self._choice(held, outcome.reason), whole=True, usage=outcome.usage)

    def piece(self, text: str) -> bytes:
        """The chunk with the next piece of text."""
        return self._document(self._choice(self._part(text), None))

    def last(self, outcome: Outcome, *, with_usage: bool) -> list[bytes]:
        """The chunks behind the text."""
        ended = self._document(self._choice(self._part(""), outcome.reason))
        return [ended, self._document(usage=outcome.usage)] if with_usage else [ended]

    def _part(self, text: str) -> dict[str, Any]:
        if not self._chat:
            return {"text": text}
        delta = {"content": text} if text or not self._begun else {}
        if not self._begun:
            self._begun, delta = True, {"role": "assistant", **delta}
        return {"delta": delta}

    def _choice(self, held: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": 0, **held, "logprobs": None, "finish_reason": reason}

    def _document(self, *choices: dict[str, Any], whole: bool = False, **more: Any) -> bytes:
        kind = "text_completion" if not self._chat else "chat.completion" if whole else "chat.completion.chunk"
        return _encode({**self._head, "object": kind, "choices": choices, **more})
