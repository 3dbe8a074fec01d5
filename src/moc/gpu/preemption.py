"""Whose lease has to end so that a more urgent one fits. Pure.

Only a strictly less urgent lease is preempted, by what was asked for, however long anybody waited: so nobody can
be preempted by the one it preempted, at any remove.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moc.gpu.eviction import Obstacle, Reason
from moc.gpu.lease import LeaseTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class Preemptible:
    """A lease that may be preempted, and how long it has run."""

    id: str
    device: str
    terms: LeaseTerms
    ran_s: float


@dataclass(frozen=True, slots=True)
class Preemption:
    """The device that is made free, and the leases that end for it."""

    device: str
    victims: tuple[str, ...]


def preempt(
    wanted: LeaseTerms, patience_s: float, obstacles: Iterable[Obstacle], leases: Sequence[Preemptible]
) -> Preemption | None:
    """The least that has to go, once all models that can have gone; None when that is not enough.

    On each device the least urgent go first, of those the ones that ran shortest; none that could be spared, none
    within its minimal runtime, none whose grace is longer than the one who waits for it has patience.
    """
    offers = []
    for obstacle in obstacles:
        missing = wanted.bytes - obstacle.free_bytes - obstacle.evictable_bytes
        able = sorted(
            (
                lease
                for lease in leases
                if lease.device == obstacle.device
                and lease.terms.priority > wanted.priority
                and lease.ran_s >= lease.terms.min_runtime_s
                and lease.terms.grace_s <= patience_s
            ),
            key=lambda lease: (-lease.terms.priority, lease.ran_s, lease.id),
        )
        if obstacle.reason is not Reason.HELD or sum(lease.terms.bytes for lease in able) < missing:
            continue
        victims = _fewest(able, missing)
        cost = sum(lease.terms.bytes for lease in victims)
        offers.append((-min((lease.terms.priority for lease in victims), default=0), cost, obstacle.device, victims))
    if not offers:
        return None
    _, _, device, victims = min(offers, key=lambda offer: offer[:3])
    return Preemption(device, tuple(lease.id for lease in victims)) if victims else None


def _fewest(able: Sequence[Preemptible], missing: int) -> list[Preemptible]:
    victims: list[Preemptible] = []
    total = 0
    for lease in able:
        if total >= missing:
            break
        victims.append(lease)
        total += lease.terms.bytes
    for lease in reversed(victims[:]):
        if total - lease.terms.bytes >= missing:
            victims.remove(lease)
            total -= lease.terms.bytes
    return victims
