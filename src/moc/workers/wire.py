"""What coordinator and worker say to each other, and how it lies on the wire.

A frame is `<u32 header length><u32 body length>`, a msgpack header (an array that begins with the kind of
message) and the body's raw bytes. Nothing is ever unpickled, and a frame that breaks a limit or does not
decode ends the connection.
"""

import asyncio
import struct
from typing import Any

import msgspec

from moc.inference.request import Buffer, Info, Kind, Tensor
from moc.kernel.errors import MocError, TooLarge

LISTENER = 3
"""The descriptor under which a worker finds its listening socket."""

HEADER_MAX = 4 * 1024**2
BODY_MAX = 512 * 1024**2
WINDOW = 32
"""How many chunks of a stream may be on their way, unread."""

VERSION = 2
"""What a worker of this version understands; 2 added `Ping`. Workers outlive upgrades, so older ones are met."""

JOINED_MAX = 64 * 1024
"""A body up to this size is copied behind its header; a bigger one is written beside it."""


class Hello(msgspec.Struct, array_like=True, tag=0, frozen=True):
    """A coordinator claims the worker for `term`; `holder` tells two coordinators of one term apart."""

    token: str
    term: int
    holder: str


class Welcome(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """The claim is accepted; `info` is there when the model is loaded already. `version` is the worker's `VERSION`."""

    term: int
    info: Info | None = None
    version: int = 1


class Refused(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """The claim is refused, and the connection closed."""

    code: str
    message: str


class Loaded(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """The model is in memory."""

    info: Info


class NotLoaded(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """The model could not be loaded; the worker waits to be ended."""

    code: str
    message: str
    details: dict[str, Any]


class Infer(msgspec.Struct, array_like=True, tag=5, gc=False):
    """One request for one answer; the body follows the header."""

    id: int
    kind: Kind
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    parameters: dict[str, Any]


class Result(msgspec.Struct, array_like=True, tag=6, gc=False):
    """The answer to `Infer`; its body follows."""

    id: int
    outputs: tuple[Tensor, ...]
    parameters: dict[str, Any]


class Failure(msgspec.Struct, array_like=True, tag=7, frozen=True):
    """Request `id` ended with an error."""

    id: int
    code: str
    message: str
    details: dict[str, Any]


class Stream(msgspec.Struct, array_like=True, tag=8, frozen=True):
    """One request for chunks; `WINDOW` of them may come before the first `Credit`."""

    id: int
    kind: Kind
    parameters: dict[str, Any]


class Chunk(msgspec.Struct, array_like=True, tag=9, gc=False):
    """One chunk of stream `id`, in the body."""

    id: int


class End(msgspec.Struct, array_like=True, tag=10, gc=False):
    """Stream `id` is complete."""

    id: int


class Credit(msgspec.Struct, array_like=True, tag=11, gc=False):
    """The reader of stream `id` took `count` chunks; as many more may come."""

    id: int
    count: int


class Cancel(msgspec.Struct, array_like=True, tag=12, gc=False):
    """Nobody waits for `id` any more; no answer is expected."""

    id: int


class Stop(msgspec.Struct, array_like=True, tag=13, frozen=True):
    """End in good order."""


class Ping(msgspec.Struct, array_like=True, tag=14, frozen=True):
    """Asks for a sign of life."""


class Pong(msgspec.Struct, array_like=True, tag=15, frozen=True):
    """The sign of life."""


class Sleep(msgspec.Struct, array_like=True, tag=16, frozen=True):
    """Give the memory of the devices back, or unless `asleep` take it again. Only said to one that `sleeps`."""

    id: int
    asleep: bool


Message = (
    Hello
    | Welcome
    | Refused
    | Loaded
    | NotLoaded
    | Infer
    | Result
    | Failure
    | Stream
    | Chunk
    | End
    | Credit
    | Cancel
    | Stop
    | Ping
    | Pong
    | Sleep
)

_PREFIX = struct.Struct("<II")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class BrokenFrame(Exception):
    """The other side does not speak this protocol; the connection cannot go on."""


def frame(message: Message, body: Buffer = b"") -> list[Buffer]:
    """The pieces to write for one message, in order; TooLarge when it breaks a limit."""
    header = _encode(message)
    if len(header) > HEADER_MAX or len(body) > BODY_MAX:
        raise TooLarge(
            f"a message of {len(header) + len(body)} bytes does not fit between coordinator and worker "
            f"(at most {BODY_MAX}); send less at once"
        )
    prefix = _PREFIX.pack(len(header), len(body))
    if len(body) > JOINED_MAX:
        return [prefix + header, body]
    return [b"".join((prefix, header, body))]


class Outbox:
    """Collects what is written in one turn of the event loop and sends it as one piece.

    Under load many messages share a system call, and the other side wakes up once for all of them.
    """

    __slots__ = ("_loop", "_pieces", "_transport")

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop = loop
        self._transport = transport
        self._pieces: list[Buffer] = []

    def put(self, message: Message, body: Buffer = b"") -> None:
        """Send it with this turn's other messages; TooLarge when it breaks a limit."""
        pieces = frame(message, body)
        if not self._pieces:
            self._loop.call_soon(self.flush)
        self._pieces += pieces

    def flush(self) -> None:
        """Send what was collected; no error when the connection is gone."""
        pieces, self._pieces = self._pieces, []
        if not pieces or self._transport.is_closing():
            return
        if len(pieces) == 1:
            self._transport.write(pieces[0])
        else:
            self._transport.writelines(pieces)


class Frames:
    """Cuts a byte stream into messages. `body_max` may be raised once the other side is trusted."""

    def __init__(self, *, header_max: int = HEADER_MAX, body_max: int = BODY_MAX) -> None:
        self.header_max = header_max
        self.body_max = body_max
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[tuple[Message, bytes]]:
        """The messages that are complete now, each with its body; BrokenFrame when one cannot be right."""
        if self._rest:
            self._rest += data
            with memoryview(self._rest) as view:
                found, used = self._cut(view)
            del self._rest[:used]
        else:
            found, used = self._cut(data)
            if used < len(data):
                self._rest += data[used:]
        return found

    def _cut(self, data: bytes | memoryview) -> tuple[list[tuple[Message, bytes]], int]:
        found: list[tuple[Message, bytes]] = []
        at, size = 0, len(data)
        while size - at >= _PREFIX.size:
            header_size, body_size = _PREFIX.unpack_from(data, at)
            if header_size > self.header_max or body_size > self.body_max:
                raise BrokenFrame(f"a frame of {header_size} and {body_size} bytes is over the limit")
            body_at = at + _PREFIX.size + header_size
            end = body_at + body_size
            if end > size:
                break
            try:
                message = _decode(data[at + _PREFIX.size : body_at])
            except (msgspec.DecodeError, RecursionError) as error:
                raise BrokenFrame(str(error)) from None
            found.append((message, bytes(data[body_at:end])))
            at = end
        return found, at


def failure(request_id: int, error: BaseException) -> Failure:
    """What is said about a request that ended with `error`; details that cannot be sent are left out."""
    if not isinstance(error, MocError):
        return Failure(request_id, "internal", f"{type(error).__name__}: {error}", {})
    return Failure(request_id, error.code, error.message, portable(error.details))


def portable(details: dict[str, Any]) -> dict[str, Any]:
    """`details` if it can be encoded, else nothing."""
    try:
        _encode(details)
    except (TypeError, ValueError, RecursionError):
        return {}
    return details
