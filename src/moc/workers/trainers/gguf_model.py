"""A GGUF file that is another one with some of its weights changed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize

Array = np.ndarray[Any, np.dtype[Any]]
Change = Callable[[Array], Array]
"""Makes of a weight, as float32, what it is to be."""

_PLAIN = frozenset({GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16})
_QUANTISED = GGMLQuantizationType.Q8_0
_BLOCK = gguf.GGML_QUANT_SIZES[_QUANTISED][0]
_OWN = (gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.ALIGNMENT, gguf.Keys.General.FILE_TYPE)


def write_gguf_model(base: Path, path: Path, changes: Mapping[str, Change]) -> None:
    """Write `base` with `changes` to the tensors they are named after; in memory is one tensor at a time.

    What is not changed is taken over byte by byte. A weight that was quantised is so again, to eight bits.
    """
    reader = GGUFReader(base)
    kinds = {tensor.name: _kind(tensor) if tensor.name in changes else tensor.tensor_type for tensor in reader.tensors}
    writer = GGUFWriter(path, reader.fields[gguf.Keys.General.ARCHITECTURE].contents())
    _describe(writer, reader, requantised=any(kinds[tensor.name] != tensor.tensor_type for tensor in reader.tensors))
    for tensor in reader.tensors:
        _announce(writer, tensor, kinds[tensor.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        change = changes.get(tensor.name)
        if change is None:
            writer.write_tensor_data(tensor.data)
        else:
            changed = change(dequantize(tensor.data, tensor.tensor_type))
            writer.write_tensor_data(quantize(np.ascontiguousarray(changed), kinds[tensor.name]))
    writer.close()


def _kind(tensor: Any) -> GGMLQuantizationType:
    """How a changed tensor is stored."""
    if tensor.tensor_type in _PLAIN:
        return GGMLQuantizationType(tensor.tensor_type)
    return _QUANTISED if tensor.shape[0] % _BLOCK == 0 else GGMLQuantizationType.F16


def _announce(writer: GGUFWriter, tensor: Any, kind: GGMLQuantizationType) -> None:
    shape = tuple(int(size) for size in tensor.shape[::-1])
    block, size = gguf.GGML_QUANT_SIZES[kind]
    # the type is told on its own, so that of the array says nothing
    writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), int(np.prod(shape)) // block * size, kind)


def _describe(writer: GGUFWriter, reader: GGUFReader, *, requantised: bool) -> None:
    """All that `reader` says of itself but its weights."""
    for field in reader.fields.values():
        if field.name in _OWN or field.name.startswith("GGUF."):
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    alignment, kind = (reader.fields.get(key) for key in _OWN[1:])
    if alignment is not None:
        writer.add_custom_alignment(alignment.contents())
    if requantised:
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    elif kind is not None:
        writer.add_file_type(kind.contents())
