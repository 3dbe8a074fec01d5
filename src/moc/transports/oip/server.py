"""What the protocol tells of a server and of its models' tensors."""

from typing import Final

import msgspec

from moc.service.inference import Description, TensorSpec

SERVER_NAME: Final = "modelops-coordinator"
EXTENSIONS: Final = (
    "model_repository",
    "model_repository(unload_dependents)",
    "statistics",
    "model_configuration",
    "binary_tensor_data",
    "generate",
)


class ServerMetadata(msgspec.Struct):
    """Who answers, and which extensions of the protocol it has."""

    name: str
    version: str
    extensions: tuple[str, ...]


class ModelMetadata(msgspec.Struct):
    """A model version's inputs and outputs; -1 is a dimension of any size."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class TensorConfig(msgspec.Struct):
    """An input or output as Triton's configuration writes it."""

    name: str
    data_type: str
    dims: tuple[int, ...]


class DynamicBatching(msgspec.Struct):
    """For how long a request may wait for others to share a call of the engine with."""

    max_queue_delay_microseconds: int


class ModelConfig(msgspec.Struct, omit_defaults=True):
    """A model in the terms of Triton's configuration.

    `max_batch_size` 0: the shapes are whole. Otherwise they lack the first dimension, which is the server's to fill.
    """

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]
    instance_group: list[dict[str, int | str]]
    dynamic_batching: DynamicBatching | None = None


def server_metadata(version: str) -> ServerMetadata:
    """This server, of that version of the program."""
    return ServerMetadata(SERVER_NAME, version, EXTENSIONS)


def model_metadata(found: Description) -> ModelMetadata:
    """A model as callers find out what it takes."""
    versions = tuple(str(version) for version in found.versions)
    return ModelMetadata(found.name, versions, found.platform, found.inputs, found.outputs)


def model_config(found: Description) -> ModelConfig:
    """A model as Triton would have it configured."""
    batching = found.batching
    rows = 0 if batching is None else 1
    return ModelConfig(
        name=found.name,
        platform=found.platform,
        backend=found.platform,
        max_batch_size=0 if batching is None else batching.max_batch,
        input=[_tensor_config(spec, rows) for spec in found.inputs],
        output=[_tensor_config(spec, rows) for spec in found.outputs],
        instance_group=[{"kind": "KIND_AUTO", "count": 1}],
        dynamic_batching=None if batching is None else DynamicBatching(round(batching.max_delay_ms * 1000)),
    )


def _tensor_config(spec: TensorSpec, rows: int) -> TensorConfig:
    datatype = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    return TensorConfig(spec.name, datatype, spec.shape[rows:])
