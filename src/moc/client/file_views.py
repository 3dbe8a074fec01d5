"""What the files API answers; see `views`."""

from typing import TypedDict


class FileView(TypedDict):
    """A file; `created_at` in seconds since the epoch."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    sha256: str
    status: str
