"""What the protocols' doors of the first generation of this system have in common."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

import msgspec

_RUNTIMES = {".gguf": "llama_cpp", ".onnx": "onnx", ".py": "python"}


class _Choice(msgspec.Struct):
    text: str = ""


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


_completion_decoder: Final = msgspec.json.Decoder(_Completion)


def spec_of(path: str, parameters: Mapping[str, Any] | None, shards: int | None) -> dict[str, Any]:
    """The fields of a model whose file is at `path`: its runtime is told by the path unless `parameters` do."""
    spec: dict[str, Any] = {"source": path if ":" in path else f"file:{path}"}
    runtime = _RUNTIMES.get(PurePosixPath(path).suffix.lower())
    if runtime is not None:
        spec["runtime"] = runtime
    spec.update(parameters or {})
    if shards is not None:
        spec["shards"] = shards
    return spec


def job_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A job with `job_type` and `model_name` as `type` and `model`."""
    names = {"job_type": "type", "model_name": "model"}
    return {names.get(name, name): value for name, value in fields.items()}


def written_in(document: bytes | bytearray | memoryview) -> tuple[str, int]:
    """The text of an engine's completion, and of how many tokens it is."""
    made = _completion_decoder.decode(document)
    text = "".join(choice.text for choice in made.choices)
    return text, made.usage.completion_tokens if made.usage else 0
