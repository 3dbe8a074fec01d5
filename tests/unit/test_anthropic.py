"""Anthropic's messages as chats, and chats as its messages."""

import json
from typing import Any

import msgspec
import pytest

from moc.kernel.errors import Internal, InvalidRequest, Unimplemented
from moc.transports.rest.anthropic_answer import MessageTeller, message_of
from moc.transports.rest.anthropic_request import chat_fields, request_decoder
from moc.transports.rest.body import decoded
from moc.transports.rest.chat import answer_in
from tests.unit.chats import called, chunk, named, text, usage

MESSAGES = [{"role": "user", "content": "hi"}]
ASKED: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": MESSAGES}


def fields(**more: Any) -> dict[str, Any]:
    return chat_fields(decoded(request_decoder, json.dumps(ASKED | more).encode()))


def test_the_least_there_can_be() -> None:
    assert fields() == {"messages": MESSAGES, "max_tokens": 9}


def test_everything_there_can_be() -> None:
    tool = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}, "cache_control": {}}
    schema = {"type": "object"}
    asked = fields(
        system=[{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}],
        stop_sequences=["."],
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        tools=[tool, {**tool, "type": "custom", "name": "sub", "description": None}],
        tool_choice={"type": "tool", "name": "add", "disable_parallel_tool_use": True},
        thinking={"type": "disabled"},
        output_config={"format": {"type": "json_schema", "schema": schema}},
        metadata={"user_id": "7"},
    )
    assert asked["messages"][0] == {"role": "system", "content": "Be\nbrief."}
    assert asked["tools"] == [
        {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": schema}},
        {"type": "function", "function": {"name": "sub", "parameters": schema}},
    ]
    assert asked["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert asked["response_format"]["json_schema"]["schema"] == schema
    del asked["messages"], asked["tools"], asked["tool_choice"], asked["response_format"]
    assert asked == {
        "max_tokens": 9,
        "stop": ["."],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "parallel_tool_calls": False,
    }


@pytest.mark.parametrize(("theirs", "ours"), [("auto", "auto"), ("any", "required"), ("none", "none")])
def test_whether_a_tool_must_be_called(theirs: str, ours: str) -> None:
    assert fields(tool_choice={"type": theirs})["tool_choice"] == ours


def test_a_conversation_with_a_tool() -> None:
    asked = fields(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "2+2?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 2}},
                    {"type": "tool_use", "id": "t2", "name": "add", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "4"},
                    {"type": "tool_result", "tool_use_id": "t2", "is_error": True, "content": [
                        {"type": "text", "text": "no"}
                    ]},
                    {"type": "text", "text": "Well?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t3", "name": "add", "input": {}}]},
        ]
    )  # fmt: skip

    def call(name: str, arguments: str) -> dict[str, Any]:
        return {"id": name, "type": "function", "function": {"name": "add", "arguments": arguments}}

    assert asked["messages"] == [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call("t1", '{"a":2}'), call("t2", "{}")]},
        {"role": "tool", "tool_call_id": "t1", "content": "4"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no"},
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": None, "tool_calls": [call("t3", "{}")]},
    ]


def test_images_keep_their_place() -> None:
    blocks = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "text", "text": "What is it?"},
        {"type": "image", "source": {"type": "url", "url": "https://host/cat.png"}},
    ]
    assert fields(messages=[{"role": "user", "content": blocks}])["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "https://host/cat.png"}},
    ]


def test_the_system_may_speak_in_between() -> None:
    turns = [*MESSAGES, {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}]
    assert fields(messages=turns, thinking={"type": "adaptive"})["messages"] == [
        *MESSAGES,
        {"role": "system", "content": "Be brief."},
    ]


