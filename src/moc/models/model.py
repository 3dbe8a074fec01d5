"""The nouns: what a model is told to be (spec), what it became (version), how it is doing (status)."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from moc.kernel.errors import InvalidRequest
from moc.models.lineage import Lineage

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
RUNTIMES = ("llama_cpp", "onnx", "python", "transformers", "command", "remote")
SHARDED = ("llama_cpp", "python", "command")
"""Those that can spread a model over several devices."""

REMOTE = "remote"
"""The runtime of models that run elsewhere: they take no memory here, have no files, and stay loaded once they are."""

SOURCELESS = ("command",)
"""Those that may do without files of the model: the engine has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How requests on tensors are gathered: up to `max_batch` rows, none of them waiting longer than `max_delay_ms`."""

    max_batch: int
    max_delay_ms: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A request that a loaded model is asked every `interval_s`, and that it has to answer within `timeout_s`.

    `body` is the JSON of the request, as a caller would send it; tensors are zeros of the shapes the model takes.
    """

    kind: str
    body: dict[str, Any] = field(default_factory=dict)
    interval_s: float = 30.0
    timeout_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What the operator asked for; one entry of `models:` in `moc.yaml`.

    `source` says where the artifact comes from (`file:`, `pypi:`, `https:`, `hf:`; empty = none); `options` belong to
    the runtime; `ttl_s` unloads after that idle time (0 = never); `pin` keeps it loaded whatever its idle time;
    `preload` loads it at start; `memory_bytes` is the declared need; `priority` 1 (highest) to 10; `max_concurrent`
    requests run at once (never more than the engine takes), `max_queue` wait (None = as many as of any model). It is
    spread over `shards` devices; never loaded beside another of its `group` (empty = none); and not unloaded for
    another within `min_residency_s` of its loading (None = as the coordinator does for all). `batching` gathers
    requests on tensors; `canary` is what tells whether it still answers. `cost` is what a request costs, in any unit,
    for aliases that go by it.
    """

    runtime: str
    source: str = ""
    sha256: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    devices: str | list[str] = "auto"
    memory_bytes: int | None = None
    preload: bool = False
    pin: bool = False
    ttl_s: float = 300.0
    priority: int = 5
    max_concurrent: int | None = None
    max_queue: int | None = None
    shards: int = 1
    group: str = ""
    min_residency_s: float | None = None
    batching: Batching | None = None
    canary: Canary | None = None
    cost: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The files a version is made of, once they are here: an absolute path, their hash and size.

    `path` is the file or folder to load. A folder's hash covers every file's relative name and content.
    """

    path: str
    sha256: str
    size_bytes: int
    modified_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A file that is loaded with a model and changes its answers; `sha256` is empty when nobody vouched for it."""

    path: str
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """An immutable version. `artifact` and `digest` are empty until it has been pulled, then never change.

    One that was trained here has a `lineage`.
    """

    name: str
    version: int
    spec: ModelSpec
    created_at: float
    artifact: Artifact | None = None
    digest: str = ""
    lineage: Lineage | None = None

    @property
    def reference(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def paths(self) -> tuple[str, ...]:
        """All it is made of, each a file or a folder: its artifact, once that is here, and its adapters."""
        own = () if self.artifact is None else (self.artifact.path,)
        return (*own, *(adapter.path for adapter in adapters_of(self.spec.options)))


class State(StrEnum):
    REGISTERED = "registered"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    UNLOADING = "unloading"
    FAILED = "failed"


class FailReason(StrEnum):
    LOAD_FAILED = "load_failed"
    OUT_OF_MEMORY = "out_of_memory"
    RUNTIME_UNHEALTHY = "runtime_unhealthy"
    INVALID_SPEC = "invalid_spec"


MOVES: dict[State, frozenset[State]] = {
    State.REGISTERED: frozenset({State.LOADING, State.FAILED}),
    State.LOADING: frozenset({State.READY, State.FAILED, State.REGISTERED}),
    State.READY: frozenset({State.DRAINING, State.FAILED, State.REGISTERED, State.LOADING}),
    State.DRAINING: frozenset({State.UNLOADING, State.REGISTERED, State.FAILED}),
    State.UNLOADING: frozenset({State.REGISTERED, State.FAILED}),
    State.FAILED: frozenset({State.LOADING, State.REGISTERED}),
}
"""Every move a version's state may make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """How a version is doing. `info` is what its engine last said of itself (inputs, outputs, kinds)."""

    state: State
    changed_at: float
    reason: str = ""
    message: str = ""
    worker_id: str = ""
    load_s: float = 0.0
    info: dict[str, Any] = field(default_factory=dict)


def parse_reference(reference: str) -> tuple[str, int | None]:
    """`name` or `name@version` as (name, version); InvalidRequest when it is neither."""
    name, at, version = reference.partition("@")
    if NAME.fullmatch(name) is None or (at and not (version.isascii() and version.isdigit() and len(version) < 10)):
        raise InvalidRequest(
            f"not a model reference: {reference[:150]!r}; write name or name@version, such as smollm2@1"
        )
    return name, int(version) if at else None


def adapters_of(options: Mapping[str, Any]) -> list[Adapter]:
    """The adapters that options of a runtime name in `lora`; what is none is left to the runtime to refuse."""
    listed = options.get("lora")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return [
        Adapter(path=entry["path"], sha256=str(entry.get("sha256") or ""))
        for entry in entries
        if isinstance(entry.get("path"), str)
    ]


def digest_of(spec: ModelSpec, artifact: Artifact) -> str:
    """`sha256:…` over what decides a version's answers: runtime, options and the content of artifact and adapters.

    Of an adapter without a hash it is the path that counts.
    """
    options = spec.options
    if isinstance(options.get("lora"), list):
        options = {**options, "lora": [_content_of(entry) for entry in options["lora"]]}
    identity: Mapping[str, Any] = {"runtime": spec.runtime, "options": options, "artifact": artifact.sha256}
    encoded = msgspec.json.encode(identity, order="deterministic")
    return f"sha256:{hashlib.sha256(encoded).hexdigest()}"


def _content_of(entry: Any) -> Any:
    if isinstance(entry, dict) and entry.get("sha256"):
        return {key: value for key, value in entry.items() if key != "path"}
    return entry
