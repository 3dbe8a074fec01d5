"""Every request a client makes and how its answer is read, without a connection: both clients share these."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
class Asked:
    """One request. `deadline_s` is in seconds from when it is sent, None = the server's own limit."""

    method: str
    path: str
    query: dict[str, str | int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
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
    return Call(_get("/api/v1/models", after=after, limit=limit), _page("models"))


def list_versions(name: str) -> Call[list[ModelView]]:
    return Call(_get(f"/api/v1/models/{_part(name)}/versions"), _member("versions"))


def show_model(reference: str) -> Call[ModelView]:
    return Call(_get(_model_path(reference)), _json)


def explain_model(reference: str) -> Call[ExplanationView]:
    return Call(_get(f"{_model_path(reference)}/explain"), _json)


def add_model(name: str, runtime: str, source: str, spec: Mapping[str, Any]) -> Call[ModelView]:
    return Call(_post("/api/v1/models", {**spec, "name": name, "runtime": runtime, "source": source}), _json)


def change_model(reference: str, verb: str, deadline_s: float | None) -> Call[ModelView]:
    """`verb` is `pull`, `load` or `unload`."""
    asked = Asked(method="POST", path=f"{_model_path(reference)}/{verb}", deadline_s=deadline_s)
    return Call(asked, _json)


def remove_model(reference: str) -> Call[None]:
    return Call(Asked(method="DELETE", path=_model_path(reference)), _nothing)


def list_workers(after: str | None, limit: int) -> Call[Page[WorkerView]]:
    return Call(_get("/api/v1/workers", after=after, limit=limit), _page("workers"))


def show_worker(worker_id: str) -> Call[WorkerView]:
    return Call(_get(f"/api/v1/workers/{_part(worker_id)}"), _json)


def list_devices(after: str | None, limit: int) -> Call[Page[DeviceView]]:
    return Call(_get("/api/v1/devices", after=after, limit=limit), _page("devices"))


def show_device(device_id: str) -> Call[DeviceView]:
    return Call(_get(f"/api/v1/devices/{_part(device_id)}"), _json)


def change_device(device_id: str, state: str) -> Call[DeviceView]:
    """`state` is `cordoned` or `online`."""
    return Call(_send("PATCH", f"/api/v1/devices/{_part(device_id)}", {"state": state}), _json)


def list_leases(ended: bool, after: str | None, limit: int) -> Call[Page[LeaseView]]:
    return Call(_get("/api/v1/leases", ended="true" if ended else None, after=after, limit=limit), _page("leases"))


def show_lease(lease_id: str) -> Call[LeaseView]:
    return Call(_get(_lease_path(lease_id)), _json)


def acquire_lease(wish: Mapping[str, Any]) -> Call[LeaseView]:
    """`wish` is the body of the request; None is what it does not say."""
    document = {name: value for name, value in wish.items() if value is not None}
    wait_s = document.get("wait_s", 0)
    deadline_s = min(wait_s + _GRANT_S, _DAY_S) if wait_s else None
    return Call(_post("/api/v1/leases", document, deadline_s), _json)


def renew_lease(lease_id: str, token: str, pid: int | None) -> Call[LeaseView]:
    return Call(_post(f"{_lease_path(lease_id)}/renew", {"token": token, "pid": pid}, _RENEW_S), _json)


def release_lease(lease_id: str, token: str) -> Call[LeaseView]:
    return Call(Asked(method="DELETE", path=_lease_path(lease_id), query={"token": token}), _json)


def list_keys(after: str | None, limit: int) -> Call[Page[KeyView]]:
    return Call(_get("/api/v1/keys", after=after, limit=limit), _page("keys"))


def show_key(key_id: str) -> Call[KeyView]:
    return Call(_get(_key_path(key_id)), _json)


def create_key(wish: Mapping[str, Any]) -> Call[NewKeyView]:
    return Call(_post("/api/v1/keys", wish), _json)


def rotate_key(key_id: str, overlap_s: float) -> Call[NewKeyView]:
    return Call(_post(f"{_key_path(key_id)}/rotate", {"overlap_s": overlap_s}), _json)


def revoke_key(key_id: str) -> Call[KeyView]:
    return Call(Asked(method="DELETE", path=_key_path(key_id)), _json)


def list_aliases(after: str | None, limit: int) -> Call[Page[AliasView]]:
    return Call(_get("/api/v1/aliases", after=after, limit=limit), _page("aliases"))


def show_alias(name: str) -> Call[AliasView]:
    return Call(_get(_alias_path(name)), _json)


def list_alias_history(name: str, after: int, limit: int) -> Call[AliasHistory]:
    return Call(_get(f"{_alias_path(name)}/history", after=after, limit=limit), _page("changes"))


def set_alias(name: str, fields: Mapping[str, Any]) -> Call[AliasView]:
    return Call(_send("PUT", _alias_path(name), fields), _json)


def change_alias(name: str, fields: Mapping[str, Any]) -> Call[AliasView]:
    return Call(_send("PATCH", _alias_path(name), fields), _json)


def rollback_alias(name: str, to: int | None) -> Call[AliasView]:
    return Call(_post(f"{_alias_path(name)}/rollback", {"to": to}), _json)


def remove_alias(name: str) -> Call[None]:
    return Call(Asked(method="DELETE", path=_alias_path(name)), _nothing)


def list_rollouts(after: str | None, limit: int) -> Call[Page[RolloutView]]:
    return Call(_get("/api/v1/rollouts", after=after, limit=limit), _page("rollouts"))


def show_rollout(name: str) -> Call[RolloutView]:
    return Call(_get(f"/api/v1/rollouts/{_part(name)}"), _json)


def start_rollout(wish: Mapping[str, Any]) -> Call[RolloutView]:
    return Call(_post("/api/v1/rollouts", wish), _json)


def change_rollout(name: str, state: str, *, force: bool = False) -> Call[RolloutView]:
    return Call(_send("PATCH", f"/api/v1/rollouts/{_part(name)}", {"state": state, "force": force}), _json)


def show_config() -> Call[ConfigurationView]:
    return Call(_get("/api/v1/config"), _json)


def diff_config(text: str, name: str) -> Call[DifferenceView]:
    return Call(_post("/api/v1/config/diff", {"text": text, "name": name}), _json)


def apply_config(text: str, name: str) -> Call[RevisionView]:
    return Call(_send("PUT", "/api/v1/config", {"text": text, "name": name}), _json)


def list_config_history(after: int, limit: int) -> Call[RevisionPage]:
    return Call(_get("/api/v1/config/history", after=after, limit=limit), _page("revisions"))


def rollback_config(revision: int) -> Call[RevisionView]:
    return Call(_post("/api/v1/config/rollback", {"revision": revision}), _json)


def list_audit(after: int | None, limit: int) -> Call[AuditPage]:
    return Call(_get("/api/v1/audit", after=after, limit=limit), _page("audit"))


def verify_audit() -> Call[VerdictView]:
    return Call(_get("/api/v1/audit/verify"), _json)


def list_events(after: int, limit: int) -> Call[EventPage]:
    return Call(_get("/api/v1/events", follow="false", after=after, limit=limit), _page("events"))


def follow_events(after: int | None) -> StreamCall[EventView]:
    return StreamCall(_get("/api/v1/events", after=after), _item, None)


def status() -> Call[SystemView]:
    return Call(_get("/api/v1/system"), _json)


def ready() -> Call[None]:
    return Call(Asked(method="GET", path="/readyz", deadline_s=_READY_S), _nothing)


def chat(model: str, messages: Messages, options: Mapping[str, Any], terms: Terms) -> Call[Document]:
    return Call(_ask("/v1/chat/completions", _chat_body(model, messages, options), terms), _json)


def stream_chat(model: str, messages: Messages, options: Mapping[str, Any], terms: Terms) -> StreamCall[Document]:
    body = {**_chat_body(model, messages, options), "stream": True}
    return StreamCall(_ask("/v1/chat/completions", body, terms), _item, DONE)


def complete(model: str, prompt: str, options: Mapping[str, Any], terms: Terms) -> Call[Document]:
    return Call(_ask("/v1/completions", {**options, "model": model, "prompt": prompt}, terms), _json)


def stream_complete(model: str, prompt: str, options: Mapping[str, Any], terms: Terms) -> StreamCall[Document]:
    body = {**options, "model": model, "prompt": prompt, "stream": True}
    return StreamCall(_ask("/v1/completions", body, terms), _item, DONE)


def embed(model: str, texts: str | Sequence[str], options: Mapping[str, Any], terms: Terms) -> Call[Document]:
    return Call(_ask("/v1/embeddings", {**options, "model": model, "input": texts}, terms), _json)


def metadata(reference: str) -> Call[MetadataView]:
    return Call(_get(_protocol_path(reference)), _json)


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


def _get(path: str, **query: str | int | None) -> Asked:
    return Asked(method="GET", path=path, query={name: value for name, value in query.items() if value is not None})


def _ask(path: str, document: Mapping[str, Any], terms: Terms) -> Asked:
    asked = _post(path, document, terms.deadline_s)
    return replace(asked, headers={**asked.headers, **terms.headers()})


def _post(path: str, document: Mapping[str, Any], deadline_s: float | None = None) -> Asked:
    return _send("POST", path, document, deadline_s)


def _send(method: str, path: str, document: Mapping[str, Any], deadline_s: float | None = None) -> Asked:
    try:
        body = msgspec.json.encode(document)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"this cannot be sent as JSON: {error}") from error
    return Asked(method=method, path=path, headers=_JSON, body=body, deadline_s=deadline_s)


