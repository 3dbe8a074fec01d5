"""The official Anthropic SDK, unchanged, against a coordinator with SmolLM2 as `smollm2`."""

# ruff: noqa: PT017 - these are programs, not tests

import json
import os

import anthropic

client = anthropic.Anthropic(base_url=os.environ["MOC_URL"], api_key=os.environ["MOC_KEY"], max_retries=0)
asked = {
    "model": "smollm2",
    "max_tokens": 24,
    "extra_body": {"temperature": 0},
    "messages": [{"role": "user", "content": "Name three rivers."}],
}

whole = client.messages.create(**asked, system="You are brief.")
assert whole.content[0].text, whole
assert (whole.role, whole.stop_reason in ("end_turn", "max_tokens")) == ("assistant", True), whole
assert whole.usage.input_tokens + whole.usage.cache_read_input_tokens > 0, whole.usage
assert 0 < whole.usage.output_tokens <= 24, whole.usage
assert whole.model == "smollm2@1", whole.model

with client.messages.stream(**asked, system="You are brief.") as stream:
    streamed = "".join(stream.text_stream)
    final = stream.get_final_message()
assert streamed == whole.content[0].text == final.content[0].text, (streamed, whole)
assert final.stop_reason == whole.stop_reason, final
assert final.usage.output_tokens == whole.usage.output_tokens, final.usage

kinds = [event.type for event in client.messages.create(**asked, stream=True)]
assert kinds[:2] == ["message_start", "content_block_start"], kinds
assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"], kinds

short = client.messages.create(**{**asked, "max_tokens": 2})
assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 2), short

schema = {
    "type": "object",
    "properties": {"river": {"type": "string", "maxLength": 20}},
    "required": ["river"],
    "additionalProperties": False,
}
shaped = client.messages.create(
    **{**asked, "max_tokens": 60}, output_config={"format": {"type": "json_schema", "schema": schema}}
)
assert set(json.loads(shaped.content[0].text)) == {"river"}, shaped

tools = [{"name": name, "description": "About a river.", "input_schema": schema} for name in ("length_of", "source_of")]
told = client.messages.create(**asked, tools=tools)  # SmolLM2 has no place for tools, and talks
assert told.content, told

calling = {**asked, "model": "caller", "tools": tools}
called = client.messages.create(**calling)
with client.messages.stream(**calling) as stream:
    streamed = stream.get_final_message()
for message in (called, streamed):
    text, first, second = message.content
    assert (text.text, message.stop_reason) == ("Let me see.", "tool_use"), message
    assert (first.name, first.input, second.name) == ("length_of", {"river": "Rhine"}, "source_of"), message
    assert (message.usage.input_tokens, message.usage.output_tokens) == (7, 5), message
results = [{"type": "tool_result", "tool_use_id": block.id, "content": "1233 km"} for block in called.content[1:]]
talk = [
    *asked["messages"],
    {"role": "assistant", "content": [block.to_dict() for block in called.content]},
    {"role": "user", "content": results},
]
assert client.messages.create(**{**calling, "messages": talk}).content[0].text == "It is 1233 km."

for refused, kind, name in (
    (lambda: client.messages.create(**{**asked, "model": "nobody"}), anthropic.NotFoundError, "not_found_error"),
    (lambda: client.messages.create(**{**asked, "messages": []}), anthropic.BadRequestError, "invalid_request_error"),
    (
        lambda: client.with_options(api_key="wrong").messages.create(**asked),
        anthropic.AuthenticationError,
        "authentication_error",
    ),
    (
        lambda: client.messages.create(**asked, thinking={"type": "enabled", "budget_tokens": 1024}),
        anthropic.APIStatusError,
        "invalid_request_error",
    ),
):
    try:
        refused()
    except kind as error:
        assert error.body["error"]["type"] == name, error.body
        assert error.body["error"]["message"], error.body
    else:
        raise AssertionError(f"should have been refused with {kind.__name__}")
print("ok")
