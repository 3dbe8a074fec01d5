"""The options of a remote: how its upstream is reached, and what is said to it.

`protocol`            openai (default) or oip
`model`               its name for the model (default: the name here)
`kinds`               what it can do (default: all that its protocol has)
`key_env`, `key_file` the environment variable or the file with its key; a relative path starts at `DATA_DIR/secrets`
`key_header`          the header the key goes in (default: authorization, as a bearer token)
`headers`             headers for every request, name: value; no secrets, for these are shown
`forward_headers`     headers of the caller's that are passed on, a list of names; only REST has them
`coordinator`         whether it is another coordinator: told the caller's deadline, priority and session
`binary`              whether tensors go as bytes (default) or, for a server that does not know those, as JSON
`max_connections`     requests it is given at once (default 64)
`connect_timeout_s`   how long connecting may take (default 5)
`timeout_s`           how long it may say nothing in the midst of a request (default 300)
`health`              a path from the root of its host that answers 200 while it is well (default: its protocol's own)
`health_interval_s`   how often that is asked (default 10)
`ca_file`             the authorities its certificate is checked with, instead of the system's
`use_proxy`           whether to go by the proxies in the coordinator's environment; not over the API
"""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from moc.inference.request import Kind
from moc.kernel.errors import LoadFailed
from moc.models.model import FailReason
from moc.models.ports import Launch
from moc.models.sources.upstream import SECRET_HEADERS
from moc.workers.runtimes.options import Options
from moc.workers.upstream.key import EnvironmentKey, FileKey
from moc.workers.upstream.options import Key, Reach, UpstreamOptions, Wording

PROTOCOLS: dict[str, Wording] = {"openai": "openai", "oip": "oip"}
KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
OWN = frozenset(
    {
        "connection", "content-encoding", "content-length", "content-type", "expect", "host", "keep-alive", "te",
        "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""Headers that belong to the connection or to the body, and are written here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOptions:
    """The upstream, and how often it is asked whether it is well."""

    upstream: UpstreamOptions
    health_interval_s: float


def remote_options(launch: Launch, *, secrets: Path, reach: Reach) -> RemoteOptions:
    """The options of the model that is launched; LoadFailed(invalid_spec) for what is wrong with them."""
    given = Options("remote", launch.options)
    read = RemoteOptions(
        upstream=UpstreamOptions(
            url=launch.path,
            model=given.text("model") or launch.model.partition("@")[0],
            protocol=given.one_of("protocol", given.text("protocol") or "openai", PROTOCOLS),
            kinds=tuple(given.one_of("kinds", kind, KINDS) for kind in given.texts("kinds")),
            key=_key(given, secrets),
            key_header=_name(given.text("key_header") or "authorization", may=SECRET_HEADERS),
            headers={_name(name): _value(name, value) for name, value in given.named_texts("headers").items()},
            forward_headers=tuple(_name(name) for name in given.texts("forward_headers")),
            connect_timeout_s=given.number("connect_timeout_s", 5.0, low=0.01, high=600),
            timeout_s=given.number("timeout_s", 300.0, low=0.01, high=86_400),
            max_connections=given.integer("max_connections", 64, low=1, high=4096),
            health=_health(given.text("health") or ""),
            ca_file=_ca_file(given.text("ca_file"), secrets),
            coordinator=given.flag("coordinator", False),
            binary=given.flag("binary", True),
            use_proxy=given.flag("use_proxy", False),
            reach=reach,
        ),
        health_interval_s=given.number("health_interval_s", 10.0, low=0.05, high=3600),
    )
    given.done()
    return read


def _key(given: Options, secrets: Path) -> Key | None:
    variable, file = given.text("key_env"), given.text("key_file")
    if variable and file:
        raise _wrong("`key_env` and `key_file` both name the key; leave one out")
    if variable:
        return EnvironmentKey(variable)
    return FileKey(secrets / Path(file).expanduser()) if file else None


def _ca_file(file: str | None, secrets: Path) -> str:
    return str(secrets / Path(file).expanduser()) if file else ""


def _name(name: str, *, may: frozenset[str] = frozenset()) -> str:
    """A header's name, in lower case."""
    lower = name.lower()
    if not name or not name.isascii() or not all(letter.isalnum() or letter in "-_" for letter in name):
        raise _wrong(f"{name[:100]!r} is no name of a header")
    if lower in OWN:
        raise _wrong(f"the header {name} is written by the coordinator itself; leave it out")
    if lower in SECRET_HEADERS - may:
        raise _wrong(f"the header {name} carries a secret; name that with `key_env` or `key_file`, and `key_header`")
    return lower


def _value(name: str, value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise _wrong(f"the value of the header {name} has characters that no header can carry")
    return value


def _health(path: str) -> str:
    if path and not (path.startswith("/") and path.isascii() and path.isprintable() and " " not in path):
        raise _wrong(f"option 'health' is {path[:100]!r}; write a path from the root of the host, such as /health")
    return path


def _wrong(message: str) -> LoadFailed:
    return LoadFailed(message, reason=FailReason.INVALID_SPEC)
