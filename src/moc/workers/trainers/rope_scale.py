"""How a GGUF file of a Llama since 3.1 stretches its positions, as Transformers is told of it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from moc.kernel.errors import InvalidRequest
from moc.learning.architectures import ROPE_FACTORS

_PUBLISHED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What all of them were published with; the file has only what comes of it, and `factor` is its largest."""


def heed_rope_factors(file: Path, config: transformers.LlamaConfig) -> None:
    """Have `config` turn positions as the file says; as it is, where the file has no factors of its own.

    The file has by what each frequency is divided, Transformers makes these from four numbers. InvalidRequest when
    the numbers known do not make those of the file.
    """
    tensor = next((each for each in GGUFReader(file).tensors if each.name == ROPE_FACTORS), None)
    if tensor is None:
        return
    factors = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type))).flatten()
    plain: Any = config.rope_parameters
    config.rope_parameters = plain | {"rope_type": "llama3", "factor": float(factors.max())} | _PUBLISHED
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    places = torch.arange(0, 2 * len(frequencies), 2) / (2 * len(frequencies))
    expected = plain["rope_theta"] ** -places / frequencies
    if expected.shape != factors.shape or not torch.allclose(expected, factors, rtol=1e-3):
        raise InvalidRequest(
            f"the GGUF file has {ROPE_FACTORS}, and not those of any Llama 3; take its safetensors, with the runtime "
            "transformers"
        )
