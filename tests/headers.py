"""Model files of a few hundred bytes, written field by field."""

import json
import struct
from collections.abc import Mapping
from typing import Any

_INT, _TEXT, _LIST, _FLAG = 4, 8, 9, 7


def gguf(entries: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], int, int]]) -> bytes:
    """A GGUF file; each tensor is (shape, format, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))
    head += b"".join(text(key) + _value(value) for key, value in entries.items())
    start = 0
    for name, (shape, kind, size) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", kind, start)
        start += -(-size // 32) * 32
    return head + bytes(-len(head) % 32) + bytes(start)


def text(value: str) -> bytes:
    """A text as GGUF has it."""
    return struct.pack("<Q", len(value)) + value.encode()


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", _FLAG, value)
        case int():
            return struct.pack("<II", _INT, value)
        case str():
            return struct.pack("<I", _TEXT) + text(value)
        case [int(), *_]:
            return struct.pack(f"<IIQ{len(value)}I", _LIST, _INT, len(value), *value)
        case _:
            return struct.pack("<IIQ", _LIST, _TEXT, len(value)) + b"".join(text(each) for each in value)


def safetensors(tensors: dict[str, tuple[str, int]], *, length: int | None = None) -> bytes:
    """A safetensors file; each tensor is (dtype, bytes). `length` is what it claims of its header."""
    described, start = {}, 0
    for name, (dtype, size) in tensors.items():
        described[name] = {"dtype": dtype, "shape": [size], "data_offsets": [start, start + size]}
        start += size
    head = json.dumps({"__metadata__": {"format": "pt"}, **described}).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + bytes(start)


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    """A protobuf number."""
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])
