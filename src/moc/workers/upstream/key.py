"""Secrets that are shown to upstreams: where they are kept, and never what they are."""

import os
from pathlib import Path

from moc.kernel.errors import Unavailable

KEY_BYTES_MAX = 16 * 1024


class EnvironmentKey:
    """A secret in an environment variable of the coordinator."""

    def __init__(self, variable: str) -> None:
        self._variable = variable

    @property
    def name(self) -> str:
        """The variable."""
        return f"the environment variable {self._variable}"

    def value(self) -> str:
        """The secret; Unavailable when the variable is not set."""
        return _checked(os.environ.get(self._variable, ""), self.name)


class FileKey:
    """A secret in a file, read again when the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[tuple[int, int, int], str] | None = None

    @property
    def name(self) -> str:
        """The file."""
        return f"the file {self._path}"

    def value(self) -> str:
        """The secret; Unavailable when the file cannot be read or holds none."""
        try:
            found = os.stat(self._path)
            mark = (found.st_mtime_ns, found.st_size, found.st_ino)
            if self._read is None or self._read[0] != mark:
                with open(self._path, encoding="utf-8") as file:
                    self._read = mark, file.read(KEY_BYTES_MAX).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Unavailable(f"the key in {self.name} cannot be read: {error.__class__.__name__}") from None
        return _checked(self._read[1], self.name)


def _checked(secret: str, name: str) -> str:
    if not secret:
        raise Unavailable(f"there is no key in {name}; put it there")
    if not (secret.isascii() and secret.isprintable()):
        raise Unavailable(f"the key in {name} has characters that no header can carry; it must be one line of ASCII")
    return secret
