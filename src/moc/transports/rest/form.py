"""Forms with a file, read as they come: the file is handed on piece by piece, however large it is."""

from email.message import Message
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from moc.kernel.errors import InvalidRequest

FILE: Final = "file"
_FIELDS_MAX: Final = 20
_FIELD_MAX_BYTES: Final = 64 * 1024


class FormReader:
    """Takes the pieces of a `multipart/form-data` body; InvalidRequest for what is none.

    `fields` are those that came whole by now; `filename` is that of the part `file`, None until that comes.
    """

    def __init__(self, content_type: bytes | None) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._whole = False
        self._pieces: list[bytes] = []
        self._header = [b"", b""]
        self._disposition = b""
        self._name = ""
        self._value = bytearray()
        self._is_file = False
        self._parser = MultipartParser(
            _boundary(content_type),
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_content,
                "on_part_data": lambda data, start, end: self._add_content(data[start:end]),
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> bytes:
        """What the next piece of the body has of the file."""
        if self._whole and data.strip(b"\r\n"):
            raise InvalidRequest("the body goes on behind the end of the form; send nothing after that")
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequest(f"the body is not a form: {error}") from None
        found = b"".join(self._pieces)
        self._pieces.clear()
        return found

    def finish(self) -> str:
        """The file's name, now that the body is over; InvalidRequest when the form is not whole or has no file."""
        if not self._whole:
            raise InvalidRequest("the form has no end; send it whole, in parts divided by its `boundary`")
        if self.filename is None:
            raise InvalidRequest("the form has no file `file`; send the content as that", details={"param": FILE})
        return self.filename

    def _begin(self) -> None:
        self._disposition, self._value = b"", bytearray()

    def _add_header(self, part: int, data: bytes) -> None:
        self._header[part] += data

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = [b"", b""]

    def _begin_content(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = self._name == FILE and b"filename" in options
        if self._is_file:
            if self.filename is not None:
                raise InvalidRequest("the form has two files; send each in a form of its own", details={"param": FILE})
            self.filename = options[b"filename"].decode("utf-8", "replace")
        elif len(self.fields) >= _FIELDS_MAX:
            raise InvalidRequest(f"the form has more than {_FIELDS_MAX} fields")

    def _add_content(self, data: bytes) -> None:
        if self._is_file:
            self._pieces.append(data)
            return
        self._value += data
        if len(self._value) > _FIELD_MAX_BYTES:
            raise InvalidRequest(f"the field {self._name[:40]!r} of the form has more than {_FIELD_MAX_BYTES} bytes")

    def _end_part(self) -> None:
        if not self._is_file:
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._whole = True


def _boundary(content_type: bytes | None) -> str:
    described = Message()
    described["content-type"] = (content_type or b"").decode("latin-1")
    boundary = described.get_boundary("")
    if described.get_content_type() != "multipart/form-data" or not boundary:
        raise InvalidRequest("the body has to be multipart/form-data with a boundary, and the content as `file`")
    return boundary
