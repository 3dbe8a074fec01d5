"""How much memory a job needs, before anybody has measured it. Pure.

    base      an engine + weights + what training adds to each trained weight
    working   tokens at once x layers kept x layer x element + logits
      layer     WIDTHS x width + FEEDS x feed-forward
      logits    LOGITS x 4 x (tokens at once, TILE_TOKENS at most) x (vocabulary, TILE_VOCABULARY at most)

An element has 4 bytes; 2 where only an adapter is trained, on a GPU that computes in bfloat16. Tokens at once are
`batch_size` x `max_length`, or the longest row if that is shorter, twice that for preferences of two answers.
All layers are kept, or, with gradient checkpointing, the input of each and all of some. Logits are worked on in tiles.
The constants are those of a processor in float32, of SmolLM2 (135 M) and of small networks with large vocabularies;
docs/explanation/sharing.md has what was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moc.learning.job import JobType

MIB = 2**20
ENGINE_BYTES = 625 * MIB
"""The libraries of a training in main memory."""

CUDA_CONTEXT_BYTES = 600 * MIB
LOGITS, LOGITS_ON_GPU = 9, 2
"""How often a tile of logits is held at most: as they come, for the loss, for its gradient. A GPU works in place."""

TILE_TOKENS, TILE_VOCABULARY = 4096, 32_768
"""Those of TRL."""

WIDTHS, FEEDS = 16, 8
"""Activations that a layer keeps of a token, in widths of the model and of its feed-forward part."""

ADAM_BYTES = 12
"""What a trained weight has beside itself: its gradient and two moments, in float32."""

WHOLE_LAYERS, WHOLE_LAYERS_ON_GPU = 9, 2
"""How many layers are held at once that are computed anew, with gradient checkpointing: in main memory what was freed
is not given back at once."""

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


@dataclass(frozen=True, slots=True)
class Estimate:
    """`base_bytes` are needed whatever is learned from, `working_bytes` as much as is worked on at once."""

    base_bytes: int
    working_bytes: int

    @property
    def bytes(self) -> int:
        return self.base_bytes + self.working_bytes


def estimate(
    type: JobType,
    model: Dimensions,
    hyperparameters: Mapping[str, Any],
    *,
    on_gpu: bool,
    half: bool = True,
    longest: int = 0,
) -> Estimate:
    """What a training needs of its device; `hyperparameters` with every default filled in.

    `half`: the GPU computes in bfloat16. `longest` is how many tokens a row has at most, 0 where that is not known.
    """
    full = hyperparameters["method"] == "full"
    element = 2 if on_gpu and half and not full else 4
    trained = model.parameters if full else _adapter_weights(model, hyperparameters["lora_rank"])
    weights = element * model.parameters + ADAM_BYTES * trained + (0 if full else 4 * trained)
    reference = element * model.parameters if full and type is JobType.DPO else 0
    length = min(hyperparameters["max_length"], longest or hyperparameters["max_length"])
    tokens: int = hyperparameters["batch_size"] * length * (2 if type is JobType.DPO else 1)
    layer = WIDTHS * model.width + FEEDS * model.feed_forward
    kept = model.layers * layer
    if hyperparameters["gradient_checkpointing"]:
        kept = min(kept, model.layers * model.width + (WHOLE_LAYERS_ON_GPU if on_gpu else WHOLE_LAYERS) * layer)
    tile = min(tokens, TILE_TOKENS) * min(model.vocabulary, TILE_VOCABULARY)
    logits = 4 * (LOGITS_ON_GPU if on_gpu else LOGITS) * tile
    engine = CUDA_CONTEXT_BYTES if on_gpu else ENGINE_BYTES
    return Estimate(engine + weights + reference, tokens * element * kept + logits)


def _adapter_weights(model: Dimensions, rank: int) -> int:
    """Two narrow matrices beside each of the four of attention and the three of the feed-forward part."""
    return model.layers * rank * (8 * model.width + 3 * (model.width + model.feed_forward))
