"""OpenAI's files: what jobs read, kept until it is deleted."""

import contextlib
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from moc.kernel.errors import InvalidRequest
from moc.service.files import FileView
from moc.service.services import Services
from moc.transports.rest.exchange import Exchange
from moc.transports.rest.form import FormReader
from moc.transports.rest.operation import Operation

_LIMIT_MAX: Final = 10_000
_BYTES: Final = b"application/octet-stream"
_PURPOSE: Final = {"type": "string", "enum": ["fine-tune", "evals", "user_data"], "description": "What it is for"}
_ANCHOR: Final = "expires_after[anchor]"
_SECONDS: Final = "expires_after[seconds]"
_EXPIRY_MIN_S: Final = 3_600
_EXPIRY_MAX_S: Final = 2_592_000
_FORM: Final = {
    "type": "object",
    "required": ["file", "purpose"],
    "dependentRequired": {_ANCHOR: [_SECONDS], _SECONDS: [_ANCHOR]},
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": _PURPOSE,
        _ANCHOR: {"type": "string", "const": "created_at"},
        _SECONDS: {
            "type": "integer",
            "minimum": _EXPIRY_MIN_S,
            "maximum": _EXPIRY_MAX_S,
            "description": "It is deleted so long after it was added, or once no job needs it any more",
        },
    },
}
_QUERY: Final[tuple[dict[str, Any], ...]] = tuple(
    {"name": name, "in": "query", "required": False, "schema": schema}
    for name, schema in {
        "purpose": _PURPOSE,
        "order": {"type": "string", "enum": ["asc", "desc"], "default": "desc"},
        "after": {"type": "string", "maxLength": 200},
        "limit": {"type": "integer", "minimum": 1, "maximum": _LIMIT_MAX, "default": _LIMIT_MAX},
    }.items()
)


class FileList(Struct):
    """Files, the newest first unless `order` is `asc`; `last_id` is the `after` of the following page."""

    data: list[FileView]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: Literal["list"] = "list"


class DeletedFile(Struct):
    """A file that is no more."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class Files:
    """The endpoints."""

    def __init__(self, services: Services) -> None:
        self._files = services.files

    def operations(self) -> list[Operation]:
        """Its routes."""
        one = "/v1/files/{file_id}"
        return [
            Operation(
                method="POST",
                path="/v1/files",
                handle=self._add,
                summary="Add a file",
                body=_FORM,
                body_media="multipart/form-data",
                bounds_itself=True,
                has_terms=False,
                answer=FileView,
            ),
            Operation(
                method="GET",
                path="/v1/files",
                handle=self._list,
                summary="List files",
                query=_QUERY,
                answer=FileList,
            ),
            Operation(method="GET", path=one, handle=self._show, summary="Show a file", answer=FileView),
            Operation(method="DELETE", path=one, handle=self._remove, summary="Delete a file", answer=DeletedFile),
            Operation(
                method="GET",
                path=f"{one}/content",
                handle=self._content,
                summary="Read what is in a file",
                answer={"type": "string"},
                media=(_BYTES.decode(),),
            ),
        ]

    async def _add(self, exchange: Exchange) -> None:
        form = FormReader(exchange.header(b"content-type"))
        incoming = await self._files.receive(exchange.identity)
        try:
            more = True
            while more:
                message = await exchange.receive()
                more = message.get("more_body", False)
                if piece := form.feed(message.get("body", b"")):
                    await incoming.write(piece)
            filename = form.finish()
            purpose, expires_in_s = _purpose(form.fields), _expiry(form.fields)
            added = await self._files.keep(exchange.identity, filename, purpose, incoming, expires_in_s=expires_in_s)
        finally:
            await incoming.discard()
        await exchange.answer(200, msgspec.json.encode(added))

    async def _list(self, exchange: Exchange) -> None:
        asked = exchange.query
        page = await self._files.list(
            exchange.identity,
            purpose=asked.get("purpose"),
            newest_first=_order(asked) == "desc",
            after=asked.get("after"),
            limit=_limit(asked),
        )
        found = page.items
        first, last = (found[0].id, found[-1].id) if found else (None, None)
        await exchange.answer_message(FileList(found, page.next is not None, first, last))

    async def _show(self, exchange: Exchange) -> None:
        found = await self._files.show(exchange.identity, exchange.path("file_id"))
        await exchange.answer(200, msgspec.json.encode(found))

    async def _remove(self, exchange: Exchange) -> None:
        file_id = exchange.path("file_id")
        await self._files.remove(exchange.identity, file_id)
        await exchange.answer_message(DeletedFile(file_id))

    async def _content(self, exchange: Exchange) -> None:
        content = await self._files.content(exchange.identity, exchange.path("file_id"))
        async with contextlib.aclosing(content.pieces) as pieces:
            await exchange.start(200, media=_BYTES, headers=[(b"content-length", b"%d" % content.file.bytes)])
            async for piece in pieces:
                await exchange.write(piece)
        await exchange.end()


def _purpose(fields: Mapping[str, str]) -> str:
    if "purpose" not in fields:
        raise InvalidRequest("the form has no field `purpose`; say what the file is for", details={"param": "purpose"})
    return fields["purpose"]


def _expiry(fields: Mapping[str, str]) -> float | None:
    given = {name: value for name, value in fields.items() if name.startswith("expires_after")}
    if not given:
        return None
    seconds = given.get(_SECONDS, "")
    bounded = seconds.isascii() and seconds.isdigit() and len(seconds) < 9
    known = given.keys() == {_ANCHOR, _SECONDS} and given[_ANCHOR] == "created_at"
    if not (known and bounded and _EXPIRY_MIN_S <= int(seconds) <= _EXPIRY_MAX_S):
        raise InvalidRequest(
            f"`expires_after` is the anchor created_at and {_EXPIRY_MIN_S} to {_EXPIRY_MAX_S} seconds",
            details={"param": "expires_after"},
        )
    return float(seconds)


def _order(asked: Mapping[str, str]) -> str:
    order = asked.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"`order` is {order[:40]!r}, not asc or desc", details={"param": "order"})
    return order


def _limit(asked: Mapping[str, str]) -> int:
    text = asked.get("limit", str(_LIMIT_MAX))
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= _LIMIT_MAX):
        raise InvalidRequest(f"`limit` is {text[:40]!r}, not 1 to {_LIMIT_MAX}", details={"param": "limit"})
    return int(text)
