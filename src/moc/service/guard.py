"""The one place where it is decided whether a caller may do what it asks, and where it is written down."""

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import structlog

from moc.kernel.errors import Forbidden, MocError
from moc.security.audit import Deed
from moc.security.identity import Identity
from moc.security.policy import ALLOWED, Operation, covers

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger(__name__)


def require(identity: Identity, operation: Operation, *, model: str | None = None) -> None:
    """Count a request and let it pass: Forbidden unless the caller's role allows the operation and its key the model.

    Without `model` it is about more than models: a key that is limited to some may not. RateLimited when the key's
    rate is used up.
    """
    identity.quota.spend()
    check(identity, operation, model=model)


def check(identity: Identity, operation: Operation, *, model: str | None = None) -> None:
    """Like `require`, for something more that a counted request needs, or the next part of an endless answer."""
    identity.quota.check()
    _check_role(identity, operation)
    if identity.models and (model is None or not covers(identity.models, model)):
        subject = "anything else" if model is None else f"model {model[:128]!r}"
        raise Forbidden(
            f"key {identity.name!r} is for the models {', '.join(identity.models)} and not for {subject}; "
            "ask for a key that is"
        )


def visible(identity: Identity, operation: Operation) -> Callable[[str], bool]:
    """Count a request for a list of models, and tell which of them the caller may see; raises like `require`."""
    identity.quota.spend()
    return seen(identity, operation)


def seen(identity: Identity, operation: Operation) -> Callable[[str], bool]:
    """Like `visible`, for another list that a counted request needs."""
    _check_role(identity, operation)
    return lambda model: not identity.models or covers(identity.models, model)


def _check_role(identity: Identity, operation: Operation) -> None:
    if operation not in ALLOWED[identity.role]:
        raise Forbidden(
            f"key {identity.name!r} has the role {identity.role}, which may not do {operation}; "
            "ask for a key with a role that may"
        )


class Journal(Protocol):
    """Where it is written down what callers did; `security.audit.AuditLog` outside tests."""

    async def append(self, deed: Deed) -> None:
        """Write it down; durable when this returns."""
        ...


class Audited(Protocol):
    """A service whose changes are written down."""

    @property
    def journal(self) -> Journal: ...


S = TypeVar("S", bound=Audited)
Method = Callable[Concatenate[S, Identity, P], Awaitable[R]]
AuditedMethod = Callable[Concatenate[S, Identity, P], Coroutine[Any, Any, R]]


class audited:  # noqa: N801 - it is a decorator
    """Make a method write down who called it, on what and how it ended, before it answers.

    What it was on is its first argument, or `subject` of what it returned. A record that cannot be written is
    logged: what was done stays done, and its caller is told so.
    """

    def __init__(self, operation: str, *, subject: Callable[[Any], str] | None = None) -> None:
        self._operation = operation
        self._subject = subject

    def __call__(self, method: Method[S, P, R]) -> AuditedMethod[S, P, R]:
        first = list(inspect.signature(method).parameters)[2]

        @wraps(method)
        async def run(service: S, identity: Identity, /, *args: P.args, **kwargs: P.kwargs) -> R:
            given, outcome = args[0] if args else kwargs[first], "cancelled"
            subject = given if isinstance(given, str) else ""
            try:
                result = await method(service, identity, *args, **kwargs)
                subject, outcome = self._subject(result) if self._subject else subject, "ok"
                return result
            except Exception as error:
                outcome = error.code if isinstance(error, MocError) else "internal"
                raise
            finally:
                await _write(service.journal, Deed.by(identity, self._operation, subject, outcome))

        return run


async def _write(journal: Journal, deed: Deed) -> None:
    try:
        await journal.append(deed)
    except MocError as error:
        log.error("not in the audit", problem=error.message, operation=deed.operation, subject=deed.subject)
