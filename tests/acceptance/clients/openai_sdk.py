"""The official OpenAI SDK, unchanged, against a coordinator with SmolLM2 as `smollm2`."""

# ruff: noqa: PT017 - these are programs, not tests

import json
import os

import openai

client = openai.OpenAI(base_url=f"{os.environ['MOC_URL']}/v1", api_key=os.environ["MOC_KEY"], max_retries=0)

names = [model.id for model in client.models.list()]
assert "smollm2" in names, names
assert client.models.retrieve("smollm2").id == "smollm2"

messages = [{"role": "user", "content": "Name three rivers."}]
whole = client.chat.completions.create(model="smollm2", messages=messages, temperature=0, max_tokens=24)
text = whole.choices[0].message.content
assert text, whole
assert whole.usage.completion_tokens > 0, whole.usage
assert whole.model == "smollm2@1", whole.model

chunks = list(
    client.chat.completions.create(
        model="smollm2",
        messages=messages,
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert streamed == text, (streamed, text)
assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens, chunks[-1]

schema = {
    "type": "object",
    "properties": {"river": {"type": "string", "maxLength": 20}, "length_km": {"type": "integer", "maximum": 9999}},
    "required": ["river", "length_km"],
    "additionalProperties": False,
}
shaped = client.chat.completions.create(
    model="smollm2",
    messages=[{"role": "user", "content": "Describe one river as JSON."}],
    temperature=0,
    max_tokens=80,
    response_format={"type": "json_schema", "json_schema": {"name": "river", "schema": schema, "strict": True}},
)
river = json.loads(shaped.choices[0].message.content)
assert set(river) == {"river", "length_km"}, river
assert isinstance(river["length_km"], int), river

stopped = client.chat.completions.create(model="smollm2", messages=messages, temperature=0, max_tokens=24, stop=["\n"])
assert "\n" not in stopped.choices[0].message.content

completion = client.completions.create(model="smollm2", prompt="The capital of France is", temperature=0, max_tokens=5)
assert completion.choices[0].text, completion
pieces = client.completions.create(
    model="smollm2", prompt="The capital of France is", temperature=0, max_tokens=5, stream=True
)
assert "".join(piece.choices[0].text for piece in pieces) == completion.choices[0].text

stranger = openai.OpenAI(base_url=client.base_url, api_key="wrong", max_retries=0)
for refused, kind in (
    (lambda: client.embeddings.create(model="smollm2", input="x"), openai.APIStatusError),
    (lambda: client.chat.completions.create(model="nobody", messages=messages), openai.NotFoundError),
    (lambda: client.chat.completions.create(model="smollm2", messages="x"), openai.BadRequestError),
    (
        lambda: openai.OpenAI(base_url=client.base_url, api_key="wrong", max_retries=0).models.list(),
        openai.AuthenticationError,
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
