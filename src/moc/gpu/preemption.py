"""Whose lease has to end so that somebody more urgent fits. Pure.

Only a strictly less urgent lease is preempted, by what was asked for, however long anybody waited: so nobody can
be preempted by the one it preempted, at any remove. Leases of learning jobs give way to models of their own urgency,
too; a job preempts no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moc.gpu.lease import LeaseTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class Preemptible:
    """A lease that may be preempted, and how long it has run."""

    id: str
    device: str
    terms: LeaseTerms
    ran_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who wants memory that leases have, and waits `patience_s` for it: another lease, or a model that `serves`."""

    priority: int
    patience_s: float
    serves: bool = False

    def may_end(self, lease: Preemptible) -> bool:
        """Whether a lease has to give way to it: none in its minimal runtime, or with a grace beyond its patience."""
        terms = lease.terms
        due = lease.ran_s >= terms.min_runtime_s and terms.grace_s <= self.patience_s
        if self.serves:
            return due and bool(terms.job) and terms.priority >= self.priority
        return due and terms.priority > self.priority


@dataclass(frozen=True, slots=True)
class Preemption:
    """The device that is made free, and the leases that end for it."""

    device: str
    victims: tuple[str, ...]


def preempt(
    claim: Claim, missing_bytes: Mapping[str, int], leases: Sequence[Preemptible], *, devices: int = 1
) -> list[Preemption]:
    """The least that has to go so that so many devices are free, by device what is missing there; else nothing.

    On each device the least urgent go first, of those the ones that ran shortest, and none that could be spared.
    """
    offers = []
    for device, missing in missing_bytes.items():
        able = sorted(
            (lease for lease in leases if lease.device == device and claim.may_end(lease)),
            key=lambda lease: (-lease.terms.priority, lease.ran_s, lease.id),
        )
        if 0 < missing <= sum(lease.terms.bytes for lease in able):
            victims = _fewest(able, missing)
            cost = sum(lease.terms.bytes for lease in victims)
            offers.append((-min(lease.terms.priority for lease in victims), cost, device, victims))
    if len(offers) < devices:
        return []
    chosen = sorted(offers, key=lambda offer: offer[:3])[:devices]
    return [Preemption(device, tuple(lease.id for lease in victims)) for _, _, device, victims in chosen]


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
