"""Every request about files; see `calls`."""

from pathlib import Path

from moc.client.calls import Answer, Asked, Call, Form, get, member, nothing, part, view
from moc.client.file_views import FileView
from moc.client.views import Page

_FILES = "/v1/files"


def add_file(path: Path, purpose: str, filename: str | None) -> Call[FileView]:
    form = Form(fields={"purpose": purpose}, path=path, filename=filename or path.name)
    return Call(Asked(method="POST", path=_FILES, form=form), view)


def list_files(purpose: str | None, after: str | None, limit: int) -> Call[Page[FileView]]:
    return Call(get(_FILES, purpose=purpose, order="asc", after=after, limit=limit), _page)


def show_file(file_id: str) -> Call[FileView]:
    return Call(get(_path(file_id)), view)


def file_content(file_id: str) -> Call[bytes]:
    return Call(get(f"{_path(file_id)}/content"), lambda answer: answer.body)


def remove_file(file_id: str) -> Call[None]:
    return Call(Asked(method="DELETE", path=_path(file_id)), nothing)


def _path(file_id: str) -> str:
    return f"{_FILES}/{part(file_id)}"


def _page(answer: Answer) -> Page[FileView]:
    more = member("has_more")(answer)
    return {"items": member("data")(answer), "next": member("last_id")(answer) if more else None}
