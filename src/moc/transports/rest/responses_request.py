"""A request of OpenAI's responses API as a chat request. Pure: nothing here is asked or answered."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from moc.kernel.errors import InvalidRequest, Unimplemented

Fields = dict[str, Any]


class Part(Struct):
    """A piece of a message."""

    type: str
    text: str = ""
    refusal: str = ""
    image_url: str | None = None


class Item(Struct):
    """A message, a call of a function, or what came of one; `type` says which, `message` when it is left out."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[Part] = ""


class Tool(Struct):
    """Something the model may call; what is not a `function` is run by OpenAI, which this server is not."""

    type: str
    name: str = ""
    description: str | None = None
    parameters: Fields | None = None
    strict: bool | None = None


class ToolChoice(Struct):
    """The one function it has to call."""

    type: str
    name: str = ""


class Format(Struct):
    """What form the answer has to have."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = "answer"
    schema: Fields | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(Struct):
    """How the text is to be."""

    format: Format | None = None


class ResponsesRequest(Struct):
    """The fields that are understood; advice (`metadata`, `include`, `reasoning`, `user`, ...) is not read.

    `store` is taken, but nothing is kept: the answer says `"store": false`.
    """

    model: str
    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None


_KEPT: Final = "this server keeps no conversations; send what was said before in `input`"
_REFUSED: Final = {
    "previous_response_id": _KEPT,
    "conversation": _KEPT,
    "prompt": "this server keeps no prompts; send their text in `instructions` or `input`",
    "background": "this server answers while you wait; leave it out, and use `stream` to see the answer grow",
}


def chat_fields(request: ResponsesRequest) -> Fields:
    """The fields of a chat request; Unimplemented when something is asked that cannot be passed on."""
    for name, reason in _REFUSED.items():
        if getattr(request, name):
            raise Unimplemented(f"`{name}` cannot be used here: {reason}", details={"param": name})
    messages = [*_instructions(request.instructions), *_messages(request.input)]
    if not messages:
        raise InvalidRequest("`input` is empty; say what the model is to answer", details={"param": "input"})
    fields: Fields = {
        "messages": messages,
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "tools": [_tool(tool) for tool in request.tools or ()] or None,
        "tool_choice": _tool_choice(request.tool_choice),
        "parallel_tool_calls": request.parallel_tool_calls if request.tools else None,
        "response_format": _response_format(request.text),
    }
    return _given(fields)


def _instructions(instructions: str | None) -> Iterator[Fields]:
    if instructions:
        yield {"role": "system", "content": instructions}


def _messages(given: str | Sequence[Item]) -> Iterator[Fields]:
    """A message for each item; calls that follow one another, or a word of the assistant, are one message with it."""
    if isinstance(given, str):
        yield {"role": "user", "content": given}
        return
    pending: Fields | None = None
    for number, item in enumerate(given):
        if item.type == "reasoning":  # what a model thought is not told to another
            continue
        if item.type == "function_call":
            pending = pending or {"role": "assistant", "content": None}
            pending.setdefault("tool_calls", []).append(_call(item))
            continue
        if pending is not None:
            yield pending
        message = _message(item, number)
        pending = message if message["role"] == "assistant" else None
        if pending is None:
            yield message
    if pending is not None:
        yield pending


def _message(item: Item, number: int) -> Fields:
    place = f"input[{number}]"
    if item.type == "function_call_output":
        return {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output, place)}
    if item.type != "message":
        raise Unimplemented(f"{place}: an item of type {item.type[:60]!r} cannot be used here", details=_at("input"))
    if item.role is None or item.content is None:
        raise InvalidRequest(f"{place}: a message has a `role` and a `content`", details=_at("input"))
    role = "system" if item.role == "developer" else item.role
    return {"role": role, "content": _content(item.content, place)}


def _call(item: Item) -> Fields:
    return {
        "id": item.call_id,
        "type": "function",
        "function": {"name": item.name, "arguments": item.arguments},
    }


def _content(content: str | Sequence[Part], place: str) -> str | list[Fields]:
    if isinstance(content, str) or not any(part.type == "input_image" for part in content):
        return _text(content, place)
    return [
        {"type": "image_url", "image_url": {"url": part.image_url}}
        if part.type == "input_image" and part.image_url
        else {"type": "text", "text": _text([part], place)}
        for part in content
    ]


def _text(content: str | Sequence[Part], place: str) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if part.type not in ("input_text", "output_text", "text", "refusal"):
            raise Unimplemented(f"{place}: a part of type {part.type[:60]!r} cannot be used here", details=_at("input"))
    return "\n".join(part.text or part.refusal for part in content)


def _tool(tool: Tool) -> Fields:
    if tool.type != "function":
        raise Unimplemented(
            f"a tool of type {tool.type[:60]!r} is run by OpenAI only; offer a function", details=_at("tools")
        )
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters or {}}
    return {"type": "function", "function": _given({**function, "strict": tool.strict})}


def _tool_choice(choice: str | ToolChoice | None) -> str | Fields | None:
    if not isinstance(choice, ToolChoice):
        return choice
    if choice.type != "function":
        raise Unimplemented(
            f"`tool_choice` of type {choice.type[:60]!r} cannot be used here", details=_at("tool_choice")
        )
    return {"type": "function", "function": {"name": choice.name}}


def _response_format(text: TextConfig | None) -> Fields | None:
    if text is None or text.format is None or text.format.type == "text":
        return None
    wanted = text.format
    if wanted.type == "json_object":
        return {"type": "json_object"}
    if wanted.schema is None:
        raise InvalidRequest("`text.format` of type 'json_schema' needs a `schema`", details=_at("text.format.schema"))
    schema = {"name": wanted.name, "schema": wanted.schema, "description": wanted.description, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": _given(schema)}


def _given(fields: Fields) -> Fields:
    return {name: value for name, value in fields.items() if value is not None}


def _at(param: str) -> Fields:
    return {"param": param}


request_decoder: Final = msgspec.json.Decoder(ResponsesRequest)
