"""A whole chat or completion answer out of the chunks of a stream."""

from typing import Any

import msgspec

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode
_OBJECTS = {"chat.completion.chunk": "chat.completion"}


class Answer:
    """Takes the chunks of one choice in order; `whole` is what the engine would have answered in one piece."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choice: dict[str, Any] = {}
        self._logprobs: dict[str, list[Any]] | None = None

    def add(self, data: bytes) -> None:
        """One more chunk."""
        chunk = _decode(data)
        choices = chunk.pop("choices", [])
        self._top.update(chunk)
        for choice in choices:
            self._merge_choice(choice)

    def whole(self) -> bytes:
        """The answer as JSON."""
        top = {**self._top, "object": _OBJECTS.get(self._top.get("object", ""), self._top.get("object"))}
        if self._logprobs is not None:
            self._choice["logprobs"] = self._logprobs
        message = self._choice.get("message")
        if message is not None:
            calls = message.pop("tool_calls", None)
            if calls is not None:
                message["tool_calls"] = [_without_index(calls[index]) for index in sorted(calls)]
        return _encode({"choices": [self._choice] if self._choice else [], **top})

    def _merge_choice(self, choice: dict[str, Any]) -> None:
        delta, text, logprobs = choice.pop("delta", None), choice.pop("text", None), choice.pop("logprobs", None)
        self._choice.update(choice)
        if delta is not None:
            self._merge_delta(self._choice.setdefault("message", {"role": "assistant", "content": None}), delta)
        if text is not None:
            self._choice["text"] = self._choice.get("text", "") + text
            self._choice.setdefault("logprobs", None)
        if logprobs is not None:
            self._logprobs = self._logprobs or {}
            for key, entries in logprobs.items():
                self._logprobs.setdefault(key, []).extend(entries or [])

    def _merge_delta(self, message: dict[str, Any], delta: dict[str, Any]) -> None:
        for key, value in delta.items():
            if key == "tool_calls":
                self._merge_calls(message.setdefault("tool_calls", {}), value)
            elif key != "role" and isinstance(value, str):
                message[key] = (message.get(key) or "") + value
            elif value is not None:
                message[key] = value

    def _merge_calls(self, calls: dict[int, dict[str, Any]], deltas: list[dict[str, Any]]) -> None:
        for delta in deltas:
            call = calls.setdefault(delta.get("index", 0), {})
            function = delta.pop("function", {})
            call.update(delta)
            merged = call.setdefault("function", {"name": "", "arguments": ""})
            for key, value in function.items():
                merged[key] = merged.get(key, "") + value


def _without_index(call: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in call.items() if key != "index"}
