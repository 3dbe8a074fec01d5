"""An adapter of PEFT's as one of llama.cpp's."""

from pathlib import Path

import gguf
import numpy as np

from moc.kernel.errors import InvalidRequest
from moc.workers.trainers.gguf_layout import Layout
from moc.workers.trainers.peft_adapter import PeftAdapter, Update


def tensors_of(adapter: PeftAdapter, layout: Layout) -> dict[str, Update]:
    """The updates by the tensors of a GGUF file that they belong to, in its order of rows.

    InvalidRequest when one belongs to none, or does not fit it.
    """
    if adapter.transposed:
        raise InvalidRequest("the adapter is one of transposed weights, which no GGUF file has")
    found = {}
    for module, update in adapter.updates.items():
        tensor = layout.name_of(f"{module}.weight")
        if layout.shape_of(tensor) != update.shape:
            raise InvalidRequest(f"the update of {module} is {update.shape}, and {tensor} {layout.shape_of(tensor)}")
        found[tensor] = Update(update.a, layout.rows_of(tensor, update.b), update.scale)
    return found


def write_gguf_adapter(adapter: PeftAdapter, base: Path, path: Path) -> None:
    """Write it for the GGUF file `base`; InvalidRequest when it is none of that."""
    layout = Layout(base)
    updates = tensors_of(adapter, layout)
    writer = gguf.GGUFWriter(path, layout.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", adapter.alpha)
    for tensor, update in sorted(updates.items()):
        engine_scale = adapter.alpha / update.rank  # its only one, whatever each module has
        writer.add_tensor(f"{tensor}.lora_a", np.ascontiguousarray(update.a))
        writer.add_tensor(f"{tensor}.lora_b", np.ascontiguousarray(update.b * np.float32(update.scale / engine_scale)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
