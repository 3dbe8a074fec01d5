"""Server-sent events out of a byte stream, however it was cut on its way."""

from moc.kernel.errors import Internal

EVENT_BYTES_MAX = 8 * 1024**2
_BOM = b"\xef\xbb\xbf"


class Events:
    """Give it blocks of the stream in order and get the data of the events that are complete by then.

    Lines may end in LF, CRLF or CR. Comments, names, ids and events without data are passed over.
    """

    __slots__ = ("_held", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._held = b""

    def feed(self, block: bytes) -> list[bytes]:
        """The data of each event that ends in `block`; Internal when one grows past `EVENT_BYTES_MAX`."""
        text, self._held = self._held + block, b""
        if b"\r" in text:
            if text.endswith(b"\r"):  # half a line break, or a whole one: the next byte tells
                text, self._held = text[:-1], b"\r"
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        rest = self._rest
        goes_on = b"\n\n" not in rest[-1:] + text  # looking at the new bytes alone: a long event is not read again
        rest += text
        events: list[bytes] = []
        if not goes_on:
            *events, last = bytes(rest).split(b"\n\n")
            rest = self._rest = bytearray(last)
        if len(rest) > EVENT_BYTES_MAX:
            raise Internal(f"the upstream sends an event of more than {EVENT_BYTES_MAX} bytes")
        return _data_of(events)

    def end(self) -> list[bytes]:
        """The data of a last event that no blank line follows."""
        rest = bytes(self._rest) + self._held
        self._rest, self._held = bytearray(), b""
        return _data_of([rest.replace(b"\r", b"\n")])


def _data_of(events: list[bytes]) -> list[bytes]:
    found = (
        event[6:] if event.startswith(b"data: ") and b"\n" not in event else _joined(event) for event in events if event
    )
    return [data for data in found if data]


def _joined(event: bytes) -> bytes:
    """The data of an event with several lines, empty when it has none."""
    lines = [
        line[5:].removeprefix(b" ")
        for line in event.removeprefix(_BOM).split(b"\n")
        if line.startswith(b"data:") or line == b"data"
    ]
    return b"\n".join(lines)
