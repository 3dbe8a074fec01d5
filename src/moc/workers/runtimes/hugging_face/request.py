"""OpenAI requests read for an engine that does a part of what there is, and says which."""

from typing import Annotated, Any, TypeVar

import msgspec

from moc.inference.request import Buffer
from moc.kernel.errors import InvalidRequest, Unimplemented
from moc.workers.runtimes.prompts import listed

IGNORED = frozenset(
    {"model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
     "parallel_tool_calls", "stream"}
)  # fmt: skip
"""Fields that change nothing about an answer's content, or were read already."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"],),
    "echo": (False,),
    "suffix": ("",),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields this engine has nothing for, with the values that ask for nothing."""

STOPS_MAX = 16
INPUTS_MAX = 2048

T = TypeVar("T")
Stop = Annotated[str, msgspec.Meta(min_length=1)]


class _StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class Settings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How to answer; None is what the model's own configuration says."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], msgspec.Meta(max_length=STOPS_MAX)] = []
    stream_options: _StreamOptions = msgspec.field(default_factory=_StreamOptions)

    @property
    def length(self) -> int | None:
        """The most tokens wanted."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        """Texts at which the answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop


class ChatRequest(Settings, kw_only=True):
    """A conversation to continue."""

    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]

    def conversation(self) -> list[dict[str, str]]:
        """The messages, each with its content as one text; Unimplemented for what is not text."""
        return [_message(number, message) for number, message in enumerate(self.messages)]


class CompletionRequest(Settings, kw_only=True):
    """A text or tokens to continue; several of them are not answered at once."""

    prompt: Any

    def text(self) -> "str | list[int]":
        """The prompt."""
        texts = listed(self.prompt, "prompt")
        if len(texts) != 1:
            raise Unimplemented("this engine answers one prompt at a time; send each in a request of its own")
        return texts[0]


class EmbeddingsRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Texts or tokens to embed."""

    input: Any
    encoding_format: str = "float"
    dimensions: int | None = None

    def texts(self) -> "list[str | list[int]]":
        """Each input; InvalidRequest when there is none, or too many."""
        texts = listed(self.input, "input")
        if not 0 < len(texts) <= INPUTS_MAX:
            raise InvalidRequest(f"input has {len(texts)} elements; 1 to {INPUTS_MAX} are embedded at once")
        return texts


def read(body: Buffer, kind: type[T]) -> T:
    """The body as a `kind`; InvalidRequest when it is not one, Unimplemented when it asks for what there is not."""
    try:
        given = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not a JSON object: {error}") from None
    wanted = {}
    for name, value in given.items():
        if value is None or name in IGNORED:
            continue
        if name not in NEUTRAL:
            wanted[name] = value
        elif value not in NEUTRAL[name]:
            raise Unimplemented(f"this engine does not do {name!r}; leave it out, or use a model on llama_cpp")
    try:
        return msgspec.convert(wanted, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the request is not right: {error}") from None


def _message(number: int, message: dict[str, Any]) -> dict[str, str]:
    given = {name: value for name, value in message.items() if value is not None and value != []}
    role, content = given.pop("role", None), given.pop("content", "")
    given.pop("name", None)
    if not isinstance(role, str):
        raise InvalidRequest(f"messages[{number}] has no role")
    if given:
        raise Unimplemented(f"messages[{number}] has {min(given)!r}; this engine takes role and content")
    if isinstance(content, list):
        content = "".join(_part(number, part) for part in content)
    if not isinstance(content, str):
        raise InvalidRequest(f"the content of messages[{number}] is neither a text nor a list of parts")
    return {"role": role, "content": content}


def _part(number: int, part: Any) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise InvalidRequest(f"messages[{number}] has a part without a type")
    if part["type"] != "text":
        raise Unimplemented(f"messages[{number}] has a part of type {part['type']!r}; this engine reads text")
    if not isinstance(part.get("text"), str):
        raise InvalidRequest(f"messages[{number}] has a part of type text without a text")
    return str(part["text"])
