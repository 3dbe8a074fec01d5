"""Chunks of a chat as engines make them, and events as a client reads them."""

import json
from collections.abc import Iterable
from typing import Any


def chunk(*, delta: dict[str, Any] | None = None, finish_reason: str | None = None, **more: Any) -> bytes:
    """One chunk; `usage` alone has no choices."""
    choices = [] if "usage" in more else [{"index": 0, "delta": delta or {}, "finish_reason": finish_reason}]
    return json.dumps({"object": "chat.completion.chunk", "choices": choices, **more}).encode()


def text(said: str | None) -> bytes:
    """A chunk that adds text."""
    return chunk(delta={"role": "assistant", "content": said})


def called(index: int, call_id: str | None, name: str | None, arguments: str) -> bytes:
    """A chunk that begins a call, or adds to it."""
    call: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if call_id is not None:
        call |= {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return chunk(delta={"tool_calls": [call]})


def usage(read: int, written: int, cached: int = 0) -> dict[str, Any]:
    """Tokens."""
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def named(told: Iterable[bytes]) -> list[dict[str, Any]]:
    """The documents of events, each of which is called what its document's `type` says."""
    events = []
    for block in b"".join(told).decode().split("\n\n")[:-1]:
        name, _, data = block.partition("\n")
        document = json.loads(data.removeprefix("data: "))
        assert name == f"event: {document['type']}"
        events.append(document)
    return events
