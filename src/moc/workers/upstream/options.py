"""How an upstream is reached and what is said to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from moc.inference.request import Kind

Wording = Literal["openai", "oip"]


class Key(Protocol):
    """A secret that may change; it is never part of a `repr`."""

    @property
    def name(self) -> str:
        """Where it comes from, which may be told."""
        ...

    def value(self) -> str:
        """The secret itself; Unavailable when it cannot be had."""
        ...


Reach = Callable[[str, int, str], None]
"""Called with a host, a port and an address of the host before a connection is made; raises a MocError for one that may
not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamOptions:
    """One upstream.

    `url` is what stands before `/chat/completions` (openai) or `/v2` (oip), `model` its name there. `kinds` is what it
    can do, () = all that the protocol has. `key` goes out in the header `key_header`, as a bearer token in
    `authorization`. `headers` go out with every request, `forward_headers` are those of the caller that do. `timeout_s`
    is how long it may say nothing. `health` is a path from the root of its host, '' = the protocol's own. A
    `coordinator` is told what the caller said of deadline, priority and session. `binary` is whether tensors go
    as bytes rather than JSON.
    """

    url: str
    model: str
    protocol: Wording = "openai"
    kinds: tuple[Kind, ...] = ()
    key: Key | None = None
    key_header: str = "authorization"
    headers: Mapping[str, str] = field(default_factory=dict)
    forward_headers: tuple[str, ...] = ()
    connect_timeout_s: float = 5.0
    timeout_s: float = 300.0
    max_connections: int = 64
    health: str = ""
    ca_file: str = ""
    coordinator: bool = False
    binary: bool = True
    use_proxy: bool = False
    reach: Reach | None = None
