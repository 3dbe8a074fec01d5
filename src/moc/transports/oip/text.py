"""Text models in this protocol: a prompt becomes a completion, whose chunks become texts."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from moc.kernel.errors import InvalidRequest
from moc.service.inference import Request


class _Choice(msgspec.Struct):
    text: str = ""


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []


_OURS: Final = frozenset({"model", "prompt", "stream"})
_completion_decoder: Final = msgspec.json.Decoder(_Completion)


def completion(prompt: str, parameters: Mapping[str, Any], reference: str, *, stream: bool) -> Request:
    """The request for the engine; `parameters` are those of a completion (`max_tokens`, `temperature`, ...)."""
    if clash := _OURS & parameters.keys():
        raise InvalidRequest(f"`parameters` may not have {sorted(clash)[0]!r}; the request itself says that")
    body: dict[str, Any] = {**parameters, "model": reference, "prompt": prompt, "stream": stream}
    return Request("completion", msgspec.json.encode(body))


def text_of(document: bytes) -> str:
    """What a completion, or a chunk of one, has written."""
    return "".join(choice.text for choice in _completion_decoder.decode(document).choices)
