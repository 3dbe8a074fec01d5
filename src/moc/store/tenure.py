"""Who has a seat and until when: the decisions, free of any storage."""

from dataclasses import dataclass, replace

from moc.kernel.errors import NotLeader
from moc.kernel.records import Fence, Seat

_MARGIN = 0.1
"""The share of the ttl by which a holder stops trusting its seat before the store frees it."""


@dataclass(frozen=True, slots=True)
class Tenure:
    """What a store remembers of a seat, also when nobody has it, so that a term is never used twice.

    `holder` is None once it was left. `expires_at` is on the monotonic clock of the boot called `boot`.
    """

    term: int
    holder: str | None
    ttl_s: float
    expires_at: float
    boot: str

    def held(self, now: float, boot: str) -> bool:
        """Whether somebody has the seat at `now` in this `boot`.

        Far more than the ttl left is a moment of another boot, on a machine that does not name its boots.
        """
        return self.holder is not None and self.boot == boot and 0 < self.expires_at - now < 2 * self.ttl_s


def taken(
    tenure: Tenure | None, holder: str, ttl_s: float, *, now: float, boot: str, dead_term: int | None
) -> Tenure | None:
    """The tenure after `holder` took the seat, None when somebody else has it."""
    term = 0
    if tenure is not None:
        if tenure.held(now, boot) and tenure.holder != holder and tenure.term != dead_term:
            return None
        term = tenure.term
    return Tenure(term + 1, holder, ttl_s, now + ttl_s, boot)


def kept(tenure: Tenure | None, seat: Seat, *, now: float) -> Tenure:
    """The tenure extended by its ttl, also once it expired; NotLeader when it was taken anew or left."""
    if tenure is None or tenure.term != seat.term or tenure.holder != seat.holder:
        raise NotLeader(f"term {seat.term} of seat {seat.name} is over; take the seat again")
    return replace(tenure, ttl_s=seat.ttl_s, expires_at=now + seat.ttl_s)


def left(tenure: Tenure | None, seat: Seat) -> Tenure | None:
    """The tenure after its holder gave the seat back, None when that changes nothing."""
    if tenure is None or tenure.term != seat.term or tenure.holder != seat.holder:
        return None
    return replace(tenure, holder=None)


def check_fence(tenure: Tenure | None, fence: Fence) -> None:
    """NotLeader unless the seat is at the fence's term, that is: was not taken anew and not left."""
    if tenure is None or tenure.term != fence.term or tenure.holder is None:
        raise NotLeader(f"term {fence.term} of seat {fence.seat} is over; nothing was changed")


def trusted(name: str, tenure: Tenure, asked_at: float) -> Seat:
    """The seat as its holder sees it, having asked at `asked_at` on its own monotonic clock."""
    until = asked_at + tenure.ttl_s * (1 - _MARGIN)
    return Seat(name, tenure.holder or "", tenure.term, tenure.ttl_s, until)


def observed(name: str, tenure: Tenure) -> Seat:
    """The seat as everybody else sees it."""
    return Seat(name, tenure.holder or "", tenure.term, tenure.ttl_s)
