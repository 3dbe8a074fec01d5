"""What each role may do; what is not named here nobody may."""

from collections.abc import Sequence
from enum import StrEnum
from fnmatch import fnmatchcase

from moc.security.identity import Role


class Operation(StrEnum):
    INFER = "infer"
    READ_MODELS = "models.read"
    CHANGE_MODELS = "models.change"
    READ_SYSTEM = "system.read"
    READ_DEVICES = "devices.read"
    CHANGE_DEVICES = "devices.change"
    READ_LEASES = "leases.read"
    CHANGE_LEASES = "leases.change"
    READ_JOBS = "jobs.read"
    CHANGE_JOBS = "jobs.change"
    READ_KEYS = "keys.read"
    CHANGE_KEYS = "keys.change"
    READ_AUDIT = "audit.read"
    READ_CONFIG = "config.read"
    CHANGE_CONFIG = "config.change"


_READER = frozenset(
    {
        Operation.READ_MODELS,
        Operation.READ_SYSTEM,
        Operation.READ_DEVICES,
        Operation.READ_LEASES,
        Operation.READ_JOBS,
    }
)

ALLOWED: dict[Role, frozenset[Operation]] = {
    Role.VIEWER: _READER,
    Role.INFERENCE: frozenset({Operation.INFER, Operation.READ_MODELS}),
    Role.OPERATOR: _READER
    | {
        Operation.INFER,
        Operation.CHANGE_MODELS,
        Operation.CHANGE_DEVICES,
        Operation.CHANGE_LEASES,
        Operation.CHANGE_JOBS,
    },
    Role.ADMIN: frozenset(Operation),
}


def covers(globs: Sequence[str], reference: str) -> bool:
    """Whether a model (`name` or `name@version`) is one of those the globs name; without `@` a glob names a model."""
    name = reference.partition("@")[0]
    return any(fnmatchcase(reference if "@" in glob else name, glob) for glob in globs)
