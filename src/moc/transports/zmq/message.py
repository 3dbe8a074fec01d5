"""What a message says, in either of its forms: JSON, or msgpack with tensors in the frames behind it."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from moc.kernel.choices import told
from moc.kernel.errors import InvalidRequest
from moc.transports.zmq.router import Buffer

T = TypeVar("T")

_CORRELATION_SIZE: Final = 4
_MAPS: Final = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})
"""First bytes of a msgpack map."""


class Message(msgspec.Struct, gc=False):
    """A request: `action` and `payload`, or in the first generation's words `type` and `data`."""

    action: str = ""
    payload: Raw | UnsetType = UNSET
    type: str = ""
    data: Raw | UnsetType = UNSET
    request_id: str = ""
    deadline_ms: float | None = None
    priority: int = 5
    session: str = ""
    idempotency_key: str | None = None
    key: str | None = None


class Reply(msgspec.Struct, omit_defaults=True, gc=False):
    """An answer, or a piece of one (`chunk`, numbered by `seq`); `done` marks the last of several.

    `model`, `digest` and `queue_ms` say which version answered, and how long the request waited for its turn there.
    """

    success: bool
    request_id: str
    type: str = ""
    result: Any = UNSET
    chunk: Any = UNSET
    error: Any = UNSET
    model: str = ""
    digest: str = ""
    queue_ms: float | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    done: bool = False
    latency_ms: float | UnsetType = UNSET


class _Named(msgspec.Struct):
    """As much of a message as is needed to say that it is wrong."""

    request_id: str = ""


class Envelope(msgspec.Struct, gc=False):
    """A message's frames, by what they are for: those that lead back to the caller, the message, its tensors.

    `single` tells that the caller takes one answer only: it put an empty frame before its message, as REQ does.
    """

    way: list[bytes]
    single: bool
    head: memoryview
    tensors: list[memoryview]

    @classmethod
    def open(cls, frames: Sequence[memoryview]) -> "Envelope":
        """Sort out the frames behind the peer's routing id."""
        if frames and not len(frames[0]):
            at = 1
        elif len(frames) > 1 and len(frames[0]) == _CORRELATION_SIZE and not len(frames[1]):
            at = 2  # REQ with ZMQ_REQ_CORRELATE
        else:
            at = 0
        head = frames[at] if len(frames) > at else memoryview(b"")
        return cls([bytes(frame) for frame in frames[:at]], at > 0, head, [*frames[at + 1 :]])


class Form:
    """How messages are written: reads requests strictly, writes answers.

    `document` is JSON text from an engine as a value that `write` takes.
    """

    def __init__(
        self, name: str, decoder: Callable[[Any], Any], write: Callable[[Any], bytes], document: Callable[[Buffer], Any]
    ) -> None:
        self.name = name
        self.write = write
        self.document = document
        self.empty = Raw(write({}))
        self._decoder: Callable[[Any], Any] = cache(decoder)

    def read(self, text: Buffer | Raw, kind: type[T]) -> T:
        """What `text` says; InvalidRequest with the place of whatever is wrong with it."""
        try:
            found: T = self._decoder(kind).decode(text)
            return found
        except UnicodeDecodeError:
            raise InvalidRequest("the message is not UTF-8 text") from None
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"the message is not what this takes: {told(error, kind)}") from None
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"the message is not {self.name}: {error}") from None
        except RecursionError:
            raise InvalidRequest("the message is nested too deeply") from None

    def request_id(self, text: Buffer) -> str:
        """The request id in a message that may be wrong otherwise, '' when there is none to be found."""
        try:
            return self.read(text, _Named).request_id
        except InvalidRequest:
            return ""


JSON: Final = Form("JSON", msgspec.json.Decoder, msgspec.json.Encoder().encode, Raw)
MSGPACK: Final = Form("msgpack", msgspec.msgpack.Decoder, msgspec.msgpack.Encoder().encode, msgspec.json.decode)


def form_of(head: memoryview) -> Form:
    """The form that a message is in; JSON when it is neither."""
    return MSGPACK if len(head) and head[0] in _MAPS else JSON
