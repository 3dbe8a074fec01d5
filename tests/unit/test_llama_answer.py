import json
from typing import Any

from moc.workers.runtimes.llama.answer import Answer


def whole(*choices: dict[str, Any], **last: Any) -> dict[str, Any]:
    """The answer made of chunks that have these as their only choice, and of a last one without any."""
    answer = Answer()
    head = {"id": "c1", "created": 1, "model": "m@1", "object": "chat.completion.chunk"}
    for choice in choices:
        answer.add(json.dumps({"choices": [{"index": 0, "finish_reason": None, **choice}], **head}).encode())
    answer.add(json.dumps({"choices": [], **head, **last}).encode())
    return json.loads(answer.whole())


def test_text_is_joined_and_the_usage_kept() -> None:
    found = whole(
        {"delta": {"role": "assistant", "content": None}},
        {"delta": {"content": "To be"}},
        {"delta": {"content": " or"}},
        {"delta": {}, "finish_reason": "stop"},
        usage={"completion_tokens": 3},
    )
    assert found == {
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "To be or"}}],
        "id": "c1",
        "created": 1,
        "model": "m@1",
        "object": "chat.completion",
        "usage": {"completion_tokens": 3},
    }


def test_tool_calls_are_joined_each_on_its_own() -> None:
    found = whole(
        {"delta": {"role": "assistant", "content": None}},
        {"delta": {"reasoning_content": "Two"}},
        {"delta": {"reasoning_content": " cities."}},
        {"delta": {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "weather"}}]}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]}},
        {"delta": {"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "weather"}}]}},
        {"delta": {"tool_calls": [{"index": 1, "function": {"arguments": '{"city":"Oslo"}'}}]}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '"Rome"}'}}]}},
        {"delta": {}, "finish_reason": "tool_calls"},
    )
    message = found["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning_content"] == "Two cities."
    assert message["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}},
        {"id": "b", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
    ]


def test_log_probabilities_are_listed_in_order() -> None:
    found = whole(
        {"delta": {"content": "a"}, "logprobs": {"content": [{"token": "a"}]}},
        {"delta": {"content": "b"}, "logprobs": {"content": [{"token": "b"}]}},
        {"delta": {}, "finish_reason": "length"},
    )
    assert found["choices"][0]["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}
