"""How much memory a job needs, before anybody has measured it. Pure.

    an engine + weights + what training adds to each trained weight
              + tokens at once x (vocabulary x LOGITS x 4 + layers kept x layer x element)
    layer: WIDTHS x width + FEEDS x feed-forward

An element has 4 bytes; 2 on a GPU where only an adapter is trained. Tokens at once are `batch_size` x `max_length`,
twice that for preferences, which compare two answers. All layers are kept, or, with gradient checkpointing, the input
of each and all of two. The constants are those of SmolLM2 (135 M) in float32 on a processor, MiB:

    method  batch  length  checkpointing  estimated  measured
    lora        1     128  no                  1551      1526
    lora        4     128  no                  2819      2808
    lora        4     512  no                  7893      7751
    lora        1    1024  no                  4510      4464
    lora        4     512  yes                 5298      4932
    full        2     128  no                  3473      2985
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moc.learning.job import JobType

MIB = 2**20
ENGINE_BYTES = 575 * MIB
"""The libraries of a training in main memory."""

CUDA_CONTEXT_BYTES = 600 * MIB
LOGITS = 10
"""How often the logits of a token are held at most: as they come, for the loss, for its gradient, for the metrics."""

WIDTHS, FEEDS = 11, 4
"""Activations that a layer keeps of a token, in widths of the model and of its feed-forward part."""

ADAM_BYTES = 12
"""What a trained weight has beside itself: its gradient and two moments, in float32."""

WHOLE_LAYERS = 2
"""Layers that are computed anew at once, with gradient checkpointing."""

DEFAULTS = {JobType.EVALUATE: 512 * MIB, JobType.TUNE: 256 * MIB, JobType.SCRIPT: 1024 * MIB}
"""What jobs that train nothing themselves are given if nobody says, and such jobs were never measured."""

_SHAPE = 110_592
"""Weights of a usual model whose width is 96 times its number of layers, divided by the third power of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """The numbers of a model that decide what training it takes."""

    parameters: int
    layers: int
    width: int
    feed_forward: int
    vocabulary: int

    @classmethod
    def usual(cls, parameters: int) -> "Dimensions":
        """Those of a usual model of so many weights, for one whose files do not tell."""
        layers = max(1, round((parameters / _SHAPE) ** (1 / 3)))
        return cls(
            parameters=parameters, layers=layers, width=96 * layers, feed_forward=384 * layers, vocabulary=65_536
        )


def estimate(type: JobType, model: Dimensions, hyperparameters: Mapping[str, Any], *, on_gpu: bool) -> int:
    """Bytes that a training needs of its device; `hyperparameters` with every default filled in."""
    full = hyperparameters["method"] == "full"
    element = 2 if on_gpu and not full else 4
    trained = model.parameters if full else _adapter_weights(model, hyperparameters["lora_rank"])
    weights = element * model.parameters + ADAM_BYTES * trained + (0 if full else 4 * trained)
    reference = element * model.parameters if full and type is JobType.DPO else 0
    tokens: int = hyperparameters["batch_size"] * hyperparameters["max_length"] * (2 if type is JobType.DPO else 1)
    layer = WIDTHS * model.width + FEEDS * model.feed_forward
    kept = model.layers * layer
    if hyperparameters["gradient_checkpointing"]:
        kept = min(kept, model.layers * model.width + WHOLE_LAYERS * layer)
    activations = tokens * (4 * LOGITS * model.vocabulary + element * kept)
    return (CUDA_CONTEXT_BYTES if on_gpu else ENGINE_BYTES) + weights + reference + activations


def _adapter_weights(model: Dimensions, rank: int) -> int:
    """Two narrow matrices beside each of the four of attention and the three of the feed-forward part."""
    return model.layers * rank * (8 * model.width + 3 * (model.width + model.feed_forward))
