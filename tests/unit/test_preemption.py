"""Who is preempted for whom, on ten thousand random schedules."""

import random

from moc.gpu.eviction import Obstacle, Reason
from moc.gpu.lease import LeaseTerms
from moc.gpu.preemption import Preemptible, Preemption, preempt

CAPACITY = 100


def obstacle(free: int, *, reason: Reason = Reason.HELD, evictable: int = 0) -> Obstacle:
    return Obstacle(
        device="a", reason=reason, limit_bytes=CAPACITY, unmanaged_bytes=0, free_bytes=free, evictable_bytes=evictable
    )


def lease(name: str, size: int, priority: int, *, ran_s: float = 1.0) -> Preemptible:
    return Preemptible(id=name, device="a", terms=LeaseTerms(bytes=size, priority=priority), ran_s=ran_s)


def test_the_least_urgent_go_first_and_nobody_in_vain() -> None:
    held = [lease("old", 50, 8, ran_s=9), lease("new", 20, 8), lease("urgent", 30, 2)]
    wanted = LeaseTerms(bytes=20, priority=5)
    assert preempt(wanted, 60, [obstacle(0)], held) == Preemption("a", ("new",))
    assert preempt(LeaseTerms(bytes=50, priority=5), 60, [obstacle(0)], held) == Preemption("a", ("old",))
    assert preempt(LeaseTerms(bytes=80, priority=5), 60, [obstacle(0)], held) is None
    assert preempt(LeaseTerms(bytes=80, priority=5), 60, [obstacle(5, evictable=5)], held) == Preemption(
        "a", ("new", "old")
    )
    assert preempt(wanted, 60, [obstacle(0, reason=Reason.RESIDENCY)], held) is None
    assert preempt(wanted, 1, [obstacle(0)], held) is None


def test_no_schedule_preempts_in_a_circle() -> None:
    """However leases come, are preempted and come again, whoever preempts is more urgent: so it ends."""
    dice = random.Random(20)
    for _ in range(10_000):
        held: list[Preemptible] = []
        waiting = [lease(str(n), dice.randint(1, CAPACITY), dice.randint(1, 10)) for n in range(dice.randint(2, 7))]
        preemptions = 0
        for _ in range(60):
            if not waiting:
                break
            asking = waiting.pop(dice.randrange(len(waiting)))
            free = CAPACITY - sum(each.terms.bytes for each in held)
            if asking.terms.bytes > free:
                chosen = preempt(asking.terms, 60, [obstacle(free)], held)
                if chosen is None:
                    continue  # it waits for somebody to end
                gone = [each for each in held if each.id in chosen.victims]
                assert all(each.terms.priority > asking.terms.priority for each in gone)
                freed = free + sum(each.terms.bytes for each in gone)
                assert freed >= asking.terms.bytes > freed - min(each.terms.bytes for each in gone)
                held = [each for each in held if each not in gone]
                waiting += gone
                preemptions += len(gone)
            held.append(asking)
        assert not waiting
        assert preemptions < 50
