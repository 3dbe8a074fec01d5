"""The public API as an evaluation uses it: asked again while it has no room, and told apart from a wrong request."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import msgspec

from moc.client.calls import Answer, Call, StreamCall, post
from moc.client.connection import AsyncConnection
from moc.client.views import Document
from moc.kernel.errors import (
    Cancelled,
    CircuitOpen,
    DeadlineExceeded,
    DeadlineUnreachable,
    Forbidden,
    Internal,
    InvalidRequest,
    MocError,
    NoCapacity,
    NotFound,
    NotLeader,
    QueueFull,
    RateLimited,
    StoreUnavailable,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    WorkerLost,
)
from moc.learning.suite import Message
from moc.workers.trainers.assignment import Away

OUTAGES: Final = (NoCapacity, NotLeader, QueueFull, RateLimited, StoreUnavailable, Unavailable)
"""What may go better later; being unreachable is one of them."""

TRANSIENT: Final = (*OUTAGES, CircuitOpen, DeadlineExceeded, DeadlineUnreachable, WorkerLost)
"""What may go better in a moment."""

HOPELESS: Final = (Cancelled, Forbidden, NotFound, Unauthenticated, Unimplemented)
"""What goes no better for any other item."""

RETRY_FOR_S: Final = 120.0
PAUSE_S: Final = 0.2
PAUSE_MAX_S: Final = 5.0
TIMEOUT_S: Final = 600.0
DONE: Final = b"[DONE]"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer: its text, how long it took, and from which version it is."""

    text: str = ""
    tokens: int = 0
    latency_ms: float = 0.0
    first_token_ms: float | None = None
    model: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """The log-probabilities of a text's tokens behind some place, and whether each was the likeliest."""

    logprobs: tuple[float, ...]
    greedy: bool
    latency_ms: float = 0.0
    model: str = ""
    digest: str = ""


