"""The header of a GGUF file: what llama.cpp is told of a model before its weights.

Layout: `GGUF`, version, number of tensors, number of entries, the entries (key, type, value), then of each
tensor its name, shape, type and where its bytes begin behind the header.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

from moc.models.headers.reader import Reader, reading

Value = int | float | str | list[int]

ENTRIES_MAX = 4096
TENSORS_MAX = 100_000
DIMENSIONS_MAX = 8
NAME_BYTES_MAX = 512
KEPT_TEXT_BYTES = 256
KEPT_NUMBERS = 1024
SMALLEST_ENTRY_BYTES = 13
SMALLEST_TENSOR_BYTES = 24
DEFAULT_ALIGNMENT = 32

_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_FRACTIONS = {6, 12}
_TEXT = 8
_LIST = 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `type` is ggml's number of its format, `bytes` what it takes in the file, padding included."""

    name: str
    shape: tuple[int, ...]
    type: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """A header. `values` are its short entries, `lengths` how many elements its lists have, by key."""

    values: dict[str, Value]
    lengths: dict[str, int]
    tensors: tuple[GgufTensor, ...]


def read_gguf(path: Path) -> Gguf:
    """Read the header of a GGUF file, version 2 or later; BadHeader when it is none, OSError when unreadable."""
    with reading(path) as reader:
        if reader.take(min(4, reader.left)) != b"GGUF":
            raise reader.bad("not a GGUF file")
        version = reader.u32()
        if not 2 <= version <= 99:
            raise reader.bad(f"GGUF version {version} (byte order or age) is not understood")
        tensors, entries = reader.u64(), reader.u64()
        if tensors > min(TENSORS_MAX, reader.left // SMALLEST_TENSOR_BYTES):
            raise reader.bad(f"{tensors} tensors are claimed, more than there can be")
        if entries > min(ENTRIES_MAX, reader.left // SMALLEST_ENTRY_BYTES):
            raise reader.bad(f"{entries} entries are claimed, more than there can be")
        values: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        for _ in range(entries):
            key = _text(reader)
            _entry(reader, key, values, lengths)
        return Gguf(values, lengths, _tensors(reader, tensors, values.get("general.alignment")))


def _entry(reader: Reader, key: str, values: dict[str, Value], lengths: dict[str, int]) -> None:
    kind = reader.u32()
    if kind == _TEXT:
        size = reader.u64()
        if size <= KEPT_TEXT_BYTES:
            values[key] = reader.take(size).decode(errors="replace")
        else:
            reader.skip(size)
    elif kind == _LIST:
        lengths[key] = _list(reader, key, values)
    else:
        values[key] = _scalar(reader, kind)


def _list(reader: Reader, key: str, values: dict[str, Value]) -> int:
    kind, count = reader.u32(), reader.u64()
    if kind == _TEXT:
        reader.skip_texts(count)
        return count
    scalar = _SCALARS.get(kind)
    if scalar is None:
        raise reader.bad(f"a list of type {kind}, which there is not")
    if kind not in _FRACTIONS and count <= KEPT_NUMBERS:
        listed = reader.take(count * scalar.size, limit=KEPT_NUMBERS * 8)
        values[key] = [int(number) for (number,) in scalar.iter_unpack(listed)]
    else:
        reader.skip(count * scalar.size)
    return count


def _scalar(reader: Reader, kind: int) -> int | float:
    scalar = _SCALARS.get(kind)
    if scalar is None:
        raise reader.bad(f"a value of type {kind}, which there is not")
    value: int | float = scalar.unpack(reader.take(scalar.size))[0]
    return value


def _text(reader: Reader) -> str:
    return reader.take(reader.u64(), limit=NAME_BYTES_MAX).decode(errors="replace")


def _tensors(reader: Reader, count: int, alignment: Value | None) -> tuple[GgufTensor, ...]:
    """The tensors; what each takes is told by where the next begins, so that a new format needs no table here."""
    found = []
    for _ in range(count):
        name, dimensions = _text(reader), reader.u32()
        if dimensions > DIMENSIONS_MAX:
            raise reader.bad(f"a tensor of {dimensions} dimensions")
        shape = tuple(reader.u64() for _ in range(dimensions))
        found.append((name, shape, reader.u32(), reader.u64()))
    aligned = alignment if isinstance(alignment, int) and 0 < alignment <= 2**20 else DEFAULT_ALIGNMENT
    begin = -(-reader.at // aligned) * aligned
    starts = sorted({start for *_, start in found})
    if starts and begin + starts[-1] > reader.size:
        raise reader.bad(f"a tensor begins {starts[-1]} bytes behind the header, and the file ends before")
    ends = dict(zip(starts, [*starts[1:], reader.size - begin], strict=True)) if starts else {}
    return tuple(GgufTensor(name, shape, kind, ends[start] - start) for name, shape, kind, start in found)
