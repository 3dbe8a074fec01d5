"""The protocols that upstreams speak."""

from collections.abc import Mapping
from typing import Protocol

from moc.inference.request import Info, Reply, Request
from moc.workers.upstream.line import Call, Line
from moc.workers.upstream.openai import OpenAI
from moc.workers.upstream.options import UpstreamOptions


class Dialect(Protocol):
    """How one of them puts things."""

    @property
    def health(self) -> str:
        """Where it answers when it is well."""
        ...

    async def info(self) -> Info:
        """What the upstream can do."""
        ...

    def call(self, request: Request, *, stream: bool) -> Call:
        """The HTTP request for one of ours; Unimplemented when it has no words for it."""
        ...

    def reply(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        """The answer in a body; Internal when it is none."""
        ...


def dialect_of(options: UpstreamOptions, line: Line) -> Dialect:
    """The one that the options name."""
    if options.protocol == "openai":
        return OpenAI(options, line)
    from moc.workers.upstream.oip import Oip  # brings an array library

    return Oip(options, line)
