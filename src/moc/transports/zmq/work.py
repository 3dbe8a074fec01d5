"""Requests that are not answered yet."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from moc.kernel.errors import MocError
from moc.transports.zmq.message import Envelope, Form, Reply
from moc.transports.zmq.presence import Connection
from moc.transports.zmq.router import Buffer


@dataclass(slots=True)
class Peer:
    """What one connection has asked and is not answered yet: all of it, and what it gave an id."""

    id: bytes
    connection: Connection
    works: set["Work"] = field(default_factory=set)
    named: dict[str, "Work"] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Work:
    """A request from its arrival until its answer is sent. Ended before that, it answers with `ended`, if given."""

    peer: Peer
    envelope: Envelope
    form: Form
    size: int
    address: str
    curve_key: str
    began: float
    request_id: str = ""
    type: str = ""
    pieces: int = 0
    patient: bool = False
    task: asyncio.Task[None] | None = None
    ended: MocError | None = None
    undo: Callable[[], Awaitable[object]] | None = None

    def end(self, error: MocError | None) -> None:
        """Stop it; None = there is nobody to answer."""
        self.ended = error
        if self.task is not None:
            self.task.cancel()

    def reply(self, *, success: bool, **fields: Any) -> Reply:
        """Something to answer with."""
        return Reply(success, self.request_id, self.type, **fields)

    def parts(self, reply: Reply, frames: Sequence[Buffer] = ()) -> list[Buffer]:
        """An answer as it travels."""
        return [*self.envelope.way, self.form.write(reply), *frames]
