"""Reads server-sent events from bytes as they come."""

from moc.kernel.errors import TooLarge

_LINE_MAX = 16 * 1024 * 1024


class SseDecoder:
    """Gives the data of each whole event. Lines end at LF or CRLF only: text may hold any other separator."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> list[bytes]:
        """Take the next bytes and return the data of the events they complete, oldest first.

        Raises TooLarge when a line is longer than 16 MiB.
        """
        self._rest += received
        whole, newline, rest = self._rest.rpartition(b"\n")
        if len(rest) > _LINE_MAX:
            raise TooLarge(f"a line of the event stream is longer than {_LINE_MAX} bytes; ask for less at once")
        if not newline:
            return []
        self._rest = rest
        found = []
        for line in bytes(whole).split(b"\n"):
            content = line.removesuffix(b"\r")
            if content.startswith(b"data:"):
                self._data.append(content[5:].removeprefix(b" "))
            elif not content and self._data:
                found.append(b"\n".join(self._data))
                self._data = []
        return found
