"""What a program wrote into its progress file: anybody's program, so anything at all."""

import json
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

from moc.learning.ports import News

LINE_BYTES_MAX = 1024 * 1024
READ_BYTES_MAX = 4 * LINE_BYTES_MAX
LINES_MAX = 500
"""How many lines one reading gives: whoever takes them up does other things as well."""

_EXCERPT = 200


def read_news(file: BinaryIO, after_bytes: int, *, over: bool) -> News:
    """The complete lines behind `after_bytes`, some at a time; with `over` a sound last one needs no end.

    For a line that is no JSON object, or is too long, there is a warning instead.
    """
    file.seek(max(0, after_bytes - 1))
    inside = after_bytes > 0 and file.read(1) != b"\n"
    text = file.read(READ_BYTES_MAX)
    skipped = (text.find(b"\n") + 1 or len(text)) if inside else 0  # the rest of a line that was too long
    *lines, last = text[skipped:].split(b"\n", LINES_MAX)
    if len(lines) == LINES_MAX:
        text, last = text[: len(text) - len(last)], b""
    told = [_read(line) or _warning(line) for line in lines if line.strip()]
    read_bytes = after_bytes + len(text) - len(last)
    if len(last) > LINE_BYTES_MAX:
        return News((*told, _warning(last)), read_bytes + len(last))
    if over and read_bytes + len(last) == file.seek(0, os.SEEK_END):
        found = _read(last)  # None for one that was cut off in the middle, with its program
        return News((*told, *([found] if found else [])), read_bytes + len(last))
    return News(tuple(told), read_bytes)


def _read(line: bytes) -> Mapping[str, Any] | None:
    try:
        told = json.loads(line.decode("utf-8", "replace")) if len(line) <= LINE_BYTES_MAX else None
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _warning(line: bytes) -> Mapping[str, Any]:
    excerpt = line[:_EXCERPT].decode("utf-8", "replace")
    what = f"has more than {LINE_BYTES_MAX} bytes" if len(line) > LINE_BYTES_MAX else "is no JSON object"
    return {"type": "message", "level": "warn", "message": f"a line of the progress file {what}: {excerpt!r}"}
