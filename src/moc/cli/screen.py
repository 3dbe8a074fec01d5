"""What a person or a pipe gets to see: tables on a terminal, plain columns in a pipe, JSON when asked for."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from moc.client.views import Page, V
from moc.kernel.units import Bytes

_COLOURS = {
    "ready": "green",
    "ok": "green",
    "online": "green",
    "loading": "cyan",
    "draining": "yellow",
    "unloading": "yellow",
    "cordoned": "yellow",
    "warn": "yellow",
    "failed": "red",
    "fail": "red",
    "gone": "red",
    "lost": "red",
}


SHORT_MAX = 60
"""How many characters of a long name have a place in a table."""

_CONTROL = {
    **{chr(code): f"^{chr(code ^ 64)}" for code in (*range(32), 127) if chr(code) not in "\n\t"},
    **{chr(code): f"\\x{code:02x}" for code in range(128, 160)},
}


def is_terminal() -> bool:
    """Whether what is printed goes to a person."""
    return sys.stdout.isatty()


def printable(text: str) -> str:
    """The text without control characters, which could make a terminal do or hide something."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def visible(text: str) -> str:
    """The text with control characters as a person can read them, such as ^[; what overwrites a line begins one."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(_CONTROL.get(character, character) for character in lines)


def short(text: str) -> str:
    """The text, or what of it has a place in a table."""
    return text if len(text) <= SHORT_MAX else f"{text[: SHORT_MAX - 1]}…"


def write(text: str) -> None:
    """Print what came from elsewhere as it is, or made harmless if it goes to a terminal; at once, without newline."""
    sys.stdout.write(printable(text) if is_terminal() else text)
    sys.stdout.flush()


def line(text: str) -> None:
    """Print one line."""
    write(f"{text}\n")


def note(text: str) -> None:
    """Say something beside what is printed, on standard error."""
    print(printable(text), file=sys.stderr)


def complain(text: str) -> None:
    """Say what went wrong, on standard error."""
    print(f"moc: {printable(text)}", file=sys.stderr)


def json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def json_line(value: Any) -> None:
    """Print a value as one line of JSON, at once."""
    print(msgspec.json.encode(value).decode(), flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their columns' names."""
    cells = [[_one_line(cell) for cell in row] for row in rows]
    if not is_terminal():
        _plain([[column.upper() for column in columns], *cells])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        drawn.add_column(column.upper(), overflow="fold")
    for row in cells:
        drawn.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    Console(highlight=False).print(drawn)


def fields(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names with their values, one a line, without those that have none."""
    told = [(name, _one_line(value)) for name, value in pairs if value]
    width = max((len(name) for name, _ in told), default=0)
    for name, value in told:
        line(f"{name:<{width}}  {value}")


def size(count: int | None) -> str:
    """Bytes for a person; nothing for None."""
    return "" if count is None else str(Bytes(count))


def every(part: Callable[[str | None], Page[V]]) -> list[V]:
    """All items of a paged list."""
    page = part(None)
    found = page["items"]
    while page["next"] is not None:
        page = part(page["next"])
        found.extend(page["items"])
    return found


def _one_line(text: str) -> str:
    return printable(text).replace("\n", " ").replace("\t", " ")


def _plain(rows: list[list[str]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
