import datetime

from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from moc.transports.grpc.stubs.moc.v1 import workers_pb2 as _workers_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("version", "replica", "host", "pid", "state", "started_at", "uptime_s", "data_dir", "store", "urls", "seats", "workers", "memory")
    class Seat(_message.Message):
        __slots__ = ("name", "holder", "term")
        NAME_FIELD_NUMBER: _ClassVar[int]
        HOLDER_FIELD_NUMBER: _ClassVar[int]
        TERM_FIELD_NUMBER: _ClassVar[int]
        name: str
        holder: str
        term: int
        def __init__(self, name: _Optional[str] = ..., holder: _Optional[str] = ..., term: _Optional[int] = ...) -> None: ...
    class Memory(_message.Message):
        __slots__ = ("total_bytes", "available_bytes", "coordinator_bytes")
        TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
        AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
        COORDINATOR_BYTES_FIELD_NUMBER: _ClassVar[int]
        total_bytes: int
        available_bytes: int
        coordinator_bytes: int
        def __init__(self, total_bytes: _Optional[int] = ..., available_bytes: _Optional[int] = ..., coordinator_bytes: _Optional[int] = ...) -> None: ...
    class UrlsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    DATA_DIR_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    URLS_FIELD_NUMBER: _ClassVar[int]
    SEATS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    version: str
    replica: str
    host: str
    pid: int
    state: str
    started_at: _timestamp_pb2.Timestamp
    uptime_s: float
    data_dir: str
    store: str
    urls: _containers.ScalarMap[str, str]
    seats: _containers.RepeatedCompositeFieldContainer[StatusResponse.Seat]
    workers: _containers.RepeatedCompositeFieldContainer[_workers_pb2.Worker]
    memory: StatusResponse.Memory
    def __init__(self, version: _Optional[str] = ..., replica: _Optional[str] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ..., state: _Optional[str] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., uptime_s: _Optional[float] = ..., data_dir: _Optional[str] = ..., store: _Optional[str] = ..., urls: _Optional[_Mapping[str, str]] = ..., seats: _Optional[_Iterable[_Union[StatusResponse.Seat, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[_workers_pb2.Worker, _Mapping]]] = ..., memory: _Optional[_Union[StatusResponse.Memory, _Mapping]] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: int
    def __init__(self, after: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("id", "at", "kind", "subject", "reason", "actor", "data")
    ID_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    id: int
    at: _timestamp_pb2.Timestamp
    kind: str
    subject: str
    reason: str
    actor: str
    data: _struct_pb2.Struct
    def __init__(self, id: _Optional[int] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., kind: _Optional[str] = ..., subject: _Optional[str] = ..., reason: _Optional[str] = ..., actor: _Optional[str] = ..., data: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...
