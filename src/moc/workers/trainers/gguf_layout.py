"""Where a GGUF file has the weights that Transformers calls by other names, and in which order of rows."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from moc.kernel.errors import InvalidRequest
from moc.learning.architectures import Architecture
from moc.models.headers.gguf import read_gguf

Array = np.ndarray[Any, np.dtype[Any]]
_ARCHITECTURES = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}


class Layout:
    """The layout of one file. InvalidRequest when its architecture is not known well enough."""

    def __init__(self, path: Path) -> None:
        header = read_gguf(path)
        self._shapes = {tensor.name: tensor.shape[::-1] for tensor in header.tensors}
        self._architecture = Architecture.of(header.values, self._shapes)
        self._names = gguf.get_tensor_name_map(_ARCHITECTURES[self._architecture.name], self._architecture.layers)

    @property
    def architecture(self) -> str:
        """Its name, as the file has it."""
        return self._architecture.name

    def name_of(self, name: str) -> str:
        """The tensor of the file that has what Transformers calls `name`; InvalidRequest when there is none."""
        found = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found not in self._shapes:
            raise InvalidRequest(f"{name} was trained, and the GGUF file has no tensor for it")
        return str(found)

    def shape_of(self, tensor: str) -> tuple[int, ...]:
        """Its rows and columns."""
        return self._shapes[tensor]

    def rows_of(self, tensor: str, rows: Array) -> Array:
        """Rows as Transformers has them, in the order of the file: those of a weight, or of its low-rank update."""
        heads = {"attn_q": self._architecture.heads, "attn_k": self._architecture.heads_kv}.get(tensor.split(".")[-2])
        if heads is None or not self._architecture.interleaved:
            return rows
        return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    def weight_of(self, tensor: str, weight: Array) -> Array:
        """A weight as the file has it."""
        if tensor.split(".")[-2].endswith("norm"):
            return weight + np.float32(self._architecture.norm_offset)
        return self.rows_of(tensor, weight)
