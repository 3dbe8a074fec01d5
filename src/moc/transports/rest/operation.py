"""What a route outside FastAPI is: how it is reached, what it does, and what the document says of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from moc.transports.headers import PRIORITY_MAX, SESSION_MAX
from moc.transports.oip.request import model_reference
from moc.transports.rest.exchange import Exchange

MODEL: Final = "/v2/models/{model}"
EXCHANGE: Final = "moc.exchange"
"""Where an ASGI scope carries its Exchange."""

DEADLINE_HEADER: Final[dict[str, Any]] = {
    "name": "x-moc-deadline-ms",
    "in": "header",
    "required": False,
    "description": "How many milliseconds the answer may take.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 86_400_000},
}

TERMS_HEADERS: Final[tuple[dict[str, Any], ...]] = (
    DEADLINE_HEADER,
    {
        "name": "x-moc-priority",
        "in": "header",
        "required": False,
        "description": "Its place among the waiting requests of the same key; 1 is the highest.",
        "schema": {"type": "integer", "minimum": 1, "maximum": PRIORITY_MAX, "default": 5},
    },
    {
        "name": "x-moc-session",
        "in": "header",
        "required": False,
        "description": "Requests of one session go to the same version of an alias that is sticky by session.",
        "schema": {"type": "string", "maxLength": SESSION_MAX},
    },
    {
        "name": "idempotency-key",
        "in": "header",
        "required": False,
        "description": "Whatever it is, it says that the request may be run more than once.",
        "schema": {"type": "string"},
    },
)
"""How a request for an answer of a model is to be served."""

Handler = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path.

    `query` are the parameters behind the question mark, as the document has them. `body` and `answer` are the types
    the document describes them by; `body_media` is the body's media type, `optional_body` allows none at all; one that
    `bounds_itself` reads it piece by piece, however large it is. `has_terms` tells whether the headers of one with a
    body say how it is to be served. `media` are the answer's media types. `public` operations need no key.
    """

    method: str
    path: str
    handle: Handler
    summary: str
    answer: Any
    query: tuple[dict[str, Any], ...] = ()
    body: Any = None
    body_media: str = "application/json"
    optional_body: bool = False
    binary_body: bool = False
    bounds_itself: bool = False
    has_terms: bool = True
    media: tuple[str, ...] = ("application/json",)
    public: bool = False

    def route(self) -> Route:
        """The route that leads to it."""
        return Route(self.path, _Endpoint(self.handle), methods=[self.method], name=f"{self.method} {self.path}")


class _Endpoint:
    """An ASGI application made of a handler; Starlette calls a class instance without wrapping it."""

    __slots__ = ("_handle",)

    def __init__(self, handle: Handler) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handle(scope[EXCHANGE])


def versioned(operation: Operation) -> list[Operation]:
    """An operation on a model, and the same one on a version of it."""
    return [operation, replace(operation, path=operation.path.replace(MODEL, f"{MODEL}/versions/{{version}}"))]


def reference_of(exchange: Exchange) -> str:
    """The reference that the path names: `{model}`, or `{model}@{version}` when it names a version too."""
    parts = exchange.scope["path_params"]
    return model_reference(parts["model"], parts.get("version"))
