"""Server reflection: clients without the proto files find out what is served. It needs a key, like what it tells of."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from typing import Final

from google.protobuf import descriptor_pool, json_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2 as pb

from moc.transports.grpc.call import Call, Method, Stream
from moc.transports.grpc.messages import read

V1ALPHA: Final = "grpc.reflection.v1alpha.ServerReflection"
V1: Final = "grpc.reflection.v1.ServerReflection"
_NOT_FOUND: Final = 5
_UNIMPLEMENTED: Final = 12


class Reflection:
    """The service's methods, in both versions, whose messages are the same."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = sorted({*services, V1ALPHA, V1})
        self._pool = descriptor_pool.DescriptorPool()
        self._names: set[str] = set()
        for service in self._services:
            if service != V1:
                self._add(descriptor_pool.Default().FindFileContainingSymbol(service))
        self._pool.Add(_version_1())

    def methods(self) -> dict[str, Method]:
        """By path."""
        return {f"/{service}/ServerReflectionInfo": Stream(self._info) for service in (V1, V1ALPHA)}

    async def _info(self, requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes, None]:
        async for data in requests:
            request = read(pb.ServerReflectionRequest, data)
            answer = self._answer(request)
            answer.valid_host = request.host
            answer.original_request.CopyFrom(request)
            yield answer.SerializeToString()

    def _answer(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        try:
            if request.HasField("list_services"):
                names = [pb.ServiceResponse(name=name) for name in self._services]
                return pb.ServerReflectionResponse(list_services_response=pb.ListServiceResponse(service=names))
            if request.HasField("file_by_filename"):
                return _files(self._pool.FindFileByName(request.file_by_filename))
            if request.HasField("file_containing_symbol"):
                return _files(self._pool.FindFileContainingSymbol(request.file_containing_symbol))
        except KeyError:
            return _error(_NOT_FOUND, "there is no such file or symbol here")
        return _error(_UNIMPLEMENTED, "no message here has extensions")

    def _add(self, file: FileDescriptor) -> None:
        """Bring a file and all that it needs into the pool: what else the process has loaded is nobody's business."""
        for each in _with_dependencies(file):
            if each.name not in self._names:
                self._names.add(each.name)
                self._pool.Add(_described(each))


def _with_dependencies(file: FileDescriptor) -> Iterator[FileDescriptor]:
    """What a file needs, then the file."""
    for dependency in file.dependencies:
        yield from _with_dependencies(dependency)
    yield file


def _described(file: FileDescriptor) -> FileDescriptorProto:
    described = FileDescriptorProto()
    file.CopyToProto(described)
    return described


def _version_1() -> FileDescriptorProto:
    """The file of version 1, which differs in its name alone."""
    text = json_format.MessageToJson(_described(descriptor_pool.Default().FindFileContainingSymbol(V1ALPHA)))
    return json_format.Parse(text.replace("v1alpha", "v1"), FileDescriptorProto())


def _files(file: FileDescriptor) -> pb.ServerReflectionResponse:
    found = {each.name: _described(each).SerializeToString() for each in _with_dependencies(file)}
    files = pb.FileDescriptorResponse(file_descriptor_proto=reversed(found.values()))
    return pb.ServerReflectionResponse(file_descriptor_response=files)


def _error(code: int, message: str) -> pb.ServerReflectionResponse:
    return pb.ServerReflectionResponse(error_response=pb.ErrorResponse(error_code=code, error_message=message))
