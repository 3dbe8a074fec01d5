"""Every request a client makes and how its answer is read, without a connection: both clients share these."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from moc.client.views import (
    AliasHistory,
    AliasView,
    AuditPage,
    ConfigurationView,
    DeviceView,
    DifferenceView,
    Document,
    EventPage,
    EventView,
    ExplanationView,
    KeyView,
    LeaseView,
    MetadataView,
    ModelView,
    NewKeyView,
    Page,
    RevisionPage,
    RevisionView,
    RolloutView,
    SystemView,
    TokensView,
    VerdictView,
    WorkerView,
)
from moc.kernel.errors import Internal, InvalidRequest

if TYPE_CHECKING:
    from moc.client.tensors import Array

T = TypeVar("T")
Messages = str | Sequence[Mapping[str, Any]]
"""A conversation as OpenAI messages, or one thing a user says."""

_JSON = {"content-type": "application/json"}
_HEADER_LENGTH = "inference-header-content-length"
DONE = b"[DONE]"
_READY_S = 5.0
_RENEW_S = 5.0
_DAY_S = 86_400.0
_GRANT_S = 60.0
"""How long models may take to make room for a lease whose turn came at the end of its wait."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a request is to be served; None is what the caller does not say."""

    deadline_s: float | None = None
    priority: int | None = None
    session: str | None = None

    def headers(self) -> dict[str, str]:
        """Those that tell the coordinator, but for the deadline's, which begins when the request is sent."""
        given = {"x-moc-priority": self.priority, "x-moc-session": self.session}
        return {name: str(value) for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A body made of fields and a file, which is read while it is sent."""

    fields: dict[str, str]
    path: Path
    filename: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, with a `body` or a `form`.

    `deadline_s` is in seconds from when it is sent, None = the server's own limit.
    """

    method: str
    path: str
    query: dict[str, str | int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    form: Form | None = None
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer; the names in `headers` are lower case or compare so."""

    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request with one answer."""

    asked: Asked
    read: Callable[[Answer], T]


@dataclass(frozen=True, slots=True)
class StreamCall(Generic[T]):
    """A request answered by events. `last` is the data that closes a complete answer, None = it is endless."""

    asked: Asked
    read: Callable[[bytes], T]
    last: bytes | None


def list_models(after: str | None, limit: int) -> Call[Page[ModelView]]:
    return Call(get("/api/v1/models", after=after, limit=limit), page("models"))


def list_versions(name: str) -> Call[list[ModelView]]:
    return Call(get(f"/api/v1/models/{part(name)}/versions"), member("versions"))


def show_model(reference: str) -> Call[ModelView]:
    return Call(get(_model_path(reference)), view)


def show_card(name: str, version: int) -> Call[str]:
    return Call(
        get(f"/api/v1/models/{part(name)}/versions/{version}/card"), lambda answer: answer.body.decode(errors="replace")
    )


def explain_model(reference: str) -> Call[ExplanationView]:
    return Call(get(f"{_model_path(reference)}/explain"), view)


def add_model(name: str, runtime: str, source: str, spec: Mapping[str, Any]) -> Call[ModelView]:
    return Call(post("/api/v1/models", {**spec, "name": name, "runtime": runtime, "source": source}), view)


def change_model(reference: str, verb: str, deadline_s: float | None) -> Call[ModelView]:
    """`verb` is `pull`, `load` or `unload`."""
    asked = Asked(method="POST", path=f"{_model_path(reference)}/{verb}", deadline_s=deadline_s)
    return Call(asked, view)


def remove_model(reference: str) -> Call[None]:
    return Call(Asked(method="DELETE", path=_model_path(reference)), nothing)


def list_workers(after: str | None, limit: int) -> Call[Page[WorkerView]]:
    return Call(get("/api/v1/workers", after=after, limit=limit), page("workers"))


def show_worker(worker_id: str) -> Call[WorkerView]:
    return Call(get(f"/api/v1/workers/{part(worker_id)}"), view)


def list_devices(after: str | None, limit: int) -> Call[Page[DeviceView]]:
    return Call(get("/api/v1/devices", after=after, limit=limit), page("devices"))


def show_device(device_id: str) -> Call[DeviceView]:
    return Call(get(f"/api/v1/devices/{part(device_id)}"), view)


def change_device(device_id: str, state: str) -> Call[DeviceView]:
    """`state` is `cordoned` or `online`."""
    return Call(send("PATCH", f"/api/v1/devices/{part(device_id)}", {"state": state}), view)


def list_leases(ended: bool, after: str | None, limit: int) -> Call[Page[LeaseView]]:
    return Call(get("/api/v1/leases", ended="true" if ended else None, after=after, limit=limit), page("leases"))


def show_lease(lease_id: str) -> Call[LeaseView]:
    return Call(get(_lease_path(lease_id)), view)


def acquire_lease(wish: Mapping[str, Any]) -> Call[LeaseView]:
    """`wish` is the body of the request; None is what it does not say."""
    document = {name: value for name, value in wish.items() if value is not None}
    wait_s = document.get("wait_s", 0)
    deadline_s = min(wait_s + _GRANT_S, _DAY_S) if wait_s else None
    return Call(post("/api/v1/leases", document, deadline_s), view)


def renew_lease(lease_id: str, token: str, pid: int | None) -> Call[LeaseView]:
    return Call(post(f"{_lease_path(lease_id)}/renew", {"token": token, "pid": pid}, _RENEW_S), view)


def release_lease(lease_id: str, token: str) -> Call[LeaseView]:
    return Call(Asked(method="DELETE", path=_lease_path(lease_id), query={"token": token}), view)


def list_keys(after: str | None, limit: int) -> Call[Page[KeyView]]:
    return Call(get("/api/v1/keys", after=after, limit=limit), page("keys"))


def show_key(key_id: str) -> Call[KeyView]:
    return Call(get(_key_path(key_id)), view)


def create_key(wish: Mapping[str, Any]) -> Call[NewKeyView]:
    return Call(post("/api/v1/keys", wish), view)


def rotate_key(key_id: str, overlap_s: float) -> Call[NewKeyView]:
    return Call(post(f"{_key_path(key_id)}/rotate", {"overlap_s": overlap_s}), view)


def revoke_key(key_id: str) -> Call[KeyView]:
    return Call(Asked(method="DELETE", path=_key_path(key_id)), view)


def list_aliases(after: str | None, limit: int) -> Call[Page[AliasView]]:
    return Call(get("/api/v1/aliases", after=after, limit=limit), page("aliases"))


def show_alias(name: str) -> Call[AliasView]:
    return Call(get(_alias_path(name)), view)


def list_alias_history(name: str, after: int, limit: int) -> Call[AliasHistory]:
    return Call(get(f"{_alias_path(name)}/history", after=after, limit=limit), page("changes"))


def set_alias(name: str, fields: Mapping[str, Any]) -> Call[AliasView]:
    return Call(send("PUT", _alias_path(name), fields), view)


def change_alias(name: str, fields: Mapping[str, Any]) -> Call[AliasView]:
    return Call(send("PATCH", _alias_path(name), fields), view)


def rollback_alias(name: str, to: int | None) -> Call[AliasView]:
    return Call(post(f"{_alias_path(name)}/rollback", {"to": to}), view)


def remove_alias(name: str) -> Call[None]:
    return Call(Asked(method="DELETE", path=_alias_path(name)), nothing)


def list_rollouts(after: str | None, limit: int) -> Call[Page[RolloutView]]:
    return Call(get("/api/v1/rollouts", after=after, limit=limit), page("rollouts"))


def show_rollout(name: str) -> Call[RolloutView]:
    return Call(get(f"/api/v1/rollouts/{part(name)}"), view)


def start_rollout(wish: Mapping[str, Any]) -> Call[RolloutView]:
    return Call(post("/api/v1/rollouts", wish), view)


def change_rollout(name: str, state: str, *, force: bool = False) -> Call[RolloutView]:
    return Call(send("PATCH", f"/api/v1/rollouts/{part(name)}", {"state": state, "force": force}), view)


def show_config() -> Call[ConfigurationView]:
    return Call(get("/api/v1/config"), view)


def diff_config(text: str, name: str) -> Call[DifferenceView]:
    return Call(post("/api/v1/config/diff", {"text": text, "name": name}), view)


def apply_config(text: str, name: str) -> Call[RevisionView]:
    return Call(send("PUT", "/api/v1/config", {"text": text, "name": name}), view)


def list_config_history(after: int, limit: int) -> Call[RevisionPage]:
    return Call(get("/api/v1/config/history", after=after, limit=limit), page("revisions"))


def rollback_config(revision: int) -> Call[RevisionView]:
    return Call(post("/api/v1/config/rollback", {"revision": revision}), view)


def list_audit(after: int | None, limit: int) -> Call[AuditPage]:
    return Call(get("/api/v1/audit", after=after, limit=limit), page("audit"))


def verify_audit() -> Call[VerdictView]:
    return Call(get("/api/v1/audit/verify"), view)


def list_events(after: int, limit: int) -> Call[EventPage]:
    return Call(get("/api/v1/events", follow="false", after=after, limit=limit), page("events"))


def follow_events(after: int | None) -> StreamCall[EventView]:
    return StreamCall(get("/api/v1/events", after=after), item, None)


def status() -> Call[SystemView]:
    return Call(get("/api/v1/system"), view)


def ready() -> Call[None]:
    return Call(Asked(method="GET", path="/readyz", deadline_s=_READY_S), nothing)


def chat(model: str, messages: Messages, options: Mapping[str, Any], terms: Terms) -> Call[Document]:
    return Call(_ask("/v1/chat/completions", _chat_body(model, messages, options), terms), view)


def stream_chat(model: str, messages: Messages, options: Mapping[str, Any], terms: Terms) -> StreamCall[Document]:
    body = {**_chat_body(model, messages, options), "stream": True}
    return StreamCall(_ask("/v1/chat/completions", body, terms), item, DONE)


def complete(model: str, prompt: str, options: Mapping[str, Any], terms: Terms) -> Call[Document]:
    return Call(_ask("/v1/completions", {**options, "model": model, "prompt": prompt}, terms), view)


def stream_complete(model: str, prompt: str, options: Mapping[str, Any], terms: Terms) -> StreamCall[Document]:
    body = {**options, "model": model, "prompt": prompt, "stream": True}
    return StreamCall(_ask("/v1/completions", body, terms), item, DONE)


def embed(model: str, texts: str | Sequence[str], options: Mapping[str, Any], terms: Terms) -> Call[Document]:
    return Call(_ask("/v1/embeddings", {**options, "model": model, "input": texts}, terms), view)


def tokenize(model: str, text: Messages, options: Mapping[str, Any], terms: Terms) -> Call[TokensView]:
    said = {"prompt": text} if isinstance(text, str) else {"messages": text}
    return Call(_ask("/tokenize", {**options, "model": model, **said}, terms), view)


def metadata(reference: str) -> Call[MetadataView]:
    return Call(get(_protocol_path(reference)), view)


def infer(
    reference: str,
    inputs: "Mapping[str, Array]",
    outputs: Sequence[str],
    parameters: Mapping[str, Any] | None,
    terms: Terms,
) -> "Call[dict[str, Array]]":
    from moc.client import tensors  # numpy is slow to import and only this call needs it

    body, header_length = tensors.encode(inputs, outputs, parameters)
    headers = {_HEADER_LENGTH: str(header_length), "content-type": "application/octet-stream", **terms.headers()}
    path = f"{_protocol_path(reference)}/infer"
    asked = Asked(method="POST", path=path, headers=headers, body=body, deadline_s=terms.deadline_s)

    def read(answer: Answer) -> "dict[str, Array]":
        length = answer.headers.get(_HEADER_LENGTH)
        return tensors.decode(answer.body, int(length) if length and length.isdecimal() else None)

    return Call(asked, read)


def get(path: str, **query: str | int | None) -> Asked:
    """A question; None is what its query does not say."""
    return Asked(method="GET", path=path, query={name: value for name, value in query.items() if value is not None})


def _ask(path: str, document: Mapping[str, Any], terms: Terms) -> Asked:
    asked = post(path, document, terms.deadline_s)
    return replace(asked, headers={**asked.headers, **terms.headers()})


def post(path: str, document: Mapping[str, Any], deadline_s: float | None = None) -> Asked:
    """Something new, described by a document."""
    return send("POST", path, document, deadline_s)


def send(method: str, path: str, document: Mapping[str, Any], deadline_s: float | None = None) -> Asked:
    """A document; InvalidRequest when it cannot be JSON."""
    try:
        body = msgspec.json.encode(document)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"this cannot be sent as JSON: {error}") from error
    return Asked(method=method, path=path, headers=_JSON, body=body, deadline_s=deadline_s)


def _chat_body(model: str, messages: Messages, options: Mapping[str, Any]) -> dict[str, Any]:
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return {**options, "model": model, "messages": said}


def part(name: str) -> str:
    """A name as a part of a path; InvalidRequest when it is none."""
    if name in ("", ".", ".."):
        raise InvalidRequest(f"not a name: {name!r}; write a name, or an id as it is listed")
    return quote(name, safe="@")


def _model_path(reference: str) -> str:
    return f"/api/v1/models/{part(reference)}"


def _lease_path(lease_id: str) -> str:
    return f"/api/v1/leases/{part(lease_id)}"


def _key_path(key_id: str) -> str:
    return f"/api/v1/keys/{part(key_id)}"


def _alias_path(name: str) -> str:
    return f"/api/v1/aliases/{part(name)}"


def _protocol_path(reference: str) -> str:
    name, _, version = reference.partition("@")
    return f"/v2/models/{part(name)}" + (f"/versions/{part(version)}" if version else "")


def view(answer: Answer) -> Any:
    """All of an answer."""
    return _decoded(answer.body)


def item(data: bytes) -> Any:
    """All of an event."""
    return _decoded(data)


def nothing(_: Answer) -> None:
    """For an answer that has nothing to say."""


def member(name: str) -> Callable[[Answer], Any]:
    """Reads one member of an answer."""

    def read(answer: Answer) -> Any:
        document = _decoded(answer.body)
        if not isinstance(document, dict) or name not in document:
            raise Internal(f"the answer has no {name!r}; is this address a coordinator's?")
        return document[name]

    return read


def page(noun: str) -> Callable[[Answer], Any]:
    """Reads a part of a list of such."""
    items = member(noun)

    def read(answer: Answer) -> Any:
        return {"items": items(answer), "next": _decoded(answer.body).get("next")}

    return read


def _decoded(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise Internal(f"the answer is not JSON ({error}); is this address a coordinator's?") from error
