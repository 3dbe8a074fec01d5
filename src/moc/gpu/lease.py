"""The nouns: a lease of device memory, its states, and the token that proves who has it."""

import re
from dataclasses import dataclass
from enum import StrEnum

from moc.kernel.errors import InvalidRequest

_TOKEN = re.compile(r"(\d{1,18})\.(\d{1,18})")


class LeaseState(StrEnum):
    """`pending` waits for memory; `admitted` has it; `preempting` has it until its grace is over; the rest ended."""

    PENDING = "pending"
    ADMITTED = "admitted"
    PREEMPTING = "preempting"
    RELEASED = "released"
    EVICTED = "evicted"
    EXPIRED = "expired"


ENDED = frozenset({LeaseState.RELEASED, LeaseState.EVICTED, LeaseState.EXPIRED})

HOLDING = (LeaseState.ADMITTED, LeaseState.PREEMPTING)

MOVES: dict[LeaseState, frozenset[LeaseState]] = {
    LeaseState.PENDING: frozenset({LeaseState.ADMITTED}),
    LeaseState.ADMITTED: frozenset(
        {LeaseState.RELEASED, LeaseState.PREEMPTING, LeaseState.EVICTED, LeaseState.EXPIRED}
    ),
    LeaseState.PREEMPTING: frozenset({LeaseState.EVICTED}),
    LeaseState.RELEASED: frozenset(),
    LeaseState.EVICTED: frozenset(),
    LeaseState.EXPIRED: frozenset(),
}
"""Every move a lease's state may make."""


@dataclass(frozen=True, slots=True, order=True)
class Token:
    """Proves a lease, and orders grants: a later one is greater, whichever coordinator made it.

    `term` is that of the coordinator's seat, `seq` counts its grants. Whoever guards something else with a
    lease refuses a token that is less than one it has seen.
    """

    term: int
    seq: int

    def __str__(self) -> str:
        return f"{self.term}.{self.seq}"

    @classmethod
    def parse(cls, text: str) -> "Token":
        """The token that prints as `text`; InvalidRequest when none does."""
        match = _TOKEN.fullmatch(text)
        if match is None:
            raise InvalidRequest(f"not a token: {text[:40]!r}; it is what the lease was granted with, such as 3.17")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTerms:
    """What somebody wants: `bytes` on one device of `devices` (`auto`, a kind or an id).

    `priority` is 1 (highest) to 10. The lease ends `ttl_s` after it was last renewed. It is not preempted in its
    first `min_runtime_s`, and has `grace_s` to end once it is. One for a learning job, whose id is `job`, gives way to
    models that are loaded for requests, and takes no room from equals that were used of late.
    """

    bytes: int
    devices: str = "auto"
    priority: int = 5
    ttl_s: float = 60.0
    min_runtime_s: float = 0.0
    grace_s: float = 10.0
    job: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Memory of one device that a process outside has.

    `holder` is the key id it was asked with. `process` names the process that uses it, if that was said, as
    `str(cluster.holder.Holder)`. `reason` is why it is in its state: `Granted`, `Released`, `Expired`, `Preempted`,
    `ProcessGone`, `NodeLost` (its device is), `Abandoned`. `quarantined`: it ended, but its process has not. Times
    are wall.
    """

    id: str
    terms: LeaseTerms
    holder: str
    holder_name: str
    state: LeaseState
    created_at: float
    device: str = ""
    token: Token | None = None
    reason: str = ""
    granted_at: float = 0.0
    process: str = ""
    quarantined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A lease now. It expires at `expires_at` unless it is renewed, and is evicted at `evict_at`, both wall time.

    `evict_in_s` is how long that is from now. Of a pending one `message` says what it waits for, `position` its place
    among those who wait for the same devices (1 = next), `first` the lease that is next if it is not this one, and
    `estimated_wait_s` how long it will wait if that is known.
    """

    lease: Lease
    expires_at: float | None = None
    evict_at: float | None = None
    evict_in_s: float | None = None
    message: str = ""
    position: int | None = None
    first: Lease | None = None
    estimated_wait_s: float | None = None
