"""The OpenAPI document: the routes FastAPI knows, and the operations it does not."""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from moc import __version__
from moc.transports.rest.exchange import shape_of
from moc.transports.rest.operation import DEADLINE_HEADER, TERMS_HEADERS, Operation
from moc.transports.status import Shape

_REF: Final = "#/components/schemas/{name}"
_TAGS: Final = {Shape.OPENAI: "OpenAI", Shape.ANTHROPIC: "Anthropic", Shape.OIP: "Open Inference Protocol"}
_PARAMETER: Final = re.compile(r"{(\w+)}")
_TEXT: Final = {"type": "string"}
_MESSAGE: Final = {"message": _TEXT, "code": _TEXT}
_ERRORS: Final[dict[Shape, dict[str, Any]]] = {
    Shape.NATIVE: {
        "type": "object",
        "required": ["code", "message", "request_id"],
        "properties": {**_MESSAGE, "request_id": _TEXT, "details": {"type": "object"}},
    },
    Shape.OPENAI: {
        "type": "object",
        "required": ["message", "type", "code", "param"],
        "properties": {**_MESSAGE, "type": _TEXT, "param": {"type": ["string", "null"]}},
    },
    Shape.ANTHROPIC: {
        "type": "object",
        "required": ["type", "message"],
        "properties": {"type": _TEXT, "message": _TEXT},
    },
    Shape.OIP: _TEXT,
}
_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

_HEADER_LENGTH: Final = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "required": False,
    "description": "How many bytes of the body are JSON; binary tensors follow them.",
    "schema": {"type": "integer", "minimum": 0},
}


def document(app: FastAPI, operations: Sequence[Operation], public: frozenset[str]) -> dict[str, Any]:
    """OpenAPI 3.1 for every route; those of `public` need no key."""
    found = get_openapi(
        title="ModelOps Coordinator",
        version=__version__,
        description="Serves, loads and watches many models. Every answer carries `x-moc-request-id`.",
        routes=app.routes,
    )
    paths, components = found["paths"], found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    described = _Schemas(operations)
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, described)
    schemas.update(described.components)
    for path, methods in paths.items():
        for described_operation in methods.values():
            _add_errors(described_operation, shape_of(path))
            if path in public:
                described_operation["security"] = []
    components["securitySchemes"] = _SCHEMES
    components["responses"] = {_error_name(shape): _error(shape) for shape in Shape}
    found["security"] = [{"bearer": []}, {"key": []}]
    return found


class _Schemas:
    """The JSON schemas of the operations' types, each once, by reference."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        types = [t for operation in operations for t in (operation.body, operation.answer) if _is_type(t)]
        schemas, self.components = msgspec.json.schema_components(types, ref_template=_REF)
        self._schemas = dict(zip(map(repr, types), schemas, strict=True))

    def of(self, described: Any) -> dict[str, Any]:
        """The schema of a type, or the schema that was given instead of one."""
        schema: dict[str, Any] = self._schemas[repr(described)] if _is_type(described) else described
        return schema


def _is_type(described: Any) -> bool:
    return described is not None and not isinstance(described, dict)


def _describe(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    answer = schemas.of(operation.answer)
    content = {media: _content(media, answer) for media in operation.media}
    described: dict[str, Any] = {
        "tags": [_TAGS[shape_of(operation.path)]],
        "summary": operation.summary,
        "operationId": re.sub(r"\W+", "_", f"{operation.method} {operation.path}").strip("_").lower(),
        "parameters": [*map(_path_parameter, _PARAMETER.findall(operation.path)), *operation.query],
        "responses": {"200": {"description": "Done", "content": content}},
    }
    if operation.path.endswith("/"):
        described["operationId"] += "_slash"
    if operation.body is not None:
        content = {operation.body_media: {"schema": schemas.of(operation.body)}}
        if operation.binary_body:
            content["application/octet-stream"] = {"schema": _TEXT}
            described["parameters"].append(_HEADER_LENGTH)
        described["requestBody"] = {"required": not operation.optional_body, "content": content}
        if operation.has_terms:
            described["parameters"] += [DEADLINE_HEADER] if operation.optional_body else TERMS_HEADERS
    return described


def _content(media: str, answer: dict[str, Any]) -> dict[str, Any]:
    if media == "text/event-stream":
        return {}  # a schema would speak of the whole stream; this version of OpenAPI has none for its events
    return {"schema": answer if media == "application/json" else _TEXT}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _TEXT}


def _add_errors(described: dict[str, Any], shape: Shape) -> None:
    responses = described["responses"]
    responses.pop("422", None)
    reference = {"$ref": f"#/components/responses/{_error_name(shape)}"}
    for status in ("4XX", "5XX"):
        responses[status] = reference


def _error_name(shape: Shape) -> str:
    return f"{shape.value.capitalize()}Error"


def _error(shape: Shape) -> dict[str, Any]:
    schema = {"type": "object", "required": ["error"], "properties": {"error": _ERRORS[shape]}}
    return {"description": "What went wrong, and what to do", "content": {"application/json": {"schema": schema}}}
