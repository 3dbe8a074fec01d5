"""A request of Anthropic's messages API as an OpenAI chat request. Pure: nothing here is asked or answered."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from moc.kernel.errors import InvalidRequest, Unimplemented

Fields = dict[str, Any]


class Text(Struct, tag="text"):
    """Text."""

    text: str


class Source(Struct):
    """An image, in the message or elsewhere."""

    type: Literal["base64", "url"]
    media_type: str = ""
    data: str = ""
    url: str = ""


class Image(Struct, tag="image"):
    """An image."""

    source: Source


class ToolUse(Struct, tag="tool_use"):
    """What the model had called."""

    id: str
    name: str
    input: Fields


class Thinking(Struct, tag="thinking"):
    """What a model thought; not told to another."""


class RedactedThinking(Struct, tag="redacted_thinking"):
    """The same, encrypted."""


class Document(Struct, tag="document"):
    """A file to be read; no engine here can."""


Content = Text | Image | Document


class ToolResult(Struct, tag="tool_result"):
    """What came of a call."""

    tool_use_id: str
    content: str | list[Content] = ""
    is_error: bool = False


Block = Text | Image | Document | ToolUse | ToolResult | Thinking | RedactedThinking


class Turn(Struct):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(Struct):
    """Something the model may call; those with another `type` are run by Anthropic, which this server is not."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: Fields = {}
    strict: bool | None = None


class ToolChoice(Struct):
    """Whether it has to call something."""

    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    disable_parallel_tool_use: bool = False


class ThinkingConfig(Struct):
    """Whether to think first; `adaptive` leaves that to the model."""

    type: str


class Format(Struct):
    """What form the answer has to have."""

    type: Literal["json_schema"]
    schema: Fields


class OutputConfig(Struct):
    """How to answer."""

    format: Format | None = None


class MessagesRequest(Struct):
    """The fields that are understood; advice (`metadata`, `cache_control`, `service_tier`, ...) is not read."""

    model: str
    max_tokens: Annotated[int, Meta(ge=1)]
    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: str | list[Text] | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    mcp_servers: list[Any] | None = None


_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}


def chat_fields(request: MessagesRequest) -> Fields:
    """The fields of a chat request; Unimplemented when something is asked that cannot be passed on."""
    if request.thinking is not None and request.thinking.type not in ("disabled", "adaptive"):
        raise Unimplemented("thinking cannot be asked of the models here; leave `thinking` out")
    if request.mcp_servers:
        raise Unimplemented("this server calls no MCP servers; call them yourself and pass what they offer as `tools`")
    fields: Fields = {
        "messages": [*_system(request.system), *_messages(request.messages)],
        "max_tokens": request.max_tokens,
        "stop": request.stop_sequences or None,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "tools": [_tool(tool) for tool in request.tools or ()] or None,
        "response_format": _response_format(request.output_config),
        **_tool_choice(request.tool_choice),
    }
    return _given(fields)


def _system(system: str | Sequence[Text] | None) -> Iterator[Fields]:
    if system:
        yield {"role": "system", "content": system if isinstance(system, str) else _joined(system)}


def _messages(turns: Sequence[Turn]) -> Iterator[Fields]:
    for turn in turns:
        if isinstance(turn.content, str):
            yield {"role": turn.role, "content": turn.content}
        elif turn.role == "user":
            yield from _user(turn.content)
        else:
            yield _other(turn.content, turn.role)


def _user(blocks: Sequence[Block]) -> Iterator[Fields]:
    """What came of calls first, each in a message of its own, then what the user says."""
    said: list[Text | Image] = []
    for block in blocks:
        if isinstance(block, ToolResult):
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)}
        elif isinstance(block, Text | Image):
            said.append(block)
        else:
            raise _misplaced(block, "user")
    if said:
        yield {"role": "user", "content": _content(said)}


def _other(blocks: Sequence[Block], role: str) -> Fields:
    """What the assistant or the system says, in one message with the assistant's calls."""
    texts: list[Text] = []
    calls: list[Fields] = []
    for block in blocks:
        if isinstance(block, Text):
            texts.append(block)
        elif isinstance(block, ToolUse) and role == "assistant":
            function = {"name": block.name, "arguments": msgspec.json.encode(block.input).decode()}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif not isinstance(block, Thinking | RedactedThinking):
            raise _misplaced(block, role)
    message: Fields = {"role": role, "content": _joined(texts) if texts or not calls else None}
    return {**message, "tool_calls": calls} if calls else message


def _content(said: Sequence[Text | Image]) -> str | list[Fields]:
    texts = [block for block in said if isinstance(block, Text)]
    if len(texts) == len(said):
        return _joined(texts)
    return [
        {"type": "text", "text": block.text}
        if isinstance(block, Text)
        else {"type": "image_url", "image_url": {"url": _url(block.source)}}
        for block in said
    ]


def _url(source: Source) -> str:
    return source.url if source.type == "url" else f"data:{source.media_type};base64,{source.data}"


def _result(block: ToolResult) -> str:
    if isinstance(block.content, str):
        text = block.content
    else:
        texts = [part for part in block.content if isinstance(part, Text)]
        if len(texts) < len(block.content):
            raise Unimplemented(f"the result of {block.tool_use_id!r} has more than text; send its text alone")
        text = _joined(texts)
    return f"Error: {text}" if block.is_error else text


def _misplaced(block: Block, role: str) -> InvalidRequest | Unimplemented:
    if isinstance(block, Document):
        return Unimplemented("documents cannot be read here; send their text instead")
    kind = block.__struct_config__.tag
    return InvalidRequest(f"a message of the {role} has a block of type {kind!r}, which is not the {role}'s to send")


def _tool(tool: Tool) -> Fields:
    if tool.type not in (None, "custom"):
        raise Unimplemented(f"the tool {tool.name!r} of type {tool.type!r} is run by Anthropic only; offer your own")
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": _given({**function, "strict": tool.strict})}


def _tool_choice(choice: ToolChoice | None) -> Fields:
    if choice is None:
        return {}
    fields: Fields = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    if choice.type == "tool":
        if not choice.name:
            raise InvalidRequest("`tool_choice` of type 'tool' needs the `name` of the tool")
        return {**fields, "tool_choice": {"type": "function", "function": {"name": choice.name}}}
    return {**fields, "tool_choice": _CHOICES[choice.type]}


def _response_format(config: OutputConfig | None) -> Fields | None:
    if config is None or config.format is None:
        return None
    schema = {"name": "answer", "schema": config.format.schema, "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _given(fields: Fields) -> Fields:
    return {name: value for name, value in fields.items() if value is not None}


def _joined(texts: Iterable[Text]) -> str:
    return "\n".join(block.text for block in texts)


request_decoder: Final = msgspec.json.Decoder(MessagesRequest)