def _chat_body(model: str, messages: Messages, options: Mapping[str, Any]) -> dict[str, Any]:
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return {**options, "model": model, "messages": said}


def _part(name: str) -> str:
    if name in ("", ".", ".."):
        raise InvalidRequest(f"not a name: {name!r}; write a name, or an id as it is listed")
    return quote(name, safe="@")


def _model_path(reference: str) -> str:
    return f"/api/v1/models/{_part(reference)}"


def _lease_path(lease_id: str) -> str:
    return f"/api/v1/leases/{_part(lease_id)}"


def _key_path(key_id: str) -> str:
    return f"/api/v1/keys/{_part(key_id)}"


def _alias_path(name: str) -> str:
    return f"/api/v1/aliases/{_part(name)}"


def _protocol_path(reference: str) -> str:
    name, _, version = reference.partition("@")
    return f"/v2/models/{_part(name)}" + (f"/versions/{_part(version)}" if version else "")


def _json(answer: Answer) -> Any:
    return _decoded(answer.body)


def _item(data: bytes) -> Any:
    return _decoded(data)


def _nothing(_: Answer) -> None:
    return None


def _member(name: str) -> Callable[[Answer], Any]:
    def read(answer: Answer) -> Any:
        document = _decoded(answer.body)
        if not isinstance(document, dict) or name not in document:
            raise Internal(f"the answer has no {name!r}; is this address a coordinator's?")
        return document[name]

    return read


def _page(noun: str) -> Callable[[Answer], Any]:
    items = _member(noun)

    def read(answer: Answer) -> Any:
        return {"items": items(answer), "next": _decoded(answer.body).get("next")}

    return read


def _decoded(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise Internal(f"the answer is not JSON ({error}); is this address a coordinator's?") from error
