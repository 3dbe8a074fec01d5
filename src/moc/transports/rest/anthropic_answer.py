"""A chat answer as a message of Anthropic's API, whole or in events. Pure: nothing here is asked or answered."""

from typing import Any, Final

import msgspec

from moc.kernel.errors import Internal, MocError
from moc.kernel.ids import new_id
from moc.transports.rest.chat import ChatAnswer, Said, ToolCall, Usage, answer_in
from moc.transports.rest.streaming import event, typed_event

Fields = dict[str, Any]

_REASONS: Final = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_input_decoder: Final = msgspec.json.Decoder(Fields)


def message_of(answer: ChatAnswer, reference: str) -> Fields:
    """The whole answer."""
    if not answer.choices:
        raise Internal("the model answered without a message")
    choice = answer.choices[0]
    return {
        **_message(reference),
        "content": _blocks(choice.said),
        "stop_reason": _reason(choice.finish_reason),
        "usage": _usage(answer.usage),
    }


class MessageTeller:
    """Tells an answer in blocks, one after the other: text, and calls of tools."""

    def __init__(self) -> None:
        self._open: Fields | None = None
        self._call: int | None = None
        self._blocks = 0
        self._reason: str | None = None
        self._usage: Usage | None = None

    def begin(self, reference: str) -> bytes:
        """The message without its content; how many tokens were read is told at the end."""
        return typed_event({"type": "message_start", "message": _message(reference)})

    def piece(self, data: bytes) -> bytes:
        """What a chunk adds."""
        chunk = answer_in(data)
        self._usage = chunk.usage or self._usage
        parts: list[bytes] = []
        for choice in chunk.choices:
            self._reason = choice.finish_reason or self._reason
            if choice.said.content:
                parts.append(self._text(choice.said.content))
            parts += [self._tool_use(call) for call in choice.said.tool_calls or ()]
        return b"".join(parts)

    def end(self) -> bytes:
        """The last block's end, then why and after how much the message ends."""
        delta = {"stop_reason": _reason(self._reason), "stop_sequence": None}
        last = {"type": "message_delta", "delta": delta, "usage": _usage(self._usage)}
        return self._close() + typed_event(last) + typed_event({"type": "message_stop"})

    def fail(self, error: MocError, body: bytes) -> bytes:
        """An `error` event."""
        return b"event: error\n" + event(body)

    def _text(self, text: str) -> bytes:
        head = b""
        if self._open is None or self._open["type"] != "text":
            head = self._begin({"type": "text", "text": ""})
        return head + self._delta({"type": "text_delta", "text": text})

    def _tool_use(self, call: ToolCall) -> bytes:
        index = call.index or 0
        head = b""
        if self._open is None or self._open["type"] != "tool_use" or self._call != index:
            self._call = index
            head = self._begin(_tool_use(call, {}))
        if not call.function.arguments:
            return head
        return head + self._delta({"type": "input_json_delta", "partial_json": call.function.arguments})

    def _begin(self, block: Fields) -> bytes:
        closed = self._close()
        self._open = block
        return closed + typed_event({"type": "content_block_start", "index": self._blocks, "content_block": block})

    def _delta(self, delta: Fields) -> bytes:
        return typed_event({"type": "content_block_delta", "index": self._blocks, "delta": delta})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        self._blocks += 1
        return typed_event({"type": "content_block_stop", "index": self._blocks - 1})


def _message(reference: str) -> Fields:
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": reference,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(None),
    }


def _blocks(said: Said) -> list[Fields]:
    blocks: list[Fields] = [{"type": "text", "text": said.content}] if said.content else []
    return blocks + [_tool_use(call, _input(call)) for call in said.tool_calls or ()]


def _tool_use(call: ToolCall, given: Fields) -> Fields:
    return {"type": "tool_use", "id": call.id or new_id("toolu"), "name": call.function.name or "", "input": given}


def _input(call: ToolCall) -> Fields:
    try:
        return _input_decoder.decode(call.function.arguments or "{}")
    except msgspec.DecodeError:
        raise Internal(f"the model called {call.function.name!r} with what is not JSON; ask again") from None


def _reason(finish_reason: str | None) -> str:
    return _REASONS.get(finish_reason or "stop", "end_turn")


def _usage(usage: Usage | None) -> Fields:
    if usage is None:
        return {"input_tokens": 0, "output_tokens": 0}
    cached = usage.cached_tokens
    return {
        "input_tokens": usage.prompt_tokens - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }
