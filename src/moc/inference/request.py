"""What travels between a caller and an engine, whatever the transport.

Tensors are described apart from their bytes: the bytes of all of them lie back to back in one body, each
in row-major order and little-endian, BYTES elements each behind a little-endian u32 length (the binary
layout of the Open Inference Protocol).
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from moc.resilience.deadline import NEVER, Deadline

Kind = Literal["tensors", "chat", "completion", "embeddings", "rerank", "transcription", "tokenize"]
"""`tensors` carries tensors and `transcription` a sound file, with what is asked of it in `parameters`; the others
carry the JSON body of the OpenAI request of that name (of `rerank`: `query` and `documents`, texts; of `tokenize`
vLLM's), as it came.
"""

Buffer = bytes | bytearray | memoryview


class Tensor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One tensor's description: `shape` in elements, `size` in bytes of its part of the body."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int


class TensorSpec(msgspec.Struct, frozen=True, array_like=False):
    """A tensor a model takes or gives; -1 in `shape` is a dimension of any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Request(msgspec.Struct, gc=False):
    """One inference. `outputs` names the wanted output tensors, all of them when empty.

    `headers` are those of the caller's HTTP request, by their lower-case names; None when it came otherwise. The
    gateway notes until when the answer is of use, for an engine that can make something of it.
    """

    kind: Kind
    body: Buffer
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}
    headers: Mapping[bytes, bytes] | None = None
    deadline: Deadline = NEVER


class Terms(msgspec.Struct, frozen=True, gc=False):
    """How a request is to be served.

    `priority` (1 is the highest, 10 the lowest) orders the requests of one caller; those of one `session` go to the
    same version where an alias says so; a `repeatable` one may be run more than once.
    """

    deadline: Deadline = NEVER
    priority: int = 5
    session: str = ""
    repeatable: bool = False


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who asks: the id of a key, and its `weight` beside that of others who wait for the same model."""

    key: str = ""
    weight: float = 1.0


class Reply(msgspec.Struct, gc=False):
    """One answer: tensors with their bytes in `body`, or the JSON document of the answer."""

    body: Buffer
    outputs: tuple[Tensor, ...] = ()
    parameters: dict[str, Any] = {}


class Info(msgspec.Struct, frozen=True):
    """What a loaded model is and can do, as its engine says.

    `concurrency` is how many requests the engine works on at once (more wait in the coordinator, in
    order); `memory_bytes` what it says it holds, 0 when it cannot tell; `engine` its name and version; `sleeps`
    whether it can give the memory of its devices back, and take it again, without ending.
    """

    kinds: tuple[Kind, ...]
    engine: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    concurrency: int = 1
    memory_bytes: int = 0
    details: dict[str, Any] = {}
    sleeps: bool = False
