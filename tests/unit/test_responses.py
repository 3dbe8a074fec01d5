"""OpenAI's responses as chats, and chats as responses."""

import json
from typing import Any

import pytest

from moc.kernel.errors import Internal, InvalidRequest, MocError, QueueFull, Unimplemented
from moc.transports.rest.body import decoded
from moc.transports.rest.chat import answer_in
from moc.transports.rest.responses_answer import ResponseTeller, response_of
from moc.transports.rest.responses_request import ResponsesRequest, chat_fields, request_decoder
from tests.unit.chats import called, chunk, named, text, usage


def asked(given: Any = "hi", **more: Any) -> ResponsesRequest:
    return decoded(request_decoder, json.dumps({"model": "m", "input": given, **more}).encode())


def messages(*items: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = chat_fields(asked(list(items)))["messages"]
    return found


def test_the_least_there_can_be() -> None:
    assert chat_fields(asked()) == {"messages": [{"role": "user", "content": "hi"}]}


def test_everything_there_can_be() -> None:
    schema = {"type": "object"}
    tool = {"type": "function", "name": "add", "description": "Adds.", "parameters": schema, "strict": True}
    fields = chat_fields(
        asked(
            instructions="Be brief.",
            max_output_tokens=9,
            temperature=0.5,
            top_p=0.9,
            tools=[tool],
            tool_choice={"type": "function", "name": "add"},
            parallel_tool_calls=False,
            text={"format": {"type": "json_schema", "name": "sum", "schema": schema, "strict": True}},
            store=True,
            metadata={"a": "b"},
        )
    )
    assert fields == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "tools": [
            {
                "type": "function",
                "function": {"name": "add", "description": "Adds.", "parameters": schema, "strict": True},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "sum", "schema": schema, "strict": True},
        },
    }


@pytest.mark.parametrize("choice", ["none", "auto", "required"])
def test_whether_a_function_must_be_called(choice: str) -> None:
    assert chat_fields(asked(tool_choice=choice))["tool_choice"] == choice


def test_the_form_of_the_answer() -> None:
    assert "response_format" not in chat_fields(asked(text={"format": {"type": "text"}}))
    fields = chat_fields(asked(text={"format": {"type": "json_object"}}))
    assert fields["response_format"] == {"type": "json_object"}


def test_a_conversation_with_a_function() -> None:
    def call(name: str) -> dict[str, Any]:
        return {"id": name, "type": "function", "function": {"name": "add", "arguments": "{}"}}

    assert messages(
        {"role": "developer", "content": "Add."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "2+2?"}]},
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "4"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "five"}]},
        {"type": "function_call", "call_id": "c3", "name": "add", "arguments": "{}"},
    ) == [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call("c1"), call("c2")]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "tool", "tool_call_id": "c2", "content": "five"},
        {"role": "assistant", "content": None, "tool_calls": [call("c3")]},
    ]


def test_the_assistants_words_stay_apart() -> None:
    assert messages({"role": "assistant", "content": "One."}, {"role": "assistant", "content": "Two."}) == [
        {"role": "assistant", "content": "One."},
        {"role": "assistant", "content": "Two."},
    ]


def test_images_keep_their_place() -> None:
    parts = [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": "https://host/cat.png"}]
    assert messages({"role": "user", "content": parts})[0]["content"] == [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "https://host/cat.png"}},
    ]


@pytest.mark.parametrize(
    "more",
    [
        {"previous_response_id": "resp-1"},
        {"background": True},
        {"conversation": "conv-1"},
        {"prompt": {"id": "p"}},
        {"tools": [{"type": "web_search"}]},
        {"tool_choice": {"type": "file_search"}},
        {"given": [{"type": "item_reference", "id": "x"}]},
        {"given": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
        {"given": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]},
    ],
)
def test_what_cannot_be_passed_on_is_said(more: dict[str, Any]) -> None:
    with pytest.raises(Unimplemented) as refused:
        chat_fields(asked(**more))
    assert refused.value.details["param"]


@pytest.mark.parametrize(
    "more",
    [
        {"given": 7},
        {"given": []},
        {"given": [{"role": "nobody", "content": "x"}]},
        {"given": [{"role": "user"}]},
        {"given": [{"content": "x"}]},
        {"max_output_tokens": 0},
        {"text": {"format": {"type": "json_schema"}}},
        {"text": {"format": {"type": "xml"}}},
        {"tool_choice": "perhaps"},
    ],
)
def test_what_is_wrong_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        chat_fields(asked(**more))


