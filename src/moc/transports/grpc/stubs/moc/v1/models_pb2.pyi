import datetime

from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from moc.transports.grpc.stubs.moc.v1 import workers_pb2 as _workers_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelReference(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("after", "limit")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    after: str
    limit: int
    def __init__(self, after: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next: _Optional[str] = ...) -> None: ...

class AddModelRequest(_message.Message):
    __slots__ = ("name", "spec")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., spec: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "reference", "state", "reason", "message", "digest", "runtime", "source", "options", "devices", "memory_bytes", "expected_memory", "host_memory_bytes", "shards", "group", "min_residency_s", "preload", "pin", "ttl_s", "priority", "max_concurrent", "max_queue", "created_at", "changed_at", "artifact", "load_s", "info", "adopted", "worker", "problem", "batching", "canary", "cost", "circuit", "lineage")
    class Artifact(_message.Message):
        __slots__ = ("sha256", "size_bytes")
        SHA256_FIELD_NUMBER: _ClassVar[int]
        SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
        sha256: str
        size_bytes: int
        def __init__(self, sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...
    class ExpectedMemory(_message.Message):
        __slots__ = ("bytes", "how")
        BYTES_FIELD_NUMBER: _ClassVar[int]
        HOW_FIELD_NUMBER: _ClassVar[int]
        bytes: int
        how: str
        def __init__(self, bytes: _Optional[int] = ..., how: _Optional[str] = ...) -> None: ...
    class Lineage(_message.Message):
        __slots__ = ("base", "base_digest", "data_digest", "job", "type", "method", "hyperparameters", "seed", "code_version", "metrics", "trained_tokens", "licence")
        class MetricsEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: float
            def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
        BASE_FIELD_NUMBER: _ClassVar[int]
        BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
        DATA_DIGEST_FIELD_NUMBER: _ClassVar[int]
        JOB_FIELD_NUMBER: _ClassVar[int]
        TYPE_FIELD_NUMBER: _ClassVar[int]
        METHOD_FIELD_NUMBER: _ClassVar[int]
        HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
        SEED_FIELD_NUMBER: _ClassVar[int]
        CODE_VERSION_FIELD_NUMBER: _ClassVar[int]
        METRICS_FIELD_NUMBER: _ClassVar[int]
        TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
        LICENCE_FIELD_NUMBER: _ClassVar[int]
        base: str
        base_digest: str
        data_digest: str
        job: str
        type: str
        method: str
        hyperparameters: _struct_pb2.Struct
        seed: int
        code_version: str
        metrics: _containers.ScalarMap[str, float]
        trained_tokens: int
        licence: str
        def __init__(self, base: _Optional[str] = ..., base_digest: _Optional[str] = ..., data_digest: _Optional[str] = ..., job: _Optional[str] = ..., type: _Optional[str] = ..., method: _Optional[str] = ..., hyperparameters: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., seed: _Optional[int] = ..., code_version: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ..., trained_tokens: _Optional[int] = ..., licence: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    HOST_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MIN_RESIDENCY_S_FIELD_NUMBER: _ClassVar[int]
    PRELOAD_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    ADOPTED_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    BATCHING_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    CIRCUIT_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    reference: str
    state: str
    reason: str
    message: str
    digest: str
    runtime: str
    source: str
    options: _struct_pb2.Struct
    devices: _containers.RepeatedScalarFieldContainer[str]
    memory_bytes: int
    expected_memory: Model.ExpectedMemory
    host_memory_bytes: int
    shards: int
    group: str
    min_residency_s: float
    preload: bool
    pin: bool
    ttl_s: float
    priority: int
    max_concurrent: int
    max_queue: int
    created_at: _timestamp_pb2.Timestamp
    changed_at: _timestamp_pb2.Timestamp
    artifact: Model.Artifact
    load_s: float
    info: _struct_pb2.Struct
    adopted: bool
    worker: _workers_pb2.Worker
    problem: str
    batching: _struct_pb2.Struct
    canary: _struct_pb2.Struct
    cost: float
    circuit: str
    lineage: Model.Lineage
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., reference: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., digest: _Optional[str] = ..., runtime: _Optional[str] = ..., source: _Optional[str] = ..., options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., devices: _Optional[_Iterable[str]] = ..., memory_bytes: _Optional[int] = ..., expected_memory: _Optional[_Union[Model.ExpectedMemory, _Mapping]] = ..., host_memory_bytes: _Optional[int] = ..., shards: _Optional[int] = ..., group: _Optional[str] = ..., min_residency_s: _Optional[float] = ..., preload: _Optional[bool] = ..., pin: _Optional[bool] = ..., ttl_s: _Optional[float] = ..., priority: _Optional[int] = ..., max_concurrent: _Optional[int] = ..., max_queue: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., changed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., artifact: _Optional[_Union[Model.Artifact, _Mapping]] = ..., load_s: _Optional[float] = ..., info: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., adopted: _Optional[bool] = ..., worker: _Optional[_Union[_workers_pb2.Worker, _Mapping]] = ..., problem: _Optional[str] = ..., batching: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., canary: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., cost: _Optional[float] = ..., circuit: _Optional[str] = ..., lineage: _Optional[_Union[Model.Lineage, _Mapping]] = ...) -> None: ...
