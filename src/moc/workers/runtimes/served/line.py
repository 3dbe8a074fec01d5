"""Words in braces, in what an external server is started with."""

import difflib
import re
from collections.abc import Mapping

from moc.kernel.errors import LoadFailed

_WORD = re.compile(r"\{([a-z]+)(?::([^{}]*))?\}")
_FILE = "file"
FILE_BYTES_MAX = 64 * 1024


class Words:
    """What each word stands for; one that stands for nothing may not be used. `used` are those that were."""

    def __init__(self, meanings: Mapping[str, str]) -> None:
        self.used: set[str] = set()
        self._meanings = meanings

    def fill(self, text: str, *, files: bool = False) -> str:
        """`text` with every word replaced, with `files` also `{file:PATH}`; LoadFailed(invalid_spec) for any other.

        Only lower-case letters in braces are a word, so JSON may be written as it is.
        """
        return _WORD.sub(lambda found: self._meaning(found, files=files), text)

    def _meaning(self, found: re.Match[str], *, files: bool) -> str:
        name, path = found.groups()
        if path is not None:
            if name == _FILE and files:
                return _content(path)
            raise _wrong(f"{found[0]} can stand in `env` only" if name == _FILE else f"there is no {found[0]}")
        if name not in self._meanings:
            near = difflib.get_close_matches(name, self._meanings, n=1)
            known = ", ".join(f"{{{each}}}" for each in self._meanings)
            raise _wrong(
                f"there is no {found[0]}; " + (f"did you mean {{{near[0]}}}?" if near else f"there are {known}")
            )
        if not self._meanings[name]:
            raise _wrong(f"there is nothing for {found[0]}: the model has no source")
        self.used.add(name)
        return self._meanings[name]


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            content = file.read(FILE_BYTES_MAX)
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(f"the file {path} of `env` cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return content.strip()


def _wrong(what: str) -> LoadFailed:
    return LoadFailed(f"{what}, in the options of the runtime command", reason="invalid_spec")
