"""How the first generation of this system named a model's file, in today's words."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

_RUNTIMES = {".gguf": "llama_cpp", ".onnx": "onnx", ".py": "python"}


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
