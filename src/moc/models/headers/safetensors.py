"""The header of a safetensors file: eight bytes of length, then JSON that describes each tensor."""

from pathlib import Path

import msgspec

from moc.models.headers.reader import reading

HEADER_BYTES_MAX = 32 * 2**20
METADATA = "__metadata__"


class _Tensor(msgspec.Struct):
    dtype: str
    data_offsets: tuple[int, int]


_decode_header = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_tensor = msgspec.json.Decoder(_Tensor).decode


def read_safetensors(path: Path) -> dict[str, int]:
    """Bytes by dtype (`F32`, `BF16`, …); BadHeader when it is no such file, OSError when unreadable."""
    with reading(path) as reader:
        text = reader.take(reader.u64(), limit=HEADER_BYTES_MAX)
        held: dict[str, int] = {}
        try:
            for name, raw in _decode_header(text).items():
                if name != METADATA:
                    tensor = _decode_tensor(raw)
                    begin, end = tensor.data_offsets
                    if not 0 <= begin <= end <= reader.left:
                        raise reader.bad(f"a tensor lies from {begin} to {end} of {reader.left} bytes")
                    held[tensor.dtype] = held.get(tensor.dtype, 0) + end - begin
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise reader.bad(f"its header is not what it should be: {error}") from None
        if sum(held.values()) > reader.left:
            raise reader.bad("its tensors overlap")
        return held