def said(role: str, block: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": [block]}]}


@pytest.mark.parametrize(
    "asked",
    [
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"mcp_servers": [{"type": "url"}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        said("user", {"type": "document", "source": {}}),
        said("user", {"type": "tool_result", "tool_use_id": "t", "content": [
            {"type": "image", "source": {"type": "url", "url": "https://host/x"}}
        ]}),
    ],
)  # fmt: skip
def test_what_cannot_be_passed_on_is_said(asked: dict[str, Any]) -> None:
    with pytest.raises(Unimplemented):
        fields(**asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"max_tokens": 0},
        {"max_tokens": None},
        {"messages": []},
        {"temperature": 1.5},
        {"messages": [{"role": "nobody", "content": "x"}]},
        said("system", {"type": "tool_use", "id": "t", "name": "add", "input": {}}),
        {"tool_choice": {"type": "tool"}},
        said("user", {"type": "novel"}),
        said("user", {"type": "tool_use", "id": "t", "name": "add", "input": {}}),
        said("assistant", {"type": "tool_result", "tool_use_id": "t"}),
    ],
)
def test_what_is_wrong_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        fields(**asked)


def whole(message: dict[str, Any], reason: str | None = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    answer = {"choices": [choice], "usage": usage(7, 3, cached=2)}
    return message_of(answer_in(json.dumps(answer).encode()), "m@1")


def test_a_whole_answer() -> None:
    message = whole({"content": "hello"})
    assert message.pop("id").startswith("msg-")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "m@1",
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "cache_read_input_tokens": 2,
            "cache_creation_input_tokens": 0,
            "output_tokens": 3,
        },
    }


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("stop", "end_turn"),
        (None, "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("content_filter", "refusal"),
    ],
)
def test_why_an_answer_ends(ours: str | None, theirs: str) -> None:
    assert whole({"content": "x"}, ours)["stop_reason"] == theirs


def test_a_whole_answer_that_calls_tools() -> None:
    calls = [{"id": "t1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}]
    assert whole({"content": None, "tool_calls": calls})["content"] == [
        {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 2}}
    ]


def test_arguments_that_are_no_object_are_the_models_fault() -> None:
    with pytest.raises(Internal):
        whole({"tool_calls": [{"id": "t", "function": {"name": "add", "arguments": "{"}}]})
    with pytest.raises(Internal):
        message_of(answer_in(b"{}"), "m@1")
    with pytest.raises(Internal):
        answer_in(b'{"choices": 7}')


def test_text_is_told_in_one_block() -> None:
    teller = MessageTeller()
    told = [teller.begin("m@1"), *(teller.piece(piece) for piece in (text(None), text("hel"), text("lo")))]
    told += [teller.piece(chunk(finish_reason="length")), teller.piece(chunk(usage=usage(7, 2))), teller.end()]
    events = named(told)
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["model"] == "m@1"
    assert events[1] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert [event["delta"] for event in events[2:4]] == [
        {"type": "text_delta", "text": "hel"},
        {"type": "text_delta", "text": "lo"},
    ]
    assert events[5]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert (events[5]["usage"]["input_tokens"], events[5]["usage"]["output_tokens"]) == (7, 2)


def test_text_and_two_calls_are_told_block_after_block() -> None:
    teller = MessageTeller()
    pieces = [
        text("See:"),
        called(0, "t1", "add", ""),
        called(0, None, None, '{"a":'),
        called(0, None, None, "2}"),
        called(1, "t2", "sub", "{}"),
        chunk(finish_reason="tool_calls"),
    ]
    events = named([*(teller.piece(piece) for piece in pieces), teller.end()])
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [start["index"] for start in starts] == [0, 1, 2]
    assert [start["content_block"] for start in starts[1:]] == [
        {"type": "tool_use", "id": "t1", "name": "add", "input": {}},
        {"type": "tool_use", "id": "t2", "name": "sub", "input": {}},
    ]
    deltas = [(event["index"], event["delta"]) for event in events if event["type"] == "content_block_delta"]
    assert deltas == [
        (0, {"type": "text_delta", "text": "See:"}),
        (1, {"type": "input_json_delta", "partial_json": '{"a":'}),
        (1, {"type": "input_json_delta", "partial_json": "2}"}),
        (2, {"type": "input_json_delta", "partial_json": "{}"}),
    ]
    assert [event["index"] for event in events if event["type"] == "content_block_stop"] == [0, 1, 2]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_an_error_is_an_event() -> None:
    body = msgspec.json.encode({"type": "error", "error": {"type": "api_error", "message": "gone"}})
    assert MessageTeller().fail(Internal("gone"), body) == b"event: error\ndata: " + body + b"\n\n"