def whole(message: dict[str, Any], reason: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    answer = answer_in(json.dumps({"choices": [choice], "usage": usage(7, 3, cached=2)}).encode())
    return response_of(asked(**more), answer, "m@1")


def test_a_whole_answer() -> None:
    schema = {"type": "object"}
    response = whole(
        {"content": "hello"},
        temperature=0.5,
        tools=[{"type": "function", "name": "add", "parameters": schema}],
        text={"format": {"type": "json_schema", "name": "sum", "schema": schema}},
    )
    (item,) = response["output"]
    assert item.pop("id") != response["id"]
    assert item == {
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}],
    }
    assert (response["object"], response["status"], response["model"]) == ("response", "completed", "m@1")
    assert (response["store"], response["temperature"], response["tool_choice"]) == (False, 0.5, "auto")
    assert response["tools"][0]["name"] == "add"
    assert response["text"]["format"]["schema"] == schema
    assert response["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10,
    }


@pytest.mark.parametrize(("ours", "theirs"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_cut_short(ours: str, theirs: str) -> None:
    response = whole({"content": "x"}, ours)
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": theirs})
    assert response["output"][0]["status"] == "incomplete"


def test_a_whole_answer_that_calls_functions() -> None:
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": "add", "arguments": "{}"}} for n in (1, 2)]
    output = whole({"content": None, "tool_calls": calls}, "tool_calls")["output"]
    assert [(item["type"], item["call_id"], item["name"], item["arguments"]) for item in output] == [
        ("function_call", "c1", "add", "{}"),
        ("function_call", "c2", "add", "{}"),
    ]


def test_an_answer_without_a_message_is_the_models_fault() -> None:
    with pytest.raises(Internal):
        response_of(asked(), answer_in(b'{"choices": []}'), "m@1")


def told(*pieces: bytes) -> list[dict[str, Any]]:
    teller = ResponseTeller(asked())
    return named([teller.begin("m@1"), *map(teller.piece, pieces), teller.end()])


def test_text_is_told_in_one_item() -> None:
    events = told(text(None), text("hel"), text("lo"), chunk(finish_reason="stop"), chunk(usage=usage(7, 2)))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(10))
    assert events[0]["response"]["output"] == []
    assert events[2]["item"]["content"] == []
    assert [event["delta"] for event in events[4:6]] == ["hel", "lo"]
    assert events[6]["text"] == events[7]["part"]["text"] == "hello"
    assert {event["item_id"] for event in events[3:8]} == {events[2]["item"]["id"]}
    assert events[8]["item"]["status"] == "completed"
    assert events[9]["response"]["output"] == [events[8]["item"]]
    assert events[9]["response"]["usage"]["output_tokens"] == 2


def test_text_and_two_calls_are_told_item_after_item() -> None:
    events = told(
        text("See:"),
        called(0, "c1", "add", ""),
        called(0, None, None, '{"a":'),
        called(0, None, None, "2}"),
        called(1, "c2", "sub", "{}"),
        chunk(finish_reason="tool_calls"),
    )
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in done] == [0, 1, 2]
    assert [event["item"].get("arguments") for event in done] == [None, '{"a":2}', "{}"]
    deltas = [event for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert [(event["output_index"], event["delta"]) for event in deltas] == [(1, '{"a":'), (1, "2}"), (2, "{}")]
    ends = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [(event["name"], event["arguments"]) for event in ends] == [("add", '{"a":2}'), ("sub", "{}")]
    assert events[-1]["response"]["output"] == [event["item"] for event in done]


def test_a_stream_cut_short_ends_incomplete() -> None:
    last = told(text("x"), chunk(finish_reason="length"))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize(("error", "code"), [(Internal("gone"), "server_error"), (QueueFull("x"), "rate_limit_error")])
def test_an_error_on_the_way_is_the_last_event(error: MocError, code: str) -> None:
    teller = ResponseTeller(asked())
    events = named([teller.begin("m@1"), teller.piece(text("x")), teller.fail(error, b"{}")])
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"] == {"code": code, "message": error.message}
    assert events[-1]["response"]["status"] == "failed"
