"""The one place where it is decided whether a caller may do what it asks."""

from moc.kernel.errors import Forbidden
from moc.security.identity import Identity
from moc.security.policy import ALLOWED, Operation


def require(identity: Identity, operation: Operation) -> None:
    """Forbidden unless the caller's role allows the operation."""
    if operation not in ALLOWED[identity.role]:
        raise Forbidden(
            f"key {identity.name!r} has the role {identity.role}, which may not do {operation}; "
            "ask for a key with a role that may"
        )
