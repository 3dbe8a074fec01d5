"""Our proto files against the generated code of the clients that they have to fit, field by field."""

import base64
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from moc.transports.grpc.stubs.inference import grpc_service_pb2, model_config_pb2

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "clients" / "descriptors.py"

PART_ONLY = {
    "ModelConfig",
    "ModelDynamicBatching",
    "ModelInput",
    "ModelOutput",
    "ModelInstanceGroup",
    "ModelStatistics",
}
"""Messages of Triton's that we only tell a part of."""

OURS = {
    "RepositoryModelLoadResponse.model_name",
    "RepositoryModelLoadResponse.isLoaded",
    "RepositoryModelUnloadResponse.model_name",
    "RepositoryModelUnloadResponse.isUnloaded",
}
"""Fields for KServe's clients that Triton's do not know."""

KSERVE_NAMES = {"RepositoryModelLoadRequest", "RepositoryModelUnloadRequest"}
"""Messages in which KServe has another name for field 1."""


def theirs(environment: str, *modules: str) -> list[FileDescriptorProto]:
    python = ROOT / ".venvs" / environment / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{environment} is not installed: run `make clients`")
    done = subprocess.run([str(python), str(SCRIPT), *modules], capture_output=True, text=True, check=True)
    return list(FileDescriptorSet.FromString(base64.b64decode(done.stdout)).file)


def ours() -> list[FileDescriptorProto]:
    found = FileDescriptorSet()
    for module in (grpc_service_pb2, model_config_pb2):
        module.DESCRIPTOR.CopyToProto(found.file.add())
    return list(found.file)


def fields(files: Iterable[FileDescriptorProto]) -> dict[str, dict[int, tuple[str, ...]]]:
    """Each message's fields by number: what is on the wire, and what they are called."""
    messages = (pair for file in files for pair in _messages("", file.message_type))
    return {path: {field.number: _field(field, message) for field in message.field} for path, message in messages}


def _messages(prefix: str, messages: Iterable[DescriptorProto]) -> Iterator[tuple[str, DescriptorProto]]:
    for message in messages:
        yield prefix + message.name, message
        yield from _messages(f"{prefix}{message.name}.", message.nested_type)


def _field(field: FieldDescriptorProto, message: DescriptorProto) -> tuple[str, ...]:
    choice = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
    return (field.name, str(field.type), str(field.label), field.type_name, choice)


def methods(files: Iterable[FileDescriptorProto]) -> dict[str, tuple[str, str, bool, bool]]:
    return {
        f"{file.package}.{service.name}/{method.name}": (
            method.input_type,
            method.output_type,
            method.client_streaming,
            method.server_streaming,
        )
        for file in files
        for service in file.service
        for method in service.method
    }


def enums(files: Iterable[FileDescriptorProto]) -> dict[str, dict[str, int]]:
    def values(enum: EnumDescriptorProto) -> dict[str, int]:
        return {value.name: value.number for value in enum.value}

    found = {enum.name: values(enum) for file in files for enum in file.enum_type}
    nested = (pair for file in files for pair in _messages("", file.message_type))
    return found | {f"{path}.{enum.name}": values(enum) for path, message in nested for enum in message.enum_type}


def test_triton_and_we_mean_the_same() -> None:
    triton = theirs("tritonclient", "tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2")
    there, here = fields(triton), fields(ours())
    assert here.keys() <= there.keys()
    for path, own in here.items():
        shared = {number: field for number, field in own.items() if f"{path}.{field[0]}" not in OURS}
        expected = there[path] if path not in PART_ONLY else {number: there[path][number] for number in shared}
        assert shared == expected, path
    assert methods(ours()).items() <= methods(triton).items()
    assert enums(ours()).items() <= enums(triton).items()


def test_kserve_and_we_mean_the_same() -> None:
    kserve = theirs("kserve", "kserve.protocol.grpc.grpc_predict_v2_pb2")
    there, here = fields(kserve), fields(ours())
    assert there.keys() <= here.keys()
    for path, expected in there.items():
        skipped = 1 if path in KSERVE_NAMES else 0
        for number, field in expected.items():
            assert here[path][number][skipped:] == field[skipped:], f"{path}.{field[0]}"
    assert methods(kserve).items() <= methods(ours()).items()
