"""The responses of the official OpenAI SDK, unchanged, against a coordinator with SmolLM2 as `smollm2`."""

# ruff: noqa: PT017 - these are programs, not tests

import json
import os

import openai

client = openai.OpenAI(base_url=f"{os.environ['MOC_URL']}/v1", api_key=os.environ["MOC_KEY"], max_retries=0)
asked = {"model": "smollm2", "input": "Name three rivers.", "temperature": 0, "max_output_tokens": 24}

whole = client.responses.create(**asked, instructions="You are brief.")
assert whole.output_text, whole
assert (whole.status, whole.incomplete_details) in (("completed", None), ("incomplete", whole.incomplete_details)), (
    whole
)
assert whole.usage.input_tokens > 0, whole.usage
assert 0 < whole.usage.output_tokens <= 24, whole.usage
assert (whole.model, whole.to_dict()["store"]) == ("smollm2@1", False), whole

events = list(client.responses.create(**asked, instructions="You are brief.", stream=True))
assert [event.sequence_number for event in events] == list(range(len(events))), events
assert events[0].type == "response.created", events[0]
streamed = "".join(event.delta for event in events if event.type == "response.output_text.delta")
assert streamed == whole.output_text == events[-1].response.output_text, (streamed, whole)
assert events[-1].response.usage.output_tokens == whole.usage.output_tokens, events[-1]

short = client.responses.create(**{**asked, "max_output_tokens": 2})
assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens"), short

schema = {
    "type": "object",
    "properties": {"river": {"type": "string", "maxLength": 20}},
    "required": ["river"],
    "additionalProperties": False,
}
form = {"format": {"type": "json_schema", "name": "river", "schema": schema, "strict": True}}
shaped = client.responses.create(**{**asked, "max_output_tokens": 60}, text=form)
assert set(json.loads(shaped.output_text)) == {"river"}, shaped
with client.responses.stream(**{**asked, "max_output_tokens": 60}, text=form) as stream:
    assert stream.get_final_response().output_text == shaped.output_text

tools = [
    {"type": "function", "name": name, "parameters": schema, "strict": True} for name in ("length_of", "source_of")
]
told = client.responses.create(**asked, tools=tools)  # SmolLM2 has no place for tools, and talks
assert told.output, told

calling = {"model": "caller", "input": asked["input"], "tools": tools}
called = client.responses.create(**calling)
with client.responses.stream(**calling) as stream:
    streamed = stream.get_final_response()
for response in (called, streamed):
    message, first, second = response.output
    assert (response.output_text, response.status) == ("Let me see.", "completed"), response
    assert (first.name, json.loads(first.arguments), second.name) == ("length_of", {"river": "Rhine"}, "source_of")
    assert (response.usage.input_tokens, response.usage.total_tokens) == (7, 12), response
results = [{"type": "function_call_output", "call_id": item.call_id, "output": "1233 km"} for item in called.output[1:]]
said = {"role": "user", "content": asked["input"]}
talk = [said, *[item.to_dict() for item in called.output], *results]
assert client.responses.create(**{**calling, "input": talk}).output_text == "It is 1233 km."

for refused, kind in (
    (lambda: client.responses.create(**{**asked, "model": "nobody"}), openai.NotFoundError),
    (lambda: client.responses.create(**{**asked, "input": []}), openai.BadRequestError),
    (lambda: client.responses.create(**asked, previous_response_id=whole.id), openai.APIStatusError),
    (lambda: client.responses.retrieve(whole.id), openai.NotFoundError),
    (lambda: client.with_options(api_key="wrong").responses.create(**asked), openai.AuthenticationError),
    (
        lambda: client.audio.transcriptions.create(model="smollm2", file=("said.wav", b"RIFF")),
        openai.APIStatusError,
    ),
):
    try:
        refused()
    except kind as error:
        assert error.body["message"], error.body
        assert kind is not openai.APIStatusError or error.status_code == 501, error.status_code
    else:
        raise AssertionError(f"should have been refused with {kind.__name__}")
print("ok")
