"""The weights of an ONNX file, found by walking its protobuf fields: no schema, no library, nothing decoded."""

from dataclasses import dataclass, field
from pathlib import Path

from moc.models.headers.reader import BadHeader, Reader, reading

DEPTH_MAX = 32
FILES_MAX = 4096
TEXT_BYTES_MAX = 4096

_VARINT, _FIXED64, _MESSAGE, _FIXED32 = 0, 1, 2, 5

# field numbers of onnx.proto
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_ATTRIBUTE = 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_TENSOR_EXTERNAL = 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2

_INSIDE: dict[str, dict[int, str]] = {
    "model": {_MODEL_GRAPH: "graph"},
    "graph": {_GRAPH_NODE: "node", _GRAPH_INITIALIZER: "tensor", _GRAPH_SPARSE: "sparse"},
    "node": {_NODE_ATTRIBUTE: "attribute"},
    "attribute": {
        _ATTRIBUTE_TENSOR: "tensor",
        _ATTRIBUTE_GRAPH: "graph",
        _ATTRIBUTE_TENSORS: "tensor",
        _ATTRIBUTE_GRAPHS: "graph",
    },
    "sparse": {_SPARSE_VALUES: "tensor", _SPARSE_INDICES: "tensor"},
    "tensor": {_TENSOR_EXTERNAL: "entry"},
}
"""Which fields of a message lead to tensors, and to what kind of message."""


@dataclass(slots=True)
class OnnxWeights:
    """Bytes of weights: inside the file, and in the files beside it that it names."""

    embedded_bytes: int = 0
    external_bytes: int = 0
    files: set[str] = field(default_factory=set)


def read_onnx(path: Path) -> OnnxWeights:
    """Add up the weights; BadHeader when it is no ONNX file, OSError when it or a file it names is unreadable.

    A file is named only within the model's own folder, as onnxruntime wants it, and counted whole and once.
    """
    with reading(path) as reader:
        found = OnnxWeights()
        if not _walk(reader, reader.size, "model", found, 0):
            raise reader.bad("not an ONNX file: there is no graph in it")
    home = path.parent.resolve()
    for name in found.files:
        beside = (home / name).resolve()
        if not beside.is_relative_to(home):
            raise BadHeader(f"{path.name}: names weights outside its folder: {name!r}")
        found.external_bytes += beside.stat().st_size
    return found


def _walk(reader: Reader, end: int, kind: str, found: OnnxWeights, depth: int) -> bool:
    """Go through one message; whether it has any field that leads to tensors."""
    if depth > DEPTH_MAX:
        raise reader.bad(f"graphs within graphs, over {DEPTH_MAX} deep")
    leads = False
    while reader.at < end:
        tag = _varint(reader)
        number, wire = tag >> 3, tag & 7
        if wire == _MESSAGE:
            size = _varint(reader)
            if size > end - reader.at:
                raise reader.bad(f"{size} bytes are claimed and {end - reader.at} are left of the {kind}")
            inner = _INSIDE[kind].get(number)
            leads = leads or inner is not None
            _enter(reader, size, inner, found, depth)
        elif wire == _VARINT:
            _varint(reader)
        elif wire in (_FIXED32, _FIXED64):
            reader.skip(4 if wire == _FIXED32 else 8)
        else:
            raise reader.bad(f"a field of wire type {wire}, which there is not")
    if reader.at != end:
        raise reader.bad(f"a field goes beyond its {kind}")
    return leads


def _enter(reader: Reader, size: int, inner: str | None, found: OnnxWeights, depth: int) -> None:
    if inner is None:
        reader.skip(size)
    elif inner == "entry":
        _external(reader, size, found)
    else:
        if inner == "tensor":
            found.embedded_bytes += size
        _walk(reader, reader.at + size, inner, found, depth + 1)


def _external(reader: Reader, size: int, found: OnnxWeights) -> None:
    """One entry of where a tensor's data is: only its `location` matters here."""
    end = reader.at + size
    texts: dict[int, bytes] = {}
    while reader.at < end:
        tag, length = _varint(reader), _varint(reader)
        if tag & 7 != _MESSAGE or length > end - reader.at:
            raise reader.bad("where a tensor's data is cannot be read")
        texts[tag >> 3] = reader.take(length, limit=TEXT_BYTES_MAX)
    if texts.get(_ENTRY_KEY) == b"location":
        name = texts.get(_ENTRY_VALUE, b"").decode(errors="replace")
        if not name or "\0" in name:
            raise reader.bad("a tensor's data is in a file without a name")
        found.files.add(name)
        if len(found.files) > FILES_MAX:
            raise reader.bad(f"weights in more than {FILES_MAX} files")


def _varint(reader: Reader) -> int:
    value = shift = 0
    while True:
        byte = reader.take(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        shift += 7
        if shift > 63:
            raise reader.bad("a number longer than 64 bits")
