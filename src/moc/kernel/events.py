"""What happened, as one ordered stream: the audit of the machine, and what `moc events` follows."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. `id` and `at` are given by the store when it is committed.

    `kind` is `noun.verb` (`model.ready`), `subject` names the thing (`smollm2@1`), `reason` says why
    in one machine word (`IdleTimeout`), `actor` who caused it (a key id, a replica, a worker).
    """

    kind: str
    subject: str
    reason: str = ""
    actor: str = "system"
    data: dict[str, Any] = field(default_factory=dict)
    id: int = 0
    at: float = 0.0
