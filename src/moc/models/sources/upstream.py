"""The source of a remote: not files, but the URL of an engine that runs elsewhere."""

import hashlib
import re
from urllib.parse import SplitResult, urlsplit

from moc.kernel.errors import InvalidRequest
from moc.models.model import Artifact, ModelSpec
from moc.models.sources.bounds import Bounds
from moc.models.sources.source import address_of

SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "x-api-key", "api-key", "cookie"})
"""Headers that carry secrets."""

_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")
_FILES = ("key_file", "ca_file")
_SECRET_OPTIONS = ("key", "api_key", "token", "password")


def check_upstream(spec: ModelSpec, bounds: Bounds, *, trusted: bool) -> None:
    """InvalidRequest when a remote names no URL or, for a caller not `trusted`, one or a secret that it may not."""
    url = _parsed(spec.source)
    if spec.sha256 is not None:
        raise InvalidRequest("a remote has no files here, so it has no sha256; leave that out")
    _check_shown(spec)
    if trusted:
        return
    host, port = address_of(spec.source)
    bounds.check_host(host, port)
    if url.scheme == "http" and not bounds.allows(host, port):
        raise InvalidRequest(
            f"what is said to {host} over http can be read on its way; use https://, "
            f"or add {host} to security.allowed_model_hosts"
        )
    if spec.options.get("key_env") is not None:
        raise InvalidRequest(
            "over the API a remote may not name an environment variable (`key_env`); put the key in a file below "
            "DATA_DIR/secrets and name that with `key_file`, or name the model in moc.yaml"
        )
    if spec.options.get("use_proxy"):
        raise InvalidRequest(
            "over the API a remote may not go by a proxy (`use_proxy`), which could take it anywhere; "
            "name the model in moc.yaml"
        )
    for option in _FILES:
        file = spec.options.get(option)
        if file is not None:
            bounds.check_secret(str(file), option)


def _check_shown(spec: ModelSpec) -> None:
    """Options are kept and shown, so that a secret in them is refused before either."""
    headers = spec.options.get("headers")
    secret = [name for name in _SECRET_OPTIONS if name in spec.options]
    secret += [name for name in headers if str(name).lower() in SECRET_HEADERS] if isinstance(headers, dict) else []
    if secret:
        raise InvalidRequest(
            f"a secret in {secret[0]} would be shown to others; keep it in a file below DATA_DIR/secrets and name that "
            "with `key_file`, and the header it goes in with `key_header`"
        )


def upstream_artifact(spec: ModelSpec) -> Artifact:
    """What stands for files: the URL as it is to be used."""
    url = _parsed(spec.source).geturl().rstrip("/")
    return Artifact(path=url, sha256=hashlib.sha256(url.encode()).hexdigest(), size_bytes=0, modified_at=0.0)


def is_upstream(artifact: Artifact) -> bool:
    """Whether an artifact is no file but a URL."""
    return artifact.path.startswith(("http://", "https://"))


def _parsed(text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        host, _ = url.hostname, url.port
    except ValueError as error:
        raise InvalidRequest(f"not a URL: {text[:200]!r} ({error})") from None
    is_host = host is not None and (":" in host or _NAME.fullmatch(host) is not None)
    if url.scheme not in ("http", "https") or not is_host or not (text.isascii() and text.isprintable()) or " " in text:
        raise InvalidRequest(f"the source of a remote is its URL, such as https://HOST/v1; not {text[:200]!r}")
    if url.username is not None:
        raise InvalidRequest(f"a source is shown to others: keep credentials out of the URL of {host}; use `key_file`")
    if url.query or url.fragment:
        raise InvalidRequest(f"the URL of {host} is what requests' paths are added to; leave out what follows ? or #")
    return url