class Endpoint:
    """One model behind the API; `stopped` tells whether to go on asking.

    Away when an outage has lasted for `retry_for_s` and keeps all from being answered, not only what was asked.
    """

    def __init__(
        self, line: AsyncConnection, model: str, stopped: Callable[[], bool], *, retry_for_s: float = RETRY_FOR_S
    ) -> None:
        self._line = line
        self._model = model
        self._stopped = stopped
        self._retry_for_s = retry_for_s

    @classmethod
    def of_visitor(cls, model: str, stopped: Callable[[], bool]) -> Self:
        """With the address and the key that the job was given."""
        key = Path(os.environ["MOC_API_KEY_FILE"]).read_text().strip()
        return cls(AsyncConnection(os.environ["MOC_URL"], key, None, TIMEOUT_S), model, stopped)

    async def aclose(self) -> None:
        """Close the line; idempotent."""
        await self._line.aclose()

    async def answer(self, prompt: str | Sequence[Message], how: Mapping[str, Any], *, chat: bool) -> Reply:
        """What the model says to it."""
        document, headers, took_ms = await self._asked(*_question(prompt, chat), how)
        choice = document["choices"][0]
        text = choice["message"].get("content") if chat else choice["text"]
        return Reply(
            text=text or "",
            tokens=int((document.get("usage") or {}).get("completion_tokens") or 0),
            latency_ms=took_ms,
            model=headers.get("x-moc-model", ""),
            digest=headers.get("x-moc-digest", ""),
        )

    async def timed(self, prompt: str | Sequence[Message], how: Mapping[str, Any], *, chat: bool) -> Reply:
        """What the model says to it, with the moment of the first token."""
        path, asked = _question(prompt, chat)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        call = StreamCall(post(path, {**how, **asked, **options, "model": self._model}), _read_item, DONE)
        return await self._patiently(lambda: self._watch(call))

    async def likelihood(self, text: str, begin: int, *, whole: bool = False) -> Likelihood:
        """How likely a text is from the character `begin` on; InvalidRequest when there is nothing to score.

        If the `whole` text is meant, its first token too: Unimplemented unless the engine puts a token before it.
        """
        asked = {"prompt": text, "echo": True, "max_tokens": 0, "logprobs": 1, "temperature": 0}
        if begin:
            asked["echo_from"] = begin  # ours alone; others leave it out of account, and score more than is used
        document, headers, took_ms = await self._asked("/v1/completions", asked, {})
        told = document["choices"][0].get("logprobs") or {}
        if not told.get("token_logprobs"):
            raise Unimplemented(f"the engine of {self._model} tells no log-probabilities of a given text")
        starts = told["text_offset"]
        if whole and not _is_led(starts, told["tokens"]):
            raise Unimplemented(
                f"the engine of {self._model} puts no token before a text, so it cannot say how likely one is that "
                "stands behind nothing, as `acc_mutual_info` asks"
            )
        spans = zip(starts, [*starts[1:], len(text)], strict=True)  # tokens that share a character begin where they end
        seen = [
            (logprob, token, top)
            for token, logprob, top, (start, end) in zip(
                told["tokens"], told["token_logprobs"], told["top_logprobs"], spans, strict=True
            )
            if logprob is not None and (end > begin or start >= begin)
        ]
        if not seen:
            raise InvalidRequest("there is nothing to score: a text needs a token behind its first, a continuation one")
        return Likelihood(
            logprobs=tuple(logprob for logprob, _, _ in seen),
            greedy=all(max(top, key=top.__getitem__) == token for _, token, top in seen if top),
            latency_ms=took_ms,
            model=headers.get("x-moc-model", ""),
            digest=headers.get("x-moc-digest", ""),
        )

    async def _asked(
        self, path: str, asked: Mapping[str, Any], how: Mapping[str, Any]
    ) -> tuple[Document, Mapping[str, str], float]:
        call = Call(post(path, {**how, **asked, "model": self._model}), _read)

        async def once() -> tuple[Document, Mapping[str, str], float]:
            began = time.monotonic()
            document, headers = await self._line.send(call)
            return document, headers, (time.monotonic() - began) * 1000

        return await self._patiently(once)

    async def _watch(self, call: StreamCall[Document]) -> Reply:
        began, first, texts, tokens = time.monotonic(), None, [], 0
        async with await self._line.open(call) as chunks:
            headers = chunks.headers
            async for chunk in chunks:
                tokens = int((chunk.get("usage") or {}).get("completion_tokens") or tokens)
                for choice in chunk.get("choices", ()):
                    text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                    if text and first is None:
                        first = (time.monotonic() - began) * 1000
                    texts.append(text)
        took_ms = (time.monotonic() - began) * 1000
        return Reply(
            text="".join(texts),
            tokens=tokens,
            latency_ms=took_ms,
            first_token_ms=first,
            model=headers.get("x-moc-model", ""),
            digest=headers.get("x-moc-digest", ""),
        )

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until there is an answer, or no hope of one."""
        until, pause_s = time.monotonic() + self._retry_for_s, PAUSE_S
        while not self._stopped():
            try:
                return await ask()
            except TRANSIENT as error:
                if time.monotonic() > until:
                    if isinstance(error, OUTAGES) and await self._is_away():
                        raise Away(error.message) from error
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_MAX_S, pause_s * 2)
        raise Cancelled("the evaluation was stopped")

    async def _is_away(self) -> bool:
        """Whether it answers nothing, so that what was asked is not to blame."""
        path, asked = _question("Hello", chat=True)
        try:
            await self._line.send(Call(post(path, {**asked, "max_tokens": 1, "model": self._model}), _read))
        except OUTAGES:
            return True
        except MocError:
            return False  # it refuses this one
        return False


def _question(prompt: str | Sequence[Message], chat: bool) -> tuple[str, dict[str, Any]]:
    if not chat:
        return "/v1/completions", {"prompt": prompt}
    messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
    return "/v1/chat/completions", {"messages": messages}


def _is_led(starts: Sequence[int], tokens: Sequence[str]) -> bool:
    """Whether the first token is none of the text; one that shares the first character with the next is of it."""
    return len(starts) > 1 and starts[1] == 0 and "\N{REPLACEMENT CHARACTER}" not in tokens[0]


def _read(answer: Answer) -> tuple[Document, Mapping[str, str]]:
    document = _read_item(answer.body)
    if not document.get("choices"):
        raise Internal("the answer has no choices")
    return document, answer.headers


def _read_item(data: bytes) -> Document:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Internal(f"the answer is no JSON object: {error}") from None


def is_hopeless(error: MocError) -> bool:
    """Whether every other item would meet the same."""
    return isinstance(error, HOPELESS)
