import json
from typing import Any

import pytest

from moc.kernel.errors import InvalidRequest, Unimplemented
from moc.workers.runtimes.hugging_face.request import ChatRequest, CompletionRequest, EmbeddingsRequest, read

USER = {"role": "user", "content": "Hi"}


def chat(**fields: Any) -> ChatRequest:
    return read(json.dumps({"model": "m", "messages": [USER], **fields}).encode(), ChatRequest)


def test_what_is_given_is_read() -> None:
    wish = chat(
        max_tokens=3, temperature=0, top_p=0.5, top_k=7, seed=-1, stop="x", stream_options={"include_usage": True}
    )
    assert (wish.length, wish.temperature, wish.top_p, wish.top_k, wish.seed, wish.stops) == (3, 0, 0.5, 7, -1, ["x"])
    assert wish.stream_options.include_usage
    assert chat(max_completion_tokens=5, max_tokens=3).length == 5
    assert chat(stop=["a", "b"]).stops == ["a", "b"]
    nothing = chat(max_tokens=None, temperature=None, stop=None, tools=None, stream_options=None)
    assert (nothing.length, nothing.temperature, nothing.stops) == (None, None, [])


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"logit_bias": {"3": 1}},
        {"frequency_penalty": 0.5},
        {"presence_penalty": -1},
        {"reasoning_effort": "high"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_would_change_the_answer_and_cannot_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(Unimplemented, match=f"does not do '{next(iter(fields))}'"):
        chat(**fields)


def test_what_asks_for_nothing_is_allowed() -> None:
    chat(n=1, tools=[], tool_choice="auto", response_format={"type": "text"}, logprobs=False, frequency_penalty=0.0)
    chat(user="me", metadata={"a": "b"}, store=False, stream=True)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream_options": {"usage": True}}, "usage"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
    ],
)
def test_what_is_not_right_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        chat(**fields)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"a":"\xff"}', b'{"messages":' + b"[" * 100_000])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not a JSON object"):
        read(body, ChatRequest)


def test_contents_become_texts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": None, "refusal": None}]
    assert chat(messages=[*messages, {"role": "user", "content": parts, "name": "me"}]).conversation() == [
        USER,
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "ab"},
    ]


@pytest.mark.parametrize(
    ("message", "error", "said"),
    [
        ({"content": "Hi"}, InvalidRequest, "no role"),
        ({"role": "user", "content": 3}, InvalidRequest, "neither a text"),
        ({"role": "user", "content": ["a"]}, InvalidRequest, "without a type"),
        ({"role": "user", "content": [{"type": "text"}]}, InvalidRequest, "without a text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, Unimplemented, "image_url"),
        ({"role": "tool", "content": "4", "tool_call_id": "a"}, Unimplemented, "tool_call_id"),
    ],
)
def test_a_message_that_is_no_text_is_refused(message: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        chat(messages=[message]).conversation()


@pytest.mark.parametrize(("prompt", "text"), [("a", "a"), (["a"], "a"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2])])
def test_a_prompt_is_a_text_or_tokens(prompt: Any, text: Any) -> None:
    assert read(json.dumps({"prompt": prompt}).encode(), CompletionRequest).text() == text


@pytest.mark.parametrize("prompt", [3, {"a": 1}, ["a", 1], [True], [1.5], [[]]])
def test_what_is_neither_is_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        read(json.dumps({"prompt": prompt}).encode(), CompletionRequest).text()


def test_several_prompts_are_refused() -> None:
    with pytest.raises(Unimplemented, match="one prompt at a time"):
        read(b'{"prompt":["a","b"]}', CompletionRequest).text()


def test_inputs_are_listed() -> None:
    def texts(given: Any) -> Any:
        return read(json.dumps({"input": given, "user": "me"}).encode(), EmbeddingsRequest).texts()

    assert texts("a") == ["a"]
    assert texts(["a", [1, 2]]) == ["a", [1, 2]]
    assert texts([1, 2]) == [[1, 2]]
    for wrong in ([], ["a"] * 2049):
        with pytest.raises(InvalidRequest, match="elements"):
            texts(wrong)
